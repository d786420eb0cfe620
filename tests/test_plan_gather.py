"""Predictions add up and say what they were calibrated on; gathering takes only runs of the present config."""

import json

import pytest
from synthetic import row

from evals import schema
from reports.page import Results
from workflows import gather, plan, resolve, runs
from workflows.errors import UserError


@pytest.fixture
def results(tmp_path):
    """A resolved smoke preset of which three runs are finished, one of them by an older config."""
    grid = resolve.write_grid("smoke", {}, tmp_path)
    folder = tmp_path / "smoke"
    for i, run in enumerate(["dense-xs-s0", "moe8-xs-s0", "pkm-xs-s0"]):
        entry = grid["runs"][run]
        sha = "another" if run == "moe8-xs-s0" else entry["sha"]
        done = row("runs", run=run, arch=entry["arch"], config_sha=sha, val_loss=5.0 - i, core_seconds=10.0, tokens=100)
        schema.write(folder / "runs" / run / "runs.csv", "runs", [done | {"flops_per_token": 7.0}])
        schema.write(folder / "runs" / run / "train.csv", "train", [row("train", run=run)])
        schema.write(folder / "runs" / run / "health.csv", "health", [])
    return folder


def test_only_runs_of_this_config_are_gathered(results, capsys):
    assert gather.gather(results, results) == 2
    runs = schema.read(results / "runs.csv", "runs")
    assert list(runs.run) == ["dense-xs-s0", "pkm-xs-s0"]
    assert "left out moe8-xs-s0: it was trained with config another" in capsys.readouterr().out
    assert len(schema.read(results / "matched_compute.csv", "matched_compute")) == 7
    assert schema.read(results / "arms.csv", "arms").empty  # their bases are trained, none of their rows


def test_cost_is_of_runs_and_of_stages(results):
    head = "s\th:m:s\tmax_rss\tcpu_time\n"
    (results / "benchmarks").mkdir()
    for stage, seconds in (("latency", "98.5"), ("evals.dense-xs-s0", "7.25"), ("modelled", "NA")):
        (results / "benchmarks" / f"{stage}.tsv").write_text(f"{head}1.0\t0:00:01\t10\t{seconds}\n")
    gather.gather_cost(results, gather.read_grid(results))
    cost = schema.read(results / "cost.csv", "cost")
    assert cost[cost.target == "grid"].core_seconds.sum() == 20.0
    assert set(cost.flops.dropna()) == {3 * 7.0 * 100}
    stages = cost[cost.flops.isna()]
    assert list(zip(stages.target, stages.run, stages.core_seconds, strict=True)) == [
        ("evals", "dense-xs-s0", 7.25),
        ("latency", "", 98.5),
    ]


def test_a_table_changed_by_hand_is_refused_by_the_report(results):
    gather.gather(results, results)
    schema.write(results / "speed.csv", "speed", [])  # no gathered table: free to come and go
    manifest = json.loads((results / "manifest.json").read_text())
    assert {"arms", "health", "matched_compute", "runs", "train"} <= set(manifest)
    assert "speed" not in manifest
    assert manifest["runs"]["rows"] == 2
    Results(results)
    runs = results / "runs.csv"
    written = runs.read_text()
    runs.write_text(written.replace(",5.0,", ",4.0,"))
    assert runs.read_text() != written
    with pytest.raises(UserError, match=r"runs.csv is missing or was changed after it was gathered .*manifest.json"):
        Results(results)
    gather.gather(results, results)
    Results(results)
    (results / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Results(results)


def test_one_chain_alone(results, tmp_path):
    grid = json.loads((results / "grid.json").read_text())
    grid["arms"] = [row("arms", chain="mine", step="a", order=0, run="pkm-xs-s0", kind="sweep", set="{}")]
    (results / "grid.json").write_text(json.dumps(grid))
    assert gather.gather(results, tmp_path / "out", "mine") == 1
    assert list(schema.read(tmp_path / "out/arms.csv", "arms").run) == ["pkm-xs-s0"]


def test_best_setting_of_each_architecture_is_chosen(results):
    grid = json.loads((results / "grid.json").read_text())
    tried = [{"arch": "a", "setting": "{}", "lr": 0.1, "run": run} for run in ("dense-xs-s0", "pkm-xs-s0")]
    rows = gather.tuning_rows(grid | {"tuning": tried}, ["dense-xs-s0", "pkm-xs-s0"], results)
    assert [r["chosen"] for r in rows] == [False, True]


def test_one_more_table_of_the_runs_that_have_it(results):
    for run in ("dense-xs-s0", "moe8-xs-s0"):  # the second is by an older config
        schema.write(results / "runs" / run / "evals.csv", "evals", [row("evals", run=run)])
    assert gather.gather_table(results, "evals", gather.read_grid(results)) == 1
    assert list(schema.read(results / "evals.csv", "evals").run) == ["dense-xs-s0"]


def test_nothing_to_gather_is_one_sentence(results):
    for path in results.glob("runs/*/runs.csv"):
        path.unlink()
    with pytest.raises(UserError, match="no finished run to gather"):
        gather.gather(results, results)
    with pytest.raises(UserError, match="does not exist; run snakemake"):
        gather.gather(results / "nowhere", results)


def test_prediction_is_flops_over_the_measured_rate(results, monkeypatch):
    named = {name: runs.load_run(results / "runs" / name) for name in ("dense-xs-s0", "ultramem-xs-s0")}
    monkeypatch.setattr(plan, "step_seconds", lambda run: 0.5)
    rows = {r["run"]: r for r in plan.predict(named)}
    for name, run in named.items():
        assert rows[name]["predicted_core_s"] == pytest.approx(run.train.steps * 0.5)
        assert rows[name]["calibrated_on"] == name
        assert rows[name]["predicted_disk_mb"] > 16 * run.model.cost().params / 2**20 - 1e-6


def test_models_too_large_for_here_are_planned_by_a_stand_in(results, monkeypatch):
    named = {"dense-xs-s0": runs.load_run(results / "runs" / "dense-xs-s0")}
    monkeypatch.setattr(plan, "step_seconds", lambda run: 0.5)
    monkeypatch.setattr(plan, "LARGEST_CALIBRATION", -1)
    (one,) = plan.predict(named)
    assert one["calibrated_on"].startswith("dense-m")


def test_a_step_is_really_timed(results):
    assert 0 < plan.step_seconds(runs.load_run(results / "runs" / "dense-xs-s0"), steps=1) < 60
