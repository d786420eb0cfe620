"""Each verdict on made-up results, each metric on results whose answer is known, and the ledger against its sources."""

import math
import re
from fnmatch import fnmatch

import numpy as np
import pandas as pd
import pytest
from synthetic import chain_runs, grid_run, row, write

from evals import claims, evidence, harness, schema
from evals.claims import Claim, rule
from evals.evidence import Evidence, NotTested, Results
from workflows import health
from workflows.errors import UserError
from workflows.matched import match_size
from workflows.presets import load_chains, load_preset

LEDGER = claims.load()
GAP = {"metric": "loss_gap", "args": {"of": "a", "against": "b"}}


def claim(**fields):
    basis = {"id": "x", "paper": "P1", "statement": "s", "source": "t", "scale": "any"}
    effect = {"published": -0.1, "tolerance": 0.05, "direction": "below"}
    return Claim(**(basis | GAP | effect | fields))


def seeds(value, low, high, n=3):
    return Evidence(value, low, high, n)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (seeds(-0.09, -0.11, -0.07), "reproduced", "lies below 0 and reaches -0.05"),
        (seeds(-0.03, -0.04, -0.02), "direction only", "falls short of -0.05"),
        (seeds(-0.051, -0.09, -0.01), "reproduced", "reaches"),
        (seeds(0.03, 0.01, 0.05), "not reproduced", "other side of 0"),
        (seeds(-0.01, -0.03, 0.01), "not reproduced", "excludes an effect of -0.05"),
        (seeds(-0.04, -0.1, 0.02), "inconclusive", "includes 0"),
    ],
)
def test_verdicts_on_an_effect(found, verdict, words):
    result = rule(claim(), found, 0.03)
    assert result.verdict == verdict
    assert words in result.reason
    assert "3 seeds" in result.reason
    mirrored = Evidence(-found.value, -found.high, -found.low, 3)
    assert rule(claim(direction="above", published=0.1), mirrored, 0.03).verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (seeds(1.0, 0.9, 1.1), "reproduced"),
        (seeds(1.0, 0.8, 1.2), "inconclusive"),
        (seeds(1.3, 1.2, 1.4), "not reproduced"),
        (seeds(0.5, 0.4, 0.6), "not reproduced"),
    ],
)
def test_verdicts_on_a_band(found, verdict):
    band = claim(direction="within", band=[0.85, 1.15], published=1, tolerance=None)
    assert rule(band, found, 0.0).verdict == verdict


def test_one_seed_is_never_reproduced_and_says_so():
    one = Evidence(-0.2, n=1)
    result = rule(claim(), one, 0.03)
    assert result.verdict == "direction only"
    assert "one seed: no interval over seeds" in result.reason
    assert rule(claim(), Evidence(-0.02, n=1), 0.03).verdict == "inconclusive"
    assert rule(claim(), Evidence(0.01, n=1), 0.03).verdict == "inconclusive"
    assert rule(claim(), Evidence(0.2, n=1), 0.03).verdict == "not reproduced"
    items = Evidence(-0.09, -0.11, -0.07, 400, "items")
    assert rule(claim(), items, 0.03).verdict == "direction only"
    band = claim(direction="within", band=[-1, 1], tolerance=None)
    assert rule(band, Evidence(0.0, n=1), 0.03).verdict == "inconclusive"


def test_a_model_or_another_scale_is_capped():
    modelled = Evidence(-0.09, -0.09, -0.09, None, "modelled")
    result = rule(claim(best="direction only", why="not an A100"), modelled, 0.0)
    assert result.verdict == "direction only"
    assert "modelled, not measured" in result.reason
    assert "not an A100" in result.reason


def test_neutral_need_not_be_zero():
    ratio = claim(direction="above", neutral=2, published=6, tolerance=2)
    assert rule(ratio, seeds(1.09, 1.09, 1.09), 0).verdict == "not reproduced"
    assert rule(ratio, seeds(3.0, 2.5, 3.5), 0).verdict == "direction only"
    assert rule(ratio, seeds(5.0, 4.5, 5.5), 0).verdict == "reproduced"


def ledger_of(*entries):
    return claims.Ledger(entries, LEDGER.noise_floor, LEDGER.scales, {})


def judged(folder, entry):
    (found,) = claims.judge(ledger_of(entry), Results(folder))
    return found


