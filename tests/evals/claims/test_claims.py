"""Each verdict on made-up results, each metric on results whose answer is known, and the ledger against its sources."""

import math
import re
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import pandas as pd
import pytest
from synthetic import chain_runs, grid_run, row, write

from evals.claims import ledger as claims
from evals.claims.claim import Claim
from evals.claims.evidence import Evidence, NotTested, Results, counted, laws, losses, scores, times
from evals.claims.ruling import rule
from evals.records import schema
from evals.records.errors import UserError
from evals.scores import harness
from workflows import health
from workflows.matched import match_size
from workflows.presets import load_chains, load_preset

LEDGER = claims.load()
GAP = {"metric": "loss_gap", "args": {"of": "a", "against": "b"}}


def claim(**fields):
    basis = {"id": "x", "paper": "P1", "statement": "s", "source": "t", "scale": "any"}
    effect = {"published": -0.1, "tolerance": 0.05, "direction": "below"}
    return Claim(**(basis | GAP | effect | fields))


def seeds(value, low, high, n=3, spread=math.nan):
    return Evidence(value, low, high, n, seeds=n, spread=spread, freedom=4)


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
    result = rule(claim(), found)
    assert result.verdict == verdict
    assert words in result.reason
    assert "3 seeds" in result.reason
    mirrored = seeds(-found.value, -found.high, -found.low)
    assert rule(claim(direction="above", published=0.1), mirrored).verdict == verdict


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
    assert rule(band, found).verdict == verdict


BAND = {"direction": "within", "band": [-0.003, 0.003], "tolerance": None}


@pytest.mark.parametrize("value", [-0.5, -0.2, 0.0, 0.2, 0.5])
@pytest.mark.parametrize("fields", [{}, {"direction": "above", "published": 0.1}, BAND, {"ours": True}])
@pytest.mark.parametrize("kind", ["seeds", "items", "points"])
def test_one_seed_rules_neither_way(value, fields, kind):
    bare = rule(claim(**fields), Evidence(value, n=1, seeds=1, kind=kind))
    assert (bare.verdict, bare.n_needed) == ("underpowered", None)
    assert "one seed rules neither way; no seed was repeated for it, so there is no interval" in bare.reason
    borrowed = Evidence(value, value - 0.01, value + 0.01, 1, kind, seeds=1, spread=0.02, freedom=8)
    known = rule(claim(**fields), borrowed)
    assert known.verdict == "underpowered"
    assert f"[{value - 0.01:.4g}, {value + 0.01:.4g}]" in known.reason
    assert f"{known.n_needed} seeds would show {claim(**fields).effect:.2g}" in known.reason


def test_too_few_seeds_are_told_from_seeds_that_decided_nothing():
    few, enough = (rule(claim(), seeds(-0.04, -0.1, 0.02, spread=spread)) for spread in (0.2, 0.02))
    assert (few.verdict, enough.verdict) == ("underpowered", "inconclusive")
    assert few.n_needed == 34  # (2.13 + 0.85 of t, 33 degrees of freedom) x 0.2 / 0.1, squared
    assert enough.n_needed <= 3
    assert "34 seeds would show 0.1 at this noise" in few.reason
    assert rule(claim(), seeds(0.03, 0.01, 0.05, spread=0.2)).verdict == "not reproduced"
    tiny = rule(claim(**BAND), seeds(0.001, -0.02, 0.022, spread=0.02))
    assert tiny.verdict == "underpowered"
    assert tiny.n_needed == 469  # two edges of 0.003, each missed in 10 % of cases
    assert claim(direction="within", band=[-0.05, 0.005], tolerance=None).effect == pytest.approx(0.005)
    assert math.isnan(claim(published=None, tolerance=None).effect)


def test_a_model_or_another_scale_is_capped():
    modelled = Evidence(-0.09, -0.09, -0.09, None, "modelled")
    result = rule(claim(best="direction only", why="not an A100"), modelled)
    assert result.verdict == "direction only"
    assert "modelled, not measured" in result.reason
    assert "not an A100" in result.reason


