"""Predictions add up and say what they were calibrated on; gathering takes only runs of the present config and code."""

import dataclasses
import json
import shutil

import pytest
from synthetic import row

from evals.decode.roofline import Device
from evals.records import runs, schema
from evals.records.errors import UserError
from reports.page import Results
from workflows import gather, plan, resolve
from workflows.grid import grid_key, load_grid, plan_target
from workflows.parallel.settings import Parallel


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resolved")
    return folder, resolve.write_grid("smoke", {}, folder)


@pytest.fixture
def results(resolved, tmp_path):
    """A resolved smoke preset of which four runs are finished, one of them by an older config, one by older code."""
    folder, grid = tmp_path / "smoke", resolved[1]
    shutil.copytree(resolved[0] / "smoke", folder)
    for i, run in enumerate(["dense-xs-s0", "moe8-xs-s0", "pkm-xs-s0", "ultramem-xs-s0"]):
        entry = grid["runs"][run]
        made_by = {
            "config_sha": "another" if run == "moe8-xs-s0" else entry["sha"],
            "source_sha": "older" if run == "ultramem-xs-s0" else entry["source"],
        }
        done = row("runs", run=run, arch=entry["arch"], **made_by, val_loss=5.0 - i, core_seconds=10.0, tokens=100)
        schema.write(folder / "runs" / run / "runs.csv", "runs", [done | {"flops_per_token": 7.0}])
        schema.write(folder / "runs" / run / "train.csv", "train", [row("train", run=run)])
        schema.write(folder / "runs" / run / "health.csv", "health", [])
    return folder


def test_only_runs_of_this_config_and_this_code_are_gathered(results, capsys):
    assert gather.gather(results, results) == 2
    runs = schema.read(results / "runs.csv", "runs")
    assert list(runs.run) == ["dense-xs-s0", "pkm-xs-s0"]
    told = capsys.readouterr().out
    assert "left out moe8-xs-s0: it was trained with config another" in told
    assert "left out ultramem-xs-s0: it was trained by source older" in told
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
    grid["arms"] = [row("arms", chain="mine", step="a", order=0, run="pkm-xs-s0", kind="sweep", set="{}", lr=0.1)]
    (results / "grid.json").write_text(json.dumps(grid))
    assert gather.gather(results, tmp_path / "out", "mine") == 1
    assert list(schema.read(tmp_path / "out/arms.csv", "arms").run) == ["pkm-xs-s0"]


def scored(results, losses: dict[str, float]) -> None:
    """Runs of these validation losses."""
    for run, loss in losses.items():
        schema.write(results / "runs" / run / "runs.csv", "runs", [row("runs", run=run, val_loss=loss)])


@pytest.mark.parametrize(
    ("decays", "edges"), [({}, ["a4"]), ({"a3": 0.15}, ["a2", "a4"])], ids=["rate", "another knob of an inner rate"]
)
def test_best_setting_of_each_architecture_is_chosen_and_an_edge_is_said(results, decays, edges):
    """a6 is better by less than a seed's noise, with a higher rate."""
    grid = json.loads((results / "grid.json").read_text())
    losses = {"a1": 3.0, "a2": 2.0, "a3": 4.0, "a4": 1.0, "a5": 5.0, "a6": 1.99}
    scored(results, losses)
    rates = {"a1": 0.1, "a2": 0.2, "a3": 0.3, "a4": 0.1, "a5": 0.2, "a6": 0.25}
    decay = {"a1": 0.1, "a2": 0.2, "a3": 0.3, "a4": 0.1, "a5": 0.1, "a6": 0.1} | decays
    tried = [
        {"arch": "a", "size": "wide" if run in ("a4", "a5") else "base", "setting": "{}", "lr": lr, "run": run}
        | {"knobs": {"train.lr": lr, "train.weight_decay": decay[run]}}
        for run, lr in rates.items()
    ]
    rows = gather.tuning_rows(grid | {"tuning": tried}, list(losses), results)
    assert [r["run"] for r in rows if r["chosen"]] == ["a2"]  # the wider size chooses nothing
    assert [r["run"] for r in rows if r["edge"]] == edges


def test_every_row_of_a_tuned_chain_has_its_best_rate_by_mean_over_seeds(results):
    losses = {"lo-s0": 2.0, "lo-s1": 4.0, "hi-s0": 2.5, "hi-s1": 2.7}
    scored(results, losses)
    arms = [{"chain": "c", "step": "a", "run": run, "lr": 0.1 if run.startswith("lo") else 0.2} for run in losses]
    rows = gather.arm_rows(arms, results)
    assert [r["run"] for r in rows] == ["hi-s0", "hi-s1"]
    assert {r["tried"] for r in rows} == {'{"0.1": 3.0, "0.2": 2.6}'}


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
    monkeypatch.setattr(plan, "step_seconds", lambda run, within: 0.5)
    rows = {r["run"]: r for r in plan.predict(named)}
    for name, run in named.items():
        assert rows[name]["predicted_core_s"] == pytest.approx(run.train.steps * 0.5)
        assert rows[name]["calibrated_on"] == name
        assert rows[name]["predicted_disk_mb"] > 16 * run.model.cost().params / 2**20 - 1e-6


