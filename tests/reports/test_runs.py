"""A run's section: its curve, from tables or from committed files, its config, and a command that the workflow knows."""

import gzip
import xml.etree.ElementTree as ElementTree

import pytest
from pages import copy_of, rewrite
from repository import ROOT
from synthetic_folder import run_row
from synthetic_runs import store

from evals.records import schema
from evals.records.errors import UserError
from reports import comparison, runs
from reports.page import Facts, Results
from reports.sketch import Line, sketch

RUN = "ultramem-d64-s0"


@pytest.fixture(scope="module")
def loaded(results) -> Results:
    return Results(results)


@pytest.fixture(scope="module")
def committed(results, tmp_path_factory) -> Results:
    folder = copy_of(results, tmp_path_factory.mktemp("committed"))
    store(folder)
    return Results(folder)


def cards(blocks) -> dict[str, runs.Run]:
    found = [run for block in blocks if isinstance(block, runs.Runs) for run in block.runs]
    assert len(found) == len({run.name for run in found})
    return {run.name: run for run in found}


def test_committed_runs_give_the_curves_that_the_table_gives(loaded, committed):
    table, stored = cards(runs.runs(loaded)), cards(runs.runs(committed))
    assert {name: run.curve for name, run in table.items()} == {name: run.curve for name, run in stored.items()}
    assert stored[RUN].curve.startswith("<svg")
    assert "n_keys: 12" in stored[RUN].config
    assert table[RUN].config == ""


def test_every_run_has_a_section_where_it_belongs(loaded):
    blocks = list(runs.runs(loaded))
    assert set(cards(blocks)) == set(loaded.runs.index)
    titles = [block.title for block in blocks if isinstance(block, runs.Runs)]
    assert titles[:3] == [f"The comparison, {size}" for size in ("d64", "d128", "d256")]
    assert "Chain sparsity" in titles
    assert titles[-1] == "Tuning"
    assert cards(blocks)[RUN].asked == "the comparison; ablation_controls, UltraMem"


def test_what_all_runs_share_is_said_once(loaded):
    blocks = list(runs.runs(loaded))
    (common,) = [dict(block.facts) for block in blocks if isinstance(block, Facts)]
    assert common["device"] == "CPU: Synthetic 9000"
    for run in cards(blocks).values():
        assert not common.keys() & dict(run.facts).keys()
    assert dict(cards(blocks)[RUN].facts)["test_loss"] == f"{loaded.runs.loc[RUN, 'test_loss']:.3f}"


def test_the_command_is_the_target_of_the_run_in_its_preset(loaded):
    row = loaded.runs.loc[RUN].copy()
    row["preset"] = "reference"
    lines = runs.command(row).split("\n")
    assert lines[:2] == [f"git checkout {row['git_commit']}", "make env"]
    command = f".venv/bin/snakemake --cores all results/reference.run/runs/{RUN}/runs.csv --config preset=reference adopt=false"
    assert lines[2:] == [command]
    row["git_commit"] = ""
    assert runs.command(row) == command
    rule = (ROOT / "workflows/rules/train.smk").read_text()
    assert 'RESULTS + f"/runs/{{run}}/{table}.csv" for table in RUN_TABLES' in rule
    assert 'RUN_TABLES = ("runs"' in rule


def test_a_curve_keeps_to_its_axes():
    lines = [Line("train", [(1e5, 8.0), (1e6, 5.0)], "muted"), Line("a <b>", [(1e6, 5.2)], "ink", dots=True)]
    root = ElementTree.fromstring(sketch(lines, "tokens", "nats/token", 'says "so"'))
    assert root.get("aria-label") == 'says "so"'
    _, _, width, height = map(float, root.get("viewBox").split())
    texts = {part.text: (float(part.get("x")), float(part.get("y"))) for part in root.iter("text")}
    assert {"train", "a <b>", "100 k", "1 M", "5", "8"} <= texts.keys()
    assert all(0 <= x <= width and 0 <= y <= height for x, y in texts.values())
    assert texts["5"][1] > texts["8"][1]
    (path,) = [part.get("d") for part in root.iter("path") if part.get("stroke-width") == "1"]
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in path[1:].split("L"))
    assert 0 < x0 < x1 < width
    assert 0 < y0 < y1 < height


@pytest.mark.parametrize("content", [b"run,step\nx,1\n", b""], ids=["foreign", "empty"])
def test_an_unusable_curve_is_one_sentence(tmp_path, content):
    row = run_row(RUN, "ultramem", "d64", 0, 4.5)
    for folder in (tmp_path, tmp_path / "runs" / RUN):
        schema.write(folder / "runs.csv", "runs", [row])
    (tmp_path / "runs" / RUN / "train.csv.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=rf"train.csv of .*{RUN} is not a CSV of table 'train'"):
        Results(tmp_path)


def test_two_folders_agree_with_themselves_and_differ_where_a_verdict_does(loaded, tmp_path):
    folder = copy_of(loaded.folder, tmp_path)

    def told() -> list[str]:
        blocks = list(comparison.comparison(loaded, Results(folder, linked=False)))
        return [getattr(block, "text", "") or block.caption for block in blocks]

    same = told()
    assert "to the last digit" in same[0]
    assert any("on 0 their verdicts differ" in words for words in same)
    rewrite(
        folder / "claims.csv", "claims", lambda frame: frame.assign(verdict=frame["verdict"].replace("reproduced", "ambiguous"))
    )
    assert not any("on 0 their verdicts differ" in words for words in told())