def grid(folder, a, b, **values):
    runs = [grid_run("a", seed=s, val_loss=x, **values) for s, x in enumerate(a)]
    return write(folder, runs=runs + [grid_run("b", seed=s, val_loss=x, **values) for s, x in enumerate(b)])


def test_a_verdict_from_csv_to_csv(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    claims.main(["--results", str(tmp_path), "--out", str(tmp_path / "claims.csv")])
    table = schema.read(tmp_path / "claims.csv", "claims").set_index("id")
    assert set(table.index) == {entry.id for entry in LEDGER.claims}
    assert (table.reason != "").all()
    assert set(table.verdict) <= set(claims.VERDICTS)
    assert table.loc["7a", "verdict"] == "reproduced"
    assert table.loc["B1", "verdict"] == "not reproduced"
    assert table.loc["5c", "verdict"] == "not tested"
    assert math.isnan(table.loc["5c", "value"])
    assert table.loc["12a", "reason"] == "no finished ultramem_v2 run in the grid"


def test_pairs_come_from_the_grid_by_seed(tmp_path):
    found = judged(grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12]), claim())
    assert found["verdict"] == "reproduced"
    assert found["n"] == 3
    assert found["value"] == pytest.approx(-0.0966667, abs=1e-6)
    assert found["ci_high"] < -0.08
    assert found["runs"] == "a-s-s0 a-s-s1 a-s-s2 b-s-s0 b-s-s1 b-s-s2"
    assert found["scale"].startswith("cpu: 0.1 M activated parameters, 1 M tokens, 3 seed(s), CPU: made up")


def test_a_small_scale_is_not_ruled_on(tmp_path):
    found = judged(grid(tmp_path, [3.9], [4.0]), claim(scale="p1"))
    assert found["verdict"] == "not tested"
    assert "needs 1.5e+08 activated parameters" in found["reason"]
    assert "value" not in found


def test_unfinished_runs_do_not_count(tmp_path):
    runs = [grid_run("a", val_loss=3.0, status="loss became nan"), grid_run("b", val_loss=4.0)]
    assert judged(write(tmp_path, runs=runs), claim())["reason"] == "no finished a run in the grid"


def test_repeated_seeds_raise_the_noise_floor(tmp_path):
    quiet = grid(tmp_path / "quiet", [4.0, 4.001], [4.0, 4.001])
    loud = grid(tmp_path / "loud", [4.0, 4.2], [4.0, 4.2])
    assert claims.measured_noise(Results(quiet)) == pytest.approx(1.96 * 0.001, rel=1e-6)
    assert claims.measured_noise(Results(loud)) == pytest.approx(1.96 * 0.2, rel=1e-6)
    runs, arms = chain_runs("c", {"base": [4.0], "step": [3.9]})
    entry = claim(metric="contrast", args={"chain": "c", "weights": {"step": 1, "base": -1}})
    for folder, verdict in ((quiet, "direction only"), (loud, "inconclusive")):
        both = schema.read(folder / "runs.csv", "runs").astype(object).to_dict("records") + runs
        assert judged(write(folder, runs=both, arms=arms), entry)["verdict"] == verdict


def test_contrast_pairs_arms_by_seed_and_knows_aliases(tmp_path):
    runs, arms = chain_runs("c", {"base": [4.0, 4.3, 4.2], "+a": [3.9, 4.2, 4.1], "+b": [3.7, 4.0, 3.9]})
    shuffled = [*runs[:6], *reversed(runs[6:])]
    results = Results(write(tmp_path, runs=shuffled, arms=arms), {"c": {"last": "+b"}})
    found = evidence.contrast(results, "c", {"last": 1, "+a": -1})
    assert (found.value, found.low, found.n) == (pytest.approx(-0.2), pytest.approx(-0.2), 3)
    total = evidence.contrast(results, "c", {"+b": 1, "+a": -2, "base": 1})
    assert total.value == pytest.approx(-0.1)
    with pytest.raises(NotTested, match="arm '\\+c' of c was not run: snakemake ablation_c"):
        evidence.contrast(results, "c", {"+c": 1, "+a": -1})


def test_a_missing_table_is_not_tested_but_a_damaged_one_stops(tmp_path):
    grid(tmp_path, [3.9], [4.0])
    entry = claim(metric="contrast", args={"chain": "c", "weights": {"x": 1}})
    assert judged(tmp_path, entry)["reason"] == "arms.csv was not made here"
    (tmp_path / "arms.csv").write_text("chain,kin")
    with pytest.raises(UserError, match=r"arms.csv is cut short"):
        judged(tmp_path, entry)
    write(tmp_path, runs=[])
    with pytest.raises(UserError, match="holds no run"):
        Results(tmp_path)