def test_a_model_refutes_no_measurement_and_our_threshold_no_paper():
    assert rule(claim(), Evidence(0.3, 0.3, 0.3, None, "modelled")).verdict == "modelled against"
    assert rule(claim(), Evidence(0.3, 0.3, 0.3, None, "counted")).verdict == "not reproduced"
    ours = rule(claim(ours=True), seeds(0.3, 0.2, 0.4))
    assert ours.verdict == "inconclusive"
    assert "the threshold is ours" in ours.reason
    assert rule(claim(ours=True), seeds(-0.3, -0.4, -0.2)).verdict == "reproduced"


def test_neutral_need_not_be_zero():
    ratio = claim(direction="above", neutral=2, published=6, tolerance=2)
    assert rule(ratio, seeds(1.09, 1.09, 1.09)).verdict == "not reproduced"
    assert rule(ratio, seeds(3.0, 2.5, 3.5)).verdict == "direction only"
    assert rule(ratio, seeds(5.0, 4.5, 5.5)).verdict == "reproduced"


@pytest.mark.parametrize(
    ("measured", "perfect", "verdict", "words"),
    [
        (9.0, 5.0, "reproduced", "holds even against a perfect MoE: a perfect MoE on this machine gives 5 [4.5, 5.5]"),
        (9.0, 2.0, "direction only", "holds even against a perfect MoE"),
        (9.0, 0.8, "direction only", "holds only against our MoE"),
        (9.0, 1.05, "direction only", "holds only against our MoE"),
        (9.0, math.nan, "direction only", "nothing says how fast a perfect MoE would be here"),
        (0.7, 0.5, "not reproduced", "a perfect MoE on this machine gives 0.5"),
        (2.0, 0.9, "direction only", "holds only against our MoE"),
        (1.0, 0.9, "not reproduced", "includes 1 and excludes an effect of 4; 9 timed steps"),
    ],
)
def test_a_latency_claim_holds_against_a_perfect_mixture_of_experts_or_says_against_whom(measured, perfect, verdict, words):
    def timings(x):
        return Evidence(x, 0.9 * x, 1.1 * x, 9, "timings")

    found = replace(timings(measured), conservative=timings(perfect))
    result = rule(claim(direction="above", neutral=1, published=6, tolerance=2), found)
    assert result.verdict == verdict
    assert words in result.reason


def ledger_of(*entries):
    return claims.Ledger(entries, LEDGER.confounds, LEDGER.scales, {})


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
    assert table.loc["B1", "verdict"] == "modelled against"
    assert set(table.loc[["B4", "B10"], "verdict"]) == {"ambiguous"}
    assert "read as what one token touches, not reproduced: 2.625e-05" in table.loc["B4", "reason"]
    assert "read as what a step at a batch of 191 touches, reproduced: 0.005" in table.loc["B4", "reason"]
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


