"""Every table of results/reference is of code that still stands, or says why it is kept; one command fills the folder."""

import base64
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from synthetic import grid_run, row

from evals.agreement.told import reproduced
from evals.compare import compare
from evals.records import schema
from evals.records.errors import UserError
from workflows import reference


def test_every_table_of_the_reference_is_accounted_for():
    assert not reference.unaccounted()


def test_the_reference_agrees_with_itself():
    """`make` ends with a comparison with it, so that every row must have a key of its own."""
    assert reproduced(compare(reference.REFERENCE, reference.REFERENCE))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A results folder that snakemake made from a clean checkout, an empty reference, and one producer's fingerprint."""
    results, kept, code = tmp_path / "results" / "tiny", tmp_path / "reference", {"now": "aaa", "dirty": ""}
    schema.write(results / "runs.csv", "runs", [grid_run("dense"), grid_run("pkm")])
    schema.write(results / "health.csv", "health", [row("health", run="pkm-s-s0")])
    (results / "data.json").write_text("{}")
    kept.mkdir()
    git = {"rev-parse": "c0ffee", "status": code}
    monkeypatch.setattr(reference, "PRODUCERS", {"runs": ("training",), "health": ("training",)})
    monkeypatch.setattr(reference, "source", lambda producer: code["now"])
    monkeypatch.setattr(reference, "git", lambda what, *_: code["dirty"] if what == "status" else git[what])
    monkeypatch.setattr(reference, "up_to_date", lambda results, tables: None)
    return results, kept, code


def test_copied_tables_carry_commit_code_date_and_device(folders):
    results, kept, _ = folders
    assert reference.copy(results, [], dirty=False, folder=kept) == ["runs", "health"]
    rows = schema.read(kept / "provenance.csv", "provenance").set_index("table")
    assert (rows.commit == "c0ffee").all()
    assert (rows.source == "aaa").all()
    assert (rows.device == "CPU: made up").all()
    assert not rows.dirty.any()
    assert (kept / "health.csv").read_bytes() == (results / "health.csv").read_bytes()
    assert (kept / "data.json").exists()
    assert reference.unaccounted(kept) == []


def test_a_changed_producer_wants_a_measurement_or_a_reason_for_that_change(folders):
    results, kept, code = folders
    reference.copy(results, [], dirty=False, folder=kept)
    code["now"] = "bbb"
    found = reference.unaccounted(kept)
    assert len(found) == 2
    assert "health.csv: training has changed since c0ffee (source aaa, now bbb): measure again, or say why" in found[0]
    reference.stands(["health", "runs"], "only names changed", kept)
    assert reference.unaccounted(kept) == []
    code["now"] = "ccc"  # the reason was about another change
    assert len(reference.unaccounted(kept)) == 2
    reference.copy(results, ["health"], dirty=False, folder=kept)
    (left,) = reference.unaccounted(kept)
    assert left.startswith("runs.csv: training has changed")
    assert list(schema.read(kept / "provenance.csv", "provenance").reason) == ["only names changed", ""]


def test_a_table_that_says_it_is_stale_is_left_alone(folders):
    results, kept, code = folders
    reference.copy(results, [], dirty=False, folder=kept)
    rows = reference.recorded(kept).astype(object)
    rows["reason"] = "stale: measured again soon"
    reference.write(kept, rows)
    code["now"] = "bbb"
    assert reference.unaccounted(kept) == []


def test_an_edited_an_unrecorded_and_a_missing_table_are_named(folders):
    results, kept, _ = folders
    reference.copy(results, [], dirty=False, folder=kept)
    schema.write(kept / "health.csv", "health", [row("health", run="pkm-s-s0", value=2.0)])
    schema.write(kept / "cost.csv", "cost", [row("cost")])
    (kept / "runs.csv").unlink()
    missing, unrecorded, edited = reference.unaccounted(kept)
    assert "runs.csv has a row in provenance.csv and does not exist" in missing
    assert "cost.csv has no row in provenance.csv" in unrecorded
    assert "health.csv is not the file that was recorded" in edited


def test_a_dirty_checkout_is_refused_unless_told_and_then_recorded(folders):
    results, kept, code = folders
    code["dirty"] = " M models/moe.py"
    with pytest.raises(UserError, match="holds uncommitted changes"):
        reference.copy(results, [], dirty=False, folder=kept)
    assert not list(kept.iterdir())
    reference.copy(results, [], dirty=True, folder=kept)
    assert schema.read(kept / "provenance.csv", "provenance").dirty.all()


def test_what_cannot_be_copied_or_said_is_one_sentence(folders):
    results, kept, _ = folders
    with pytest.raises(UserError, match="speed: not one of runs, health"):
        reference.copy(results, ["speed"], dirty=False, folder=kept)
    with pytest.raises(UserError, match="does not hold any table"):
        reference.copy(kept, [], dirty=False, folder=kept)
    (results / "health.csv").unlink()
    with pytest.raises(UserError, match="does not hold health: run snakemake first"):
        reference.copy(results, ["health"], dirty=False, folder=kept)
    reference.copy(results, [], dirty=False, folder=kept)
    for tables, reason in ((["runs"], " "), ([], "why"), (["health"], "why")):
        with pytest.raises(UserError, match=r"a reason and the tables that it is about are needed; tables of .* are runs"):
            reference.stands(tables, reason, kept)


@pytest.mark.parametrize(
    ("status", "made", "refused"),
    [("no update", True, False), ("update pending", True, True), ("no update", False, True), (None, True, True)],
)
def test_only_what_snakemake_made_by_this_code_is_copied(status, made, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "results/tiny/speed.csv"
    if made:
        name = base64.urlsafe_b64encode(file.encode()).decode()
        Path(".snakemake/metadata").mkdir(parents=True)
        Path(".snakemake/metadata", name).touch()
    Path("results/tiny").mkdir(parents=True)
    Path("results/tiny/grid.json").write_text('{"preset": "tiny"}')
    lines = "output_file\tdate\trule\tlog-file(s)\tstatus\tplan\n" + (f"{file}\t-\tspeed\t-\tok\t{status}\n" if status else "")
    done = subprocess.CompletedProcess([], 0, lines, "")
    monkeypatch.setattr(reference.subprocess, "run", lambda *_, **__: done)
    if refused:
        with pytest.raises(UserError, match=f"not made by this code, by snakemake's account: {file}; run snakemake"):
            reference.up_to_date(Path("results/tiny"), ["speed"])
    else:
        reference.up_to_date(Path("results/tiny"), ["speed"])


def test_fingerprints_stop_at_what_only_writes():
    """`source` sees the code of the producer and the files it names, not how a CSV is written."""
    producer = ("modelled", "evals/decode/gpus.yaml")
    assert reference.source(producer) != reference.source(producer[:1])
    assert len(reference.source(("training",))) == 12
    assert isinstance(reference.recorded(reference.REFERENCE), pd.DataFrame)