def test_gap_change_is_the_trend_of_the_gap(tmp_path):
    runs = [grid_run("a", "s", 0, val_loss=4.1), grid_run("b", "s", 0, val_loss=4.0)]
    runs += [grid_run("a", "m", 0, val_loss=3.4), grid_run("b", "m", 0, val_loss=3.5)]
    assert evidence.gap_change(Results(write(tmp_path, runs=runs)), "a", "b").value == pytest.approx(-0.2)
    with pytest.raises(NotTested, match="two sizes"):
        evidence.gap_change(Results(write(tmp_path, runs=runs[:2])), "a", "b")


def test_a_law_needs_four_points_and_lines_are_kept_apart(tmp_path):
    sizes = (10**5, 10**6, 10**7, 10**8)
    runs, arms = [], []
    for offset, line in ((0.0, "K=1"), (0.5, "K=2")):
        for i, sparse in enumerate(sizes):
            run = f"sparsity.{line}.{i}"
            loss = 5 + offset - 0.1 * i + 0.001 * (i % 2)
            runs.append(grid_run("ultramem", run=run, sparse_params=sparse, val_loss=loss))
            arms.append(row("arms", chain="sparsity", kind="sweep", label=f"{line}, {sparse}", run=run, set="{}"))
    slope = evidence.law_slope(Results(write(tmp_path, runs=runs, arms=arms)), "sparsity", "ultramem")
    assert slope.value == pytest.approx(0.1, abs=1e-3)
    assert slope.n == 4
    assert slope.low > 0.09
    short = Results(write(tmp_path, runs=[r for r in runs if r["sparse_params"] < 10**8]))
    with pytest.raises(NotTested, match="not a law: 3 points"):
        evidence.law_slope(short, "sparsity", "ultramem")


def test_best_arm_spans_what_is_not_clearly_worse(tmp_path):
    runs, arms = chain_runs("c", {"a": [4.1, 4.2, 4.3], "b": [4.0, 4.1, 4.2], "d": [4.0, 4.11, 4.19]})
    shares = {"c.0": 0.12, "c.1": 0.17, "c.2": 0.23}
    runs = [run | {"compute_share_memory": shares[run["run"][:3]]} for run in runs]
    results = Results(write(tmp_path, runs=runs, arms=arms))
    found = evidence.best_arm(results, "c", ["a", "b", "d"], "compute_share_memory", 100)
    assert (found.low, found.high, found.n) == (pytest.approx(17), pytest.approx(23), 3)
    assert "tried 12, 17, 23" in found.note


def test_scores_take_their_interval_from_items_if_there_is_one_seed(tmp_path):
    runs = [grid_run("a"), grid_run("b")]
    both = [("a-s-s0", 0.6), ("b-s-s0", 0.5)]
    names = (("t", "acc"), ("u", "len_norm"))
    rows = [row("evals", run=r, task=t, metric=m, n=400, value=v, stderr=0.025) for r, v in both for t, m in names]
    rows += [row("evals", run=r, task=t, metric="bits_per_byte", n=400, value=9.0) for r, _ in both for t, _ in names]
    rows += [row("evals", run=r, task="t/4", metric="acc", n=9, value=0.0, stderr=0.5) for r, _ in both]
    found = evidence.score_gap(Results(write(tmp_path, runs=runs, evals=rows)), "a", "b", ["t", "u*"])
    assert (found.value, found.kind, found.n) == (pytest.approx(10), "items", 800)
    assert found.high - found.value == pytest.approx(1.96 * math.sqrt(2) * 2.5 / math.sqrt(2), rel=1e-6)


def timing(arch, batch, p50, sparse_ratio=12.0, **values):
    times = {"p20_ms": 0.9 * p50, "p50_ms": p50, "p80_ms": 1.1 * p50, "n_iters": 20, "bytes_declared": 1e9}
    how = {"phase": "decode", "part": "model", "kind": "measured", "device": "CPU: made up", "kv": "mha", "size": "s"}
    same = {"arch": arch, "batch": batch, "sparse_ratio": sparse_ratio, "dtype": "fp32", "threads": 1, "run": ""}
    return row("latency", **(times | how | same | {"predicted_ms": 0.8 * p50} | values))


