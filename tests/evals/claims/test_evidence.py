"""Losses, laws, scores, bytes and health as evidence: each metric on results whose answer is known."""

import math

import numpy as np
import pytest
from made_up_claims import claim, grid, judged
from synthetic import chain_runs, grid_run, row, write

from evals.claims.evidence import NotTested, Results, counted, laws, losses, scores
from evals.claims.ruling import rule
from evals.records.errors import UserError


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