def test_rulings_read_the_test_loss(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    runs = schema.read(tmp_path / "runs.csv", "runs").assign(val_loss=4.0)
    schema.write(tmp_path / "runs.csv", "runs", runs)
    assert judged(tmp_path, claim())["value"] == pytest.approx(-0.0966667, abs=1e-6)


def test_a_chain_of_one_seed_borrows_the_noise_but_not_the_verdict(tmp_path):
    quiet = grid(tmp_path / "quiet", [4.0, 4.001, 3.999], [4.0, 4.001, 3.999])
    loud = grid(tmp_path / "loud", [4.0, 4.2, 3.8], [4.0, 3.8, 4.2])
    single = grid(tmp_path / "single", [4.0], [4.0])
    runs, arms = chain_runs("c", {"base": [4.0], "step": [3.9]})
    entry = claim(metric="contrast", args={"chain": "c", "weights": {"step": 1, "base": -1}})
    found = {}
    for folder in (quiet, loud, single):
        both = schema.read(folder / "runs.csv", "runs").astype(object).to_dict("records") + runs
        found[folder.name] = judged(write(folder, runs=both, arms=arms), entry)
        assert found[folder.name]["verdict"] == "underpowered"
    assert found["quiet"]["n_needed"] == 2
    assert found["loud"]["n_needed"] > 20
    assert found["quiet"]["ci_low"] < -0.1 < found["quiet"]["ci_high"] < -0.09
    assert found["single"]["n_needed"] is None
    assert "ci_low" not in found["single"]


def test_the_interval_of_a_claim_is_that_of_its_own_coefficients(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.02, (4, 3))
    runs, arms = chain_runs("c", dict(zip("abcd", (4 + noise).tolist(), strict=True)))
    results = Results(write(tmp_path, runs=runs, arms=arms))
    two = losses.contrast(results, "c", {"a": 1, "b": -1})
    four = losses.contrast(results, "c", {"a": 1, "b": -1, "c": -1, "d": 1})
    assert four.high - four.low == pytest.approx(math.sqrt(2) * (two.high - two.low))
    assert (two.freedom, four.seeds) == (6, 3)
    assert four.spread == pytest.approx(math.sqrt(4 * results.noise().paired))


def test_contrast_pairs_arms_by_seed_and_knows_aliases(tmp_path):
    runs, arms = chain_runs("c", {"base": [4.0, 4.3, 4.2], "+a": [3.9, 4.2, 4.1], "+b": [3.7, 4.0, 3.9]})
    shuffled = [*runs[:6], *reversed(runs[6:])]
    results = Results(write(tmp_path, runs=shuffled, arms=arms), {"c": {"last": "+b"}})
    found = losses.contrast(results, "c", {"last": 1, "+a": -1})
    assert (found.value, found.low, found.n) == (pytest.approx(-0.2), pytest.approx(-0.2), 3)
    total = losses.contrast(results, "c", {"+b": 1, "+a": -2, "base": 1})
    assert total.value == pytest.approx(-0.1)
    with pytest.raises(NotTested, match="arm '\\+c' of c was not run: snakemake ablation_c"):
        losses.contrast(results, "c", {"+c": 1, "+a": -1})


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
    found = losses.gap_change(Results(write(tmp_path, runs=runs)), "a", "b")
    assert (found.value, found.seeds, found.note) == (pytest.approx(-0.2), 1, "s to m")
    with pytest.raises(NotTested, match="two sizes"):
        losses.gap_change(Results(write(tmp_path, runs=runs[:2])), "a", "b")


def test_a_law_needs_four_points_and_lines_are_kept_apart(tmp_path):
    sizes = (10**5, 10**6, 10**7, 10**8)
    runs, arms = [], []
    for offset, line in ((0.0, "K=1"), (0.5, "K=2")):
        for i, sparse in enumerate(sizes):
            run = f"sparsity.{line}.{i}"
            loss = 5 + offset - 0.1 * i + 0.001 * (i % 2)
            runs.append(grid_run("ultramem", run=run, sparse_params=sparse, val_loss=loss))
            arms.append(row("arms", chain="sparsity", kind="sweep", label=f"{line}, {sparse}", run=run, set="{}"))
    results = Results(write(tmp_path, runs=runs, arms=arms))
    slope, r2 = laws.law_slope(results, "sparsity", "ultramem"), laws.law_r2(results, "sparsity", "ultramem")
    assert slope.value == pytest.approx(0.1, abs=1e-3)
    assert (slope.n, slope.seeds, slope.kind) == (8, 1, "points")
    assert slope.low > 0.09
    assert "2 lines with one slope: K=1, K=2" in slope.note
    assert r2.value > 0.999
    assert not r2.bounded
    law = {"args": {"chain": "sparsity", "arch": "ultramem"}, "direction": "above", "tolerance": None}
    for entry in (claim(metric="law_slope", published=None, **law), claim(metric="law_r2", neutral=0.9, published=0.9, **law)):
        assert judged(tmp_path, entry)["verdict"] == "underpowered"
    short = Results(write(tmp_path, runs=[r for r in runs if r["sparse_params"] < 10**8]))
    with pytest.raises(NotTested, match="not a law: 3 points"):
        laws.law_slope(short, "sparsity", "ultramem")


def test_a_law_of_repeated_seeds_has_their_interval(tmp_path):
    rng, runs, arms = np.random.default_rng(3), [], []
    for arch, b in (("ultramem", 0.1), ("moe2", 0.02)):
        for i, sparse in enumerate((10**5, 10**6, 10**7, 10**8)):
            for seed in range(3):
                run = f"sparsity.{arch}-{i}-s-s{seed}"
                runs.append(grid_run(arch, seed=seed, run=run, sparse_params=sparse, val_loss=5 - b * i + rng.normal(0, 0.01)))
                arms.append(row("arms", chain="sparsity", kind="sweep", label=f"{arch}, {sparse}", run=run, set="{}"))
    results = Results(write(tmp_path, runs=runs, arms=arms))
    slope, r2 = laws.law_slope(results, "sparsity", "ultramem"), laws.law_r2(results, "sparsity", "ultramem")
    assert (slope.n, slope.seeds, slope.note) == (4, 3, "seed noise")
    assert slope.low < 0.1 < slope.high
    assert slope.spread == pytest.approx(math.sqrt(results.noise().paired / 5))  # x is -1.5, -0.5, 0.5 and 1.5 from its mean
    assert 0.9 < r2.low < r2.value <= r2.high < 1
    assert laws.law_r2(results, "sparsity", "moe2").low < 0.9
    gap = laws.law_slope_gap(results, "sparsity", "ultramem", "moe2")
    assert gap.low < 0.08 < gap.high
    assert gap.spread == pytest.approx(math.sqrt(2) * slope.spread)


def test_best_arm_spans_what_is_not_clearly_worse(tmp_path):
    runs, arms = chain_runs("c", {"a": [4.1, 4.2, 4.3], "b": [4.0, 4.1, 4.2], "d": [4.0, 4.11, 4.19]})
    shares = {"c.0": 0.12, "c.1": 0.17, "c.2": 0.23}
    runs = [run | {"compute_share_memory": shares[run["run"][:3]]} for run in runs]
    results = Results(write(tmp_path, runs=runs, arms=arms))
    found = losses.best_arm(results, "c", ["a", "b", "d"], "compute_share_memory", 100)
    assert (found.low, found.high, found.n, found.seeds) == (pytest.approx(17), pytest.approx(23), 3, 3)
    assert "tried 12, 17, 23" in found.note


def test_scores_take_their_interval_from_items_if_there_is_one_seed(tmp_path):
    runs = [grid_run("a"), grid_run("b")]
    both = [("a-s-s0", 0.6), ("b-s-s0", 0.5)]
    names = (("t", "acc"), ("u", "len_norm"))
    rows = [row("evals", run=r, task=t, metric=m, n=400, value=v, stderr=0.025) for r, v in both for t, m in names]
    rows += [row("evals", run=r, task=t, metric="bits_per_byte", n=400, value=9.0) for r, _ in both for t, _ in names]
    rows += [row("evals", run=r, task="t/4", metric="acc", n=9, value=0.0, stderr=0.5) for r, _ in both]
    found = scores.score_gap(Results(write(tmp_path, runs=runs, evals=rows)), "a", "b", ["t", "u*"])
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
    found = times.latency_ratio(results, "moe2", "ultramem")
    assert (found.value, found.low) == (pytest.approx(5), pytest.approx(5 * 0.9 / 1.1))
    assert "at 16" in found.note
    assert found.scale == "size s, whole model, fp32, 1 thread(s), CPU: made up"
    assert times.latency_ratio(results, "moe2", "ultramem", [1, 1]).value == pytest.approx(1)
    with pytest.raises(NotTested, match="no measured decode step of dense"):
        times.latency_ratio(results, "moe2", "dense")
    with pytest.raises(NotTested, match="not measured at a shared batch"):
        times.latency_ratio(results, "moe2", "ultramem", [64, 64])
    write(tmp_path, latency=[entry | {"bytes_declared": 2e6} for entry in rows])
    with pytest.raises(NotTested, match="read at most 2 MB a step, which a cache holds"):
        times.latency_ratio(Results(tmp_path), "moe2", "ultramem")


def test_latency_is_that_of_bf16_and_fp32_stands_beside(tmp_path):
    rows = [
        timing(a, 16, p, bytes_declared=2e9, predicted_ms=2.0) for a, p in (("moe2", 8.0), ("ultramem", 1.0), ("dense", 1.0))
    ]
    rows += [timing(a, 16, p, dtype="bf16", predicted_ms=1.5) for a, p in (("moe2", 3.0), ("ultramem", 1.0))]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    found = times.latency_ratio(results, "moe2", "ultramem")
    assert (found.value, found.conservative.value) == (pytest.approx(3), pytest.approx(1.5))
    assert "bf16" in found.scale
    assert found.note.endswith("fp32: 8 (conservative 2)")
    with pytest.raises(NotTested, match="no measured decode step of dense"):
        times.latency_ratio(results, "moe2", "dense")


def test_a_slow_mixture_of_experts_is_never_withheld_and_never_alone(tmp_path):
    steps = {1: (3.0, 2.9), 16: (50.0, 10.0), 64: (8.0, None)}
    rows = [timing("moe2", b, p, predicted_ms=predicted) for b, (p, predicted) in steps.items()]
    rows += [timing(arch, b, 1.0, predicted_ms=0.1) for arch in ("ultramem", "dense") for b in steps]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    for against in ("ultramem", "dense"):
        found = times.latency_ratio(results, "moe2", against)
        assert found.value == pytest.approx(50)
        assert "moe2 takes 5.00 times its own roofline" in found.note
        safe = found.conservative
        assert (safe.value, safe.low, safe.high) == (pytest.approx(10), pytest.approx(10 / 1.1), pytest.approx(10 / 0.9))
    assert times.latency_ratio(results, "ultramem", "dense").conservative is None
    unknown = times.latency_ratio(results, "moe2", "ultramem", [64, 64])
    assert math.isnan(unknown.conservative.value)
    assert "the roofline of moe2 is unknown" in unknown.note


def test_latency_growth_with_the_sparse_ratio(tmp_path):
    rows = [timing(arch, 256, p, r) for arch, p, r in (("moe2", 2, 4), ("moe2", 8, 64), ("ultramem", 1, 4))]
    rows[1]["predicted_ms"] = 3.2
    rows += [timing("ultramem", 256, 1.1, 64)]
    rows = [entry | {"part": "ffn", "kv": "none"} for entry in rows] + [timing("moe2", 256, 3.0)]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    alone, beside = times.latency_growth(results, "moe2"), times.latency_growth(results, "moe2", against="ultramem")
    assert (alone.value, alone.conservative.value) == (pytest.approx(4), pytest.approx(2))
    assert (beside.value, beside.conservative.value) == (pytest.approx(4 / 1.1), pytest.approx(2 / 1.1))
    assert beside.conservative.low == pytest.approx(2 / 1.1 * 0.9 / 1.1)
    assert times.latency_growth(results, "ultramem").conservative is None


def test_speedups_hold_both_ratios_of_each_pair(tmp_path):
    rows = [timing("moe2", 16, 8.0, predicted_ms=2.0), timing("moe2", 64, 4.0, predicted_ms=None)]
    rows += [timing("ultramem", b, 1.0, 12.5) for b in (16, 64)] + [timing("ultramem", 16, 1.0, 30.0), timing("dense", 16, 1.0)]
    write(tmp_path, latency=rows)
    found = times.speedups(schema.read(tmp_path / "latency.csv", "latency")).set_index("batch")
    assert list(found.index) == [16, 64]
    assert found.loc[16, ["value", "low", "high"]].tolist() == pytest.approx([8, 7.2 / 1.1, 8.8 / 0.9])
    assert found.loc[16, ["conservative", "conservative_low", "conservative_high", "distance"]].tolist() == pytest.approx(
        [2, 2 / 1.1, 2 / 0.9, 4]
    )
    assert found.loc[64, "value"] == pytest.approx(4)
    assert math.isnan(found.loc[64, "conservative"])
    assert (found.arch_moe == "moe2").all()


def test_bytes_prefer_counts_to_declarations(tmp_path):
    runs = [grid_run("moe8"), grid_run("ultramem_v2")]
    rows = [
        row("access", run=f"{arch}-s-s0", arch=arch, part="ffn", batch=64, routing=routing, kind=kind, bytes=size)
        for arch, declared, counted in (("moe8", 900.0, 600.0), ("ultramem_v2", 100.0, 200.0))
        for routing, kind, size in (("uniform", "declared-expected", declared), ("trained", "counted", counted))
    ]
    rows += [entry | {"part": "model", "bytes": 5000.0} for entry in rows] + [rows[1] | {"layer": 0, "bytes": 1.0}]
    folder = write(tmp_path, runs=runs, access=rows)
    assert counted.bytes_ratio(Results(folder), "moe8", "ultramem_v2").value == 3
    declared = write(tmp_path, runs=runs, access=[r for r in rows if r["kind"] != "counted"])
    assert counted.bytes_ratio(Results(declared), "moe8", "ultramem_v2").value == 9


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
    assert scores.health(results, "u", "output_std", "max").value == 4
    assert scores.health(results, "u", "output_std").value == 3.5
    assert scores.health_growth(results, "c", "x", "output_std").value == 4
    with pytest.raises(NotTested, match="no recall_grid"):
        scores.health(results, "u", "recall_grid")


def test_recall_has_the_interval_of_its_tokens_and_stays_a_share(tmp_path):
    def found(values, seeds):
        runs = [grid_run("u", seed=s) for s in range(seeds)]
        rows = [
            row("health", run=run["run"], step=9, layer=layer, metric="recall", value=value)
            for run in runs
            for layer, value in enumerate(values)
        ]
        matched = [row("matched_compute", arch="u", size="s", n_keys=199)]
        folder = write(tmp_path, runs=runs, health=rows, matched_compute=matched)
        return scores.health(Results(folder), "u", "recall", of_tokens=True)

    one = found((0.999, 1.0), 1)
    assert 0.95 < one.low < 0.9995 < one.high <= 1.0
    assert (one.seeds, one.note) == (1, "at least the interval of a share of 128 tokens")
    args = {"arch": "u", "name": "recall"}
    entry = claim(metric="health", args=args, direction="above", neutral=0.95, published=0.95, tolerance=None)
    assert rule(entry, one).verdict == "underpowered"
    three = found((1.0, 1.0), 3)
    assert (three.low, three.high) == (pytest.approx(0.025 ** (1 / 384)), 1.0)
    assert rule(entry, three).verdict == "reproduced"


def test_loss_jump_is_the_largest_rise(tmp_path):
    runs, arms = chain_runs("c", {"base": [4.0], "norm": [4.0]})
    curves = {"c.0-s-s0": [9, 8, 5, 7, 4, 3], "c.1-s-s0": [9, 8, 5, 5.5, 4, 3]}
    rows = [
        row("train", run=run, step=10 * i, split="train", loss=float(x))
        for run, curve in curves.items()
        for i, x in enumerate(curve)
    ]
    results = Results(write(tmp_path, runs=runs, arms=arms, train=rows))
    assert losses.loss_jump(results, "c", "norm", "base").value == pytest.approx(-1.5)


def test_the_largest_size_is_one_with_the_most_seeds(tmp_path):
    runs = [grid_run(arch, "s", seed, val_loss=x + 0.01 * seed) for arch, x in (("a", 3.9), ("b", 4.0)) for seed in range(3)]
    runs += [grid_run("a", "m", 0, val_loss=3.0), grid_run("b", "m", 0, val_loss=3.5)]
    results = Results(write(tmp_path, runs=runs))
    gap = losses.loss_gap(results, "a", "b")
    assert (gap.value, gap.seeds) == (pytest.approx(-0.1), 3)
    assert losses.loss_gap(results, "a", "b", size="m").seeds == 1
    ends = losses.loss_gap(results, "a", "b", size="smallest", against_size="largest")
    assert ends.value == pytest.approx(3.91 - 3.5)


def tuned(arch, lr, chosen):
    return row("tuning", arch=arch, lr=lr, run=f"t-{arch}-{lr}", chosen=chosen, init="x")


def test_a_recipe_on_the_edge_confounds_whichever_way_the_loss_falls(tmp_path):
    entry = claim(confounded=("rate of MoE-8",))
    for sign in (1, -1):
        losses = [4 - 0.1 * sign, 4.01 - 0.1 * sign, 4.02 - 0.1 * sign]
        grid(tmp_path, losses, [4.0, 4.01, 4.02])
        assert judged(tmp_path, entry)["verdict"] == ("reproduced" if sign == 1 else "not reproduced")
        write(tmp_path, tuning=[tuned("moe8", lr, lr == 0.006) for lr in (0.006, 0.012, 0.024)])
        found = judged(tmp_path, entry)
        assert found["verdict"] == "confounded"
        assert found["reason"].startswith("moe8 has the lowest of the rates tried (0.006); ")
        write(tmp_path, tuning=[tuned("moe8", lr, lr == 0.012) for lr in (0.006, 0.012, 0.024)])
        assert judged(tmp_path, entry)["verdict"] != "confounded"
        (tmp_path / "tuning.csv").unlink()


@pytest.mark.parametrize(
    ("base", "confounded"), [([4.0, 4.01, 4.02], False), ([4.003, 4.01, 4.02], False), ([4.1, 4.11, 4.12], True), ([4.1], True)]
)
def test_a_chain_whose_base_is_not_the_grids_model_is_confounded(tmp_path, base, confounded):
    seeded = len(base) > 1
    runs, arms = chain_runs("ultramem", {"PKM-151M-x10": base, "+a": [3.9, 3.905, 3.92][: len(base)]})
    runs += [grid_run("pkm", seed=s, val_loss=4 + 0.01 * s) for s in range(len(base))]
    args = {"chain": "ultramem", "weights": {"+a": 1, "PKM-151M-x10": -1}}
    entry = claim(metric="contrast", args=args, confounded=("base of V1",))
    found = judged(write(tmp_path, runs=runs, arms=arms), entry)
    assert (found["verdict"] == "confounded") == confounded
    if confounded:
        assert "the base of chain ultramem differs from the grid's pkm by 0.1 nats" in found["reason"]
        assert ("no seed was repeated" in found["reason"]) != seeded


def test_readings_that_agree_are_no_ambiguity(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    same = claim(readings={"one": {}, "another": {"size": "s"}})
    assert judged(tmp_path, same)["verdict"] == "reproduced"
    found = judged(tmp_path, claim(readings={"one": {}, "the reverse": {"of": "b", "against": "a"}}))
    assert found["verdict"] == "ambiguous"
    assert "read as one, reproduced: -0.09667" in found["reason"]
    assert "read as the reverse, not reproduced: 0.09667" in found["reason"]


def test_counts_tell_tests_from_claims_and_arithmetic_from_training(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    entries = [claim(id="1"), claim(id="2", test="1"), claim(id="3"), claim(id="4", kind="arithmetic")]
    entries += [claim(id="5", kind="modelled", metric=None, why="w", direction=None, tolerance=None)]
    frame = pd.DataFrame(claims.judge(ledger_of(*entries), Results(tmp_path)))
    assert claims.counts(frame) == [
        ("arithmetic", "reproduced", 1, 1),
        ("trained", "reproduced", 3, 2),
        ("modelled", "not tested", 1, 1),
    ]


def test_shared_tests_share_their_measurement():
    by_id = {entry.id: entry for entry in LEDGER.claims}
    shared = {entry.id: entry.test for entry in LEDGER.claims if entry.test}
    assert {"B13a": "12a", "26c": "12b", "B11a": "16a", "B11b": "16b", "B11c": "16c", "B2": "6c"}.items() <= shared.items()
    for name, test in shared.items():
        one, other = by_id[name], by_id[test]
        assert (one.metric, one.kind) == (other.metric, other.kind)
        if "weights" in one.args:  # perhaps of the other sign
            assert one.args["weights"].keys() == other.args["weights"].keys()
        else:
            assert one.args == other.args
    measured = [(e.metric, str(e.args)) for e in LEDGER.claims if e.metric and not e.test]
    assert len(set(measured)) == len(measured)


def test_no_interval_is_assumed():
    assert "floor" not in claims.CLAIMS.read_text()
    assert {e.id for e in LEDGER.claims if e.kind == "arithmetic"} >= {"7a", "7b", "B6", "B13b"}
    latency = [e for e in LEDGER.claims if e.metric in ("latency_ratio", "latency_growth")]
    assert {e.kind for e in latency} == {"measured"}
    assert {e.kind for e in LEDGER.claims if str(e.metric).startswith("modelled")} == {"modelled"}


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
    table = counted.reference("ultramem_ablation")
    losses = table[(table.metric == "val_loss")].set_index("row").value.astype(float)
    checked = 0
    for entry in LEDGER.claims:
        if entry.metric == "contrast" and entry.args["chain"] == "ultramem":
            change = sum(weight * losses[label] for label, weight in entry.args["weights"].items())
            assert change == pytest.approx(entry.published, abs=1e-9), entry.id
            checked += 1
    assert checked == 11


def test_published_changes_of_the_sweeps_are_the_reference_table():
    table = counted.reference("ultramem_sweeps")
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
        ({"kind": "guessed"}, "has kind 'guessed'"),
        ({"readings": {"as if": {"off": "a"}}}, "does not fit its metric"),
    ],
)
def test_a_wrong_claim_is_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        claim(**fields)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  tolerance: 0.042", "  tolerence: 0.042", "claim 1 has tolerence; allowed"),
        ('id: "2a"', 'id: "1"', "claim 1 more than once"),
        ('test: "12a"', 'test: "99"', "claim B13a names '99', which is not one of 1, 2a"),
        ('test: "12a"', 'test: "6a"', "claim B13a cannot share the test of 6a, which has another metric"),
    ],
)
def test_a_misspelt_field_a_repeated_id_or_a_stray_test_is_refused(tmp_path, old, new, words):
    (tmp_path / "claims.yaml").write_text(claims.CLAIMS.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        claims.load(tmp_path / "claims.yaml")


# The printed cells do not explain these two averages; see evals/claims/reference/README.md.
NOT_THE_MEAN = {("MoE-151M-2in32", "Avg6"): -0.40, ("Dense-1.6B", "Avg10"): -0.41}


def pivoted(name, index):
    table = counted.reference(name)
    return table.assign(value=table.value.astype(float)).pivot(index=index, columns="metric", values="value")


def test_published_averages_are_the_means_of_their_cells():
    main = pivoted("ultramem_main", "row").dropna(subset=["Avg10"])
    six = ["GPQA", "TriviaQA", "BBH-cot", "HellaSwag", "WinoGrande", "DROP"]
    for average, tasks in (("Avg6", six), ("Avg10", [*six, "ARC-C", "MMLU", "BoolQ", "AGIEval"])):
        for model, gap in (main[tasks].mean(axis=1) - main[average]).items():
            assert gap == pytest.approx(NOT_THE_MEAN.get((model, average), 0.0), abs=0.01), (model, average)
    assert len(main) == 10
    for name, tasks in (("ultramem_v2_long_context", 7), ("ultramem_v2_open", 9)):
        table = pivoted(name, "row").drop(columns=["train_loss", "eval_loss"], errors="ignore")
        means = table.drop(columns="All")
        assert means.shape[1] == tasks
        assert not means.isna().any(axis=None)
        assert (means.mean(axis=1) - table.All).abs().max() <= 0.1 + 1e-9


def test_the_ablation_table_adds_up():
    table = counted.reference("ultramem_ablation")
    table = table.assign(value=table.value.astype(float))
    rows = [name for name in table.row.unique() if name != "total"]
    wide = table.pivot(index="row", columns="metric", values="value")
    for loss, total in (("train_loss", -0.111), ("val_loss", -0.092)):
        steps = wide.loc[rows, loss].diff()
        assert (steps - wide.loc[rows, f"{loss}_change"]).abs().max() < 1e-9
        assert steps.sum() == pytest.approx(total)
        assert wide.loc["total", f"{loss}_change"] == total


def test_every_reference_number_names_its_source():
    names = sorted(path.stem for path in counted.REFERENCE.glob("*.csv"))
    assert len(names) == 9
    for name in names:
        table = counted.reference(name)
        assert list(table.columns) == ["row", "condition", "metric", "value", "unit", "source"]
        assert not (table[["row", "metric", "value", "unit", "source"]] == "").any(axis=None)
        assert not table.duplicated(["row", "condition", "metric"]).any()
        numeric = table[table.unit != "label"].value
        assert pd.to_numeric(numeric).notna().all()
        assert f"`{name}.csv`" in (counted.REFERENCE / "README.md").read_text()