def test_latency_is_compared_on_one_device_at_one_batch(tmp_path):
    rows = [timing("moe2", b, p) for b, p in ((1, 1.0), (16, 5.0), (1024, 9.0))]
    rows += [timing("ultramem", b, p) for b, p in ((1, 1.0), (16, 1.0), (1024, 9.0))]
    rows = [timing("ultramem", 16, 0.1, variant="overlap"), timing("ultramem", 16, 0.1, variant="folded"), *rows]
    modelled = [timing("moe2", 16, 99.0, kind="modelled", device="CUDA: A100")]
    schema.write(tmp_path / "latency_modelled.csv", "latency", modelled)
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    assert len(results.table("latency")) == len(rows) + 1
    found = evidence.latency_ratio(results, "moe2", "ultramem")
    assert (found.value, found.low) == (pytest.approx(5), pytest.approx(5 * 0.9 / 1.1))
    assert "at 16" in found.note
    assert found.scale == "size s, whole model, fp32, 1 thread(s), CPU: made up"
    assert evidence.latency_ratio(results, "moe2", "ultramem", [1, 1]).value == pytest.approx(1)
    with pytest.raises(NotTested, match="no measured decode step of dense"):
        evidence.latency_ratio(results, "moe2", "dense")
    write(tmp_path, latency=[entry | {"bytes_declared": 2e6} for entry in rows])
    with pytest.raises(NotTested, match="read at most 2 MB a step, which a cache holds"):
        evidence.latency_ratio(Results(tmp_path), "moe2", "ultramem")


def test_a_slow_mixture_of_experts_is_no_yardstick(tmp_path):
    steps = {1: (3.0, 2.9), 16: (50.0, 10.0), 64: (8.0, None)}
    rows = [timing("moe2", b, p, predicted_ms=predicted) for b, (p, predicted) in steps.items()]
    rows += [timing(arch, b, 1.0, predicted_ms=0.1) for arch in ("ultramem", "dense") for b in steps]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    for against in ("ultramem", "dense"):
        found = evidence.latency_ratio(results, "moe2", against)
        assert found.value == pytest.approx(3)
        assert "batches 16, 64 withheld, where moe2 takes over 1.3 times its own roofline" in found.note
    assert evidence.latency_ratio(results, "ultramem", "dense").value == pytest.approx(1)
    with pytest.raises(NotTested, match="not measured at a shared batch; batches 16, 64 withheld"):
        evidence.latency_ratio(results, "moe2", "ultramem", [16, 64])
    write(tmp_path, latency=[r for r in rows if r["batch"] > 1])
    with pytest.raises(NotTested, match=r"withheld: moe2 takes over 1\.3 times"):
        evidence.latency_ratio(Results(tmp_path), "moe2", "ultramem")


def test_latency_growth_with_the_sparse_ratio(tmp_path):
    rows = [timing(arch, 256, p, r) for arch, p, r in (("moe2", 2, 4), ("moe2", 8, 64), ("ultramem", 1, 4))]
    rows += [timing("ultramem", 256, 1.1, 64)]
    rows = [entry | {"part": "ffn", "kv": "none"} for entry in rows] + [timing("moe2", 256, 3.0)]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    assert evidence.latency_growth(results, "moe2").value == pytest.approx(4)
    assert evidence.latency_growth(results, "moe2", against="ultramem").value == pytest.approx(4 / 1.1)


def test_bytes_prefer_counts_to_declarations(tmp_path):
    runs = [grid_run("moe8"), grid_run("ultramem_v2")]
    rows = [
        row("access", run=f"{arch}-s-s0", arch=arch, part="ffn", batch=64, routing=routing, kind=kind, bytes=size)
        for arch, declared, counted in (("moe8", 900.0, 600.0), ("ultramem_v2", 100.0, 200.0))
        for routing, kind, size in (("uniform", "declared-expected", declared), ("trained", "counted", counted))
    ]
    rows += [entry | {"part": "model", "bytes": 5000.0} for entry in rows] + [rows[1] | {"layer": 0, "bytes": 1.0}]
    folder = write(tmp_path, runs=runs, access=rows)
    assert evidence.bytes_ratio(Results(folder), "moe8", "ultramem_v2").value == 3
    declared = write(tmp_path, runs=runs, access=[r for r in rows if r["kind"] != "counted"])
    assert evidence.bytes_ratio(Results(declared), "moe8", "ultramem_v2").value == 9


