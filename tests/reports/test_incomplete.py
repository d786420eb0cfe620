"""The report of folders that lack, repeat or damage something, or hold what nobody foresaw."""

import html

import pytest
from pages import copy_of, rendered, rewrite, section, table
from synthetic_fair import folder
from synthetic_folder import SIZES, run_row

from evals.records import schema
from evals.records.errors import UserError
from reports import build, timings
from reports import page as parts


def test_a_conservative_speed_up_needs_a_roofline(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    rewrite(path / "latency.csv", "latency", lambda frame: frame.assign(predicted_ms=None))
    page = rendered(path, "latency")
    header, *rows = table(page, "Speed-up over MoE")
    assert {row[header.index("conservative")] for row in rows} == {"–"}
    assert {row[header.index("reading")] for row in rows} == {"MoE has no roofline", "memory is slower"}
    assert "–" not in {row[header.index("MoE / memory")] for row in rows}
    assert "no measured row has a predicted_ms" in section(page, "latency")


def test_other_machines_times_stand_beside_ours_without_their_runs(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    change = {"device": "CUDA: Another", "run": "dense-d64-s0"}
    rewrite(path / "latency.csv", "latency", lambda frame: frame.assign(**change))
    page = rendered(results, "latency", also=[path])
    assert "measured, CUDA, fp32" in page
    assert "measured, CPU, fp32" in page
    assert "dense-d64-s0" in set(timings.timings(parts.Results(path))["run"])
    assert set(timings.timings(parts.Results(results, [path]))["run"]) == {""}


def test_a_chain_alone_has_its_laws(undrawn, results, tmp_path):
    fits = schema.read(results / "fits.csv", "fits")
    schema.write(tmp_path / "fits.csv", "fits", fits[fits["fit"].isin(["sparse ratio", "table size"])])
    arms = schema.read(results / "arms.csv", "arms").query("chain == 'sparsity'")
    runs = schema.read(results / "runs.csv", "runs")
    schema.write(tmp_path / "arms.csv", "arms", arms)
    schema.write(tmp_path / "runs.csv", "runs", runs[runs["run"].isin(arms["run"])])
    page = rendered(tmp_path, "scaling", "losses")
    assert {row[0] for row in table(page, "Every law by the form that stands")[1:]} == {"sparse ratio", "table size"}
    assert "Against sparse over activated parameters" in section(page, "scaling")
    assert "runs.csv holds no finished run of the comparison" in section(page, "losses")


@pytest.mark.parametrize("text", ["", "device,id\nA,1\n"], ids=["empty", "foreign"])
def test_unusable_statements_are_one_sentence(undrawn, results, tmp_path, text):
    path = copy_of(results, tmp_path)
    (path / "statements.csv").write_text(text)
    with pytest.raises(UserError, match=r"statements.csv is (cut short|not a CSV)"):
        rendered(path, "latency")
    (path / "statements.csv").unlink()
    assert "statements.csv is absent" in rendered(path, "latency")


def test_seeds_are_a_mean_and_a_spread_with_a_link_each(undrawn, tmp_path):
    path = folder(tmp_path / "three", seeds=3)
    page = rendered(path, "losses")
    losses = schema.read(path / "runs.csv", "runs").set_index("run")["test_loss"]
    losses = losses[[f"pkm-d64-s{seed}" for seed in range(3)]]
    assert f"{losses.mean():.3f} ± {losses.std():.3f}" in section(page, "losses")
    assert all(f'<a href="#run-pkm-d64-s{seed}">{seed}</a>' in section(page, "losses") for seed in range(3))
    assert "3 seeds" in page


@pytest.mark.parametrize(
    "absent", [{"runs"}, {"train", "arms"}, set(parts.WRITER) - {"runs"}], ids=["runs", "two", "all but runs"]
)
def test_an_absent_csv_is_a_sentence_with_a_reason(undrawn, results, tmp_path, absent):
    path = copy_of(results, tmp_path)
    for name in parts.FILES:
        if name.removesuffix("_modelled") in absent:
            (path / f"{name}.csv").unlink()
    page = html.unescape(build.render(path))
    for csv, writer in parts.WRITER.items():
        sentence = f"Not measured in this run: {csv}.csv is absent ({writer})."
        assert (sentence in page) == (csv in absent), csv


def test_a_csv_without_rows_is_a_sentence_too(undrawn, results, tmp_path):
    folder = copy_of(results, tmp_path)
    schema.write(folder / "arms.csv", "arms", [])
    assert "Not measured in this run: arms.csv has no rows" in section(rendered(folder, "ablations"), "ablations")


def test_runs_alone_and_an_unfinished_run_make_a_report(results, tmp_path):
    folder = tmp_path / "alone"
    rows = [run_row("dense-d64-s0", "dense", "d64", 0, 4.5)]
    rows.append(run_row("pkm-d64-s0", "pkm", "d64", 0, 4.4, val_loss=None, train_loss=None, status="stopped", ended=""))
    schema.write(folder / "runs.csv", "runs", rows)
    page = build.render(folder)
    assert "4.500" in section(page, "losses")
    assert "stopped" in section(page, "runs")
    schema.write(folder / "runs.csv", "runs", rows[1:])
    assert "stopped" in section(build.render(folder), "runs")


def test_an_architecture_the_report_does_not_know_is_drawn(undrawn, tmp_path):
    rows = [run_row(f"{arch}-{size}-s0", arch, size, 0, 4.5) for arch in ("dense", "peer") for size in SIZES]
    schema.write(tmp_path / "runs.csv", "runs", rows)
    assert section(build.render(tmp_path), "losses").count("peer") >= 4


def test_a_foreign_csv_and_an_empty_folder_are_one_sentence(undrawn, results, tmp_path):
    folder = copy_of(results, tmp_path)
    text = (folder / "evals.csv").read_text()
    (folder / "evals.csv").write_text(text.replace("stderr", "standard_error", 1))
    with pytest.raises(UserError, match=r"evals.csv is not a CSV of table 'evals': it lacks 'stderr'"):
        rendered(folder, "evaluations")
    (folder / "evals.csv").write_text(text)
    (folder / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data.json is not JSON"):
        rendered(folder, "data")
    (tmp_path / "empty").mkdir()
    for absent in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="snakemake"):
            build.render(absent)