def test_models_too_large_for_here_are_planned_by_a_stand_in_of_their_kind(results, monkeypatch):
    """Where only the dense ones are small enough, the sparse ones still have a stand-in."""
    named = {name: runs.load_run(results / "runs" / name) for name in ("dense-xs-s0", "pkm-xs-s0")}
    monkeypatch.setattr(plan, "step_seconds", lambda run, within: 0.5)
    monkeypatch.setattr(plan, "LARGEST_CALIBRATION", named["dense-xs-s0"].model.cost().params)
    small = {"small": dataclasses.replace(named["pkm-xs-s0"], run="small")}
    monkeypatch.setattr(plan, "resolve", lambda preset, chains, folder: ({}, small))
    assert [row["calibrated_on"] for row in plan.predict(named)] == ["dense-xs-s0", "small"]


def large(run, d_model=2048):
    model = dataclasses.replace(run.model, d_model=d_model, n_heads=16)
    return dataclasses.replace(run, run="large", model=model)


def test_nothing_far_beyond_what_was_timed_is_predicted_from_it(results, monkeypatch):
    run = runs.load_run(results / "runs" / "dense-xs-s0")
    monkeypatch.setattr(plan, "step_seconds", lambda run, within: 0.5)
    monkeypatch.setattr(plan, "LARGEST_CALIBRATION", run.model.cost().params)
    with pytest.raises(UserError, match=r"large does [\d,]+ times the work .* name the GPUs .* gpu=H100 gpus=64 \(known: A100"):
        plan.predict({"small": run, "large": large(run)})


def test_a_named_gpu_is_predicted_by_its_peak_and_its_memory(results):
    run = runs.load_run(results / "runs" / "dense-xs-s0")
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, workers=4))
    gpu = Device(name="X", bandwidth=1.0, flops=1e12, memory=1e9, training_utilisation=0.25, training_source="a paper")
    whole, parts = Parallel(), Parallel(engine="sharded", recompute=True)
    found = plan.predict_for({"small": run, "large": large(run)}, gpu, {"small": whole, "large": whole})
    small, wide = found
    assert small["predicted_core_s"] == pytest.approx(plan.full_flops(run) * plan.tokens_of(run) / 0.25e12)
    assert small["predicted_wall_s"] == small["predicted_core_s"] / 4
    assert (small["fits"], wide["fits"]) == (True, False)
    assert wide["predicted_memory_mb"] > wide["device_memory_mb"] == 1e9 / 2**20
    assert (small["calibrated_on"], small["device"], small["utilisation"]) == ("a paper", "X", 0.25)
    schema.write(results / "plan.csv", "plan", found)
    (spread,) = plan.predict_for({"large": large(run)}, gpu, {"large": parts})
    assert spread["predicted_memory_mb"] < wide["predicted_memory_mb"] / 3
    with pytest.raises(UserError, match=r"dense-xs-s0 trains in fp32, and gpus\.yaml has peaks of bf16 only"):
        plan.predict_for(
            {"a": dataclasses.replace(run, train=dataclasses.replace(run.train, precision="fp32"))}, gpu, {"a": whole}
        )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"gpu": "B999"}, "--config gpu: 'B999' is not one of A100, H100, H200"),
        ({"gpu": {}}, "is not one of"),
        ({"gpus": 8}, "gpus needs a name as well, one of A100"),
        ({"gpu": "H100", "gpus": 0}, "a whole number from 1 to 100000, found '0'"),
        ({"gpu": "H100", "gpus": True}, "found 'True'"),
        ({"gpu": "H100", "gpus": 1e30}, "found '1e[+]30'"),
    ],
)
def test_a_target_that_does_not_exist_is_one_sentence(config, words):
    with pytest.raises(UserError, match=words):
        plan_target(config)
    assert plan_target({"preset": "cpu"}) == {}
    assert plan_target({"gpu": "H100"}) == {"gpu": "H100", "gpus": 1}


def test_a_target_does_not_resolve_the_grid_again(results):
    text = (results / "grid.json").read_text()
    (results / "grid.json").write_text(json.dumps(json.loads(text) | {"key": grid_key({})}))
    assert load_grid({"preset": "smoke", "gpu": "H100", "gpus": 2}, results.parent)["key"] == grid_key({})
    with pytest.raises(UserError, match="'B999' is not one of"):
        load_grid({"preset": "smoke", "gpu": "B999"}, results.parent)


def test_a_step_is_really_timed(results):
    assert 0 < plan.step_seconds(runs.load_run(results / "runs" / "dense-xs-s0"), steps=1) < 60