def test_health_and_its_growth(tmp_path):
    runs, arms = chain_runs("c", {"x": [4.0, 4.0]})
    runs += [grid_run("u", seed=s) for s in (0, 1)]
    values = {0: (1.0, 2.0), 1: (4.0, 3.0)}
    table = [
        row("health", run=run["run"], step=step, layer=layer, metric="output_std", value=value)
        for run in runs
        for step, pair in values.items()
        for layer, value in enumerate(pair)
    ]
    results = Results(write(tmp_path, runs=runs, arms=arms, health=table))
    assert evidence.health(results, "u", "output_std", "max").value == 4
    assert evidence.health(results, "u", "output_std", minus=1.0).value == 2.5
    assert evidence.health_growth(results, "c", "x", "output_std").value == 4
    with pytest.raises(NotTested, match="no recall_grid"):
        evidence.health(results, "u", "recall_grid")


def test_loss_jump_is_the_largest_rise(tmp_path):
    runs, arms = chain_runs("c", {"base": [4.0], "norm": [4.0]})
    curves = {"c.0-s-s0": [9, 8, 5, 7, 4, 3], "c.1-s-s0": [9, 8, 5, 5.5, 4, 3]}
    rows = [
        row("train", run=run, step=10 * i, split="train", loss=float(x))
        for run, curve in curves.items()
        for i, x in enumerate(curve)
    ]
    results = Results(write(tmp_path, runs=runs, arms=arms, train=rows))
    assert evidence.loss_jump(results, "c", "norm", "base").value == pytest.approx(-1.5)


def test_the_ledger_holds_every_claim_of_the_spec():
    numbers = {re.match(r"B?\d+", entry.id).group() for entry in LEDGER.claims}
    assert numbers == {str(i) for i in range(1, 27)} | {f"B{i}" for i in range(1, 14)}
    assert all(entry.paper == ("blog" if entry.id[0] == "B" else entry.paper) for entry in LEDGER.claims)
    assert {entry.paper for entry in LEDGER.claims} == {"P1", "P2", "blog"}


def arms_of(args):
    return [*args.get("weights", ()), *args.get("arms", ()), *(args[key] for key in ("arm", "of", "against") if key in args)]


def test_every_arm_that_a_claim_names_is_in_its_chain():
    chains = load_chains()
    for entry in LEDGER.claims:
        if "chain" not in entry.args:
            continue
        chain = chains[entry.args["chain"]]
        steps = [chain.base, *chain.steps]
        if entry.metric.startswith("law"):  # names architectures
            known = {step.arch or chain.base.arch for step in steps}
            names = [entry.args[key] for key in ("arch", "of", "against") if key in entry.args]
        else:
            known = {name for step in steps for name in (step.id, step.label)}
            names = [LEDGER.aliases.get(entry.args["chain"], {}).get(name, name) for name in arms_of(entry.args)]
        assert names, entry.id
        assert set(names) <= known, entry.id


def test_every_health_metric_that_a_claim_names_is_written():
    preset = load_preset("smoke")
    models = match_size(preset, "xs").models
    for entry in LEDGER.claims:
        if entry.metric in ("health", "health_growth"):
            model = models[entry.args.get("arch", "ultramem")].build()
            model.refresh()
            rows = health.measure(model, np.zeros(256, dtype=np.uint16), 256, "cpu")
            assert entry.args["name"] in {found["metric"] for found in rows}, entry.id


def test_every_architecture_and_task_that_a_claim_names_exists():
    archs = {*load_preset("cpu").archs, "memory_plus"}  # the last is in no grid, which its claim then says
    tasks = [name for suite in harness.SUITES.values() for name in suite]
    for entry in LEDGER.claims:
        if "chain" not in entry.args and entry.metric != "published_params_ratio":
            assert {entry.args[key] for key in ("arch", "of", "against") if key in entry.args} <= archs, entry.id
        for task in entry.args.get("tasks", ()):
            assert any(fnmatch(name, task) for name in tasks), (entry.id, task)


def test_published_changes_of_the_ablation_are_the_reference_table():
    table = evidence.reference("ultramem_ablation")
    losses = table[(table.metric == "val_loss")].set_index("row").value.astype(float)
    checked = 0
    for entry in LEDGER.claims:
        if entry.metric == "contrast" and entry.args["chain"] == "ultramem":
            change = sum(weight * losses[label] for label, weight in entry.args["weights"].items())
            assert change == pytest.approx(entry.published, abs=1e-9), entry.id
            checked += 1
    assert checked == 10


def test_published_changes_of_the_sweeps_are_the_reference_table():
    table = evidence.reference("ultramem_sweeps")
    changes = table[table.metric == "val_loss_change"].set_index("row").value.astype(float)
    for entry in LEDGER.claims:
        if entry.metric == "contrast" and entry.args["chain"] == "ultramem_sweeps":
            change = sum(weight * changes.get(label, 0.0) for label, weight in entry.args["weights"].items())
            assert change == pytest.approx(entry.published, abs=1e-9), entry.id


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "no_such"}, "names metric 'no_such'"),
        ({"args": {"off": "a", "against": "b"}}, "does not fit its metric"),
        ({"direction": "up"}, "has direction 'up'"),
        ({"direction": "within"}, "needs a band"),
        ({"metric": None}, "neither a metric nor a reason"),
    ],
)
def test_a_wrong_claim_is_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        claim(**fields)


def test_a_misspelt_field_or_a_repeated_id_is_refused(tmp_path):
    text = claims.CLAIMS.read_text()
    (tmp_path / "typo.yaml").write_text(text.replace("  tolerance: 0.042", "  tolerence: 0.042"))
    with pytest.raises(UserError, match="claim 1 has tolerence; allowed"):
        claims.load(tmp_path / "typo.yaml")
    (tmp_path / "twice.yaml").write_text(text.replace('id: "2a"', 'id: "1"'))
    with pytest.raises(UserError, match="claim 1 more than once"):
        claims.load(tmp_path / "twice.yaml")


# The printed cells do not explain these two averages; see evals/reference/README.md.
NOT_THE_MEAN = {("MoE-151M-2in32", "Avg6"): -0.40, ("Dense-1.6B", "Avg10"): -0.41}


def scores(name, index):
    table = evidence.reference(name)
    return table.assign(value=table.value.astype(float)).pivot(index=index, columns="metric", values="value")


def test_published_averages_are_the_means_of_their_cells():
    main = scores("ultramem_main", "row").dropna(subset=["Avg10"])
    six = ["GPQA", "TriviaQA", "BBH-cot", "HellaSwag", "WinoGrande", "DROP"]
    for average, tasks in (("Avg6", six), ("Avg10", [*six, "ARC-C", "MMLU", "BoolQ", "AGIEval"])):
        for model, gap in (main[tasks].mean(axis=1) - main[average]).items():
            assert gap == pytest.approx(NOT_THE_MEAN.get((model, average), 0.0), abs=0.01), (model, average)
    assert len(main) == 10
    for name, tasks in (("ultramem_v2_long_context", 7), ("ultramem_v2_open", 9)):
        table = scores(name, "row").drop(columns=["train_loss", "eval_loss"], errors="ignore")
        means = table.drop(columns="All")
        assert means.shape[1] == tasks
        assert not means.isna().any(axis=None)
        assert (means.mean(axis=1) - table.All).abs().max() <= 0.1 + 1e-9


def test_the_ablation_table_adds_up():
    table = evidence.reference("ultramem_ablation")
    table = table.assign(value=table.value.astype(float))
    rows = [name for name in table.row.unique() if name != "total"]
    wide = table.pivot(index="row", columns="metric", values="value")
    for loss, total in (("train_loss", -0.111), ("val_loss", -0.092)):
        steps = wide.loc[rows, loss].diff()
        assert (steps - wide.loc[rows, f"{loss}_change"]).abs().max() < 1e-9
        assert steps.sum() == pytest.approx(total)
        assert wide.loc["total", f"{loss}_change"] == total


def test_every_reference_number_names_its_source():
    names = sorted(path.stem for path in evidence.REFERENCE.glob("*.csv"))
    assert len(names) == 9
    for name in names:
        table = evidence.reference(name)
        assert list(table.columns) == ["row", "condition", "metric", "value", "unit", "source"]
        assert not (table[["row", "metric", "value", "unit", "source"]] == "").any(axis=None)
        assert not table.duplicated(["row", "condition", "metric"]).any()
        numeric = table[table.unit != "label"].value
        assert pd.to_numeric(numeric).notna().all()
        assert f"`{name}.csv`" in (evidence.REFERENCE / "README.md").read_text()
