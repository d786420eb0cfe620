"""Loss at equal decode time: the score, its interval, the rows and the times that it is made of."""

import math

import pandas as pd
import pytest
from synthetic_decision import SHIFTS, latency, losses, sparsity, timed

from evals import stats
from evals.decode import decision
from evals.stats.pairs import apart

FLAT = stats.Interval(1.0, 1.0, 1.0, 4, "made up")


def noise_of(runs: pd.DataFrame):
    cells = {"config": runs["arch"] + runs["size"], "seed": runs["seed"], "block": runs["size"], "value": runs["test_loss"]}
    return stats.noise(pd.DataFrame(cells))


def decided(gaps: dict, paces: dict, slope=FLAT, jitter: float = 0.004, perfect=None, **times) -> dict[int, decision.Cell]:
    grid = pd.DataFrame(losses(gaps, jitter=jitter))
    table = decision.times(pd.DataFrame(latency(paces, **times)))
    rows = decision.rows(grid, grid[:0].assign(label=""), "d256")
    found = decision.decide(rows, perfect(table) if perfect else table, slope, noise_of(grid))
    return {cell.batch: cell for cell in found}


def test_the_score_is_the_loss_and_what_dense_gains_by_the_time():
    cells = decided({"moe8": -0.3, "ultramem": -0.1}, {"moe8": (10.0, 1.0, 1.0), "ultramem": 2.0}, jitter=0.0)
    dense = 5.0 - 3 + sum(SHIFTS) / 3
    scores = {standing.arch: standing.score - dense for standing in cells[1].standings}
    assert scores == pytest.approx({"dense": 0.0, "moe8": -0.3 + 1.0, "ultramem": -0.1 + math.log10(2)})
    assert [standing.arch for standing in cells[1].standings] == ["dense", "ultramem", "moe8"]
    assert cells[16].best == "moe8"
    assert cells[1].gap.value == pytest.approx(-0.1 + math.log10(2))
    assert cells[1].told
    assert (cells[1].row.ratio, cells[1].timed) == (pytest.approx(6.0), 6.0)


def test_the_interval_adds_losses_slope_and_times_in_quadrature():
    paces = {"moe8": 1.5, "ultramem": 1.0}
    loss = decided({"moe8": -0.3, "ultramem": -0.31}, {"moe8": 1.0, "ultramem": 1.0}, jitter=0.01, p20_ms=10.0, p80_ms=10.0)[1]
    grid = pd.DataFrame(losses({"moe8": -0.3, "ultramem": -0.31}, jitter=0.01)).query("size == 'd256'")
    of = {arch: dict(zip(here["seed"], here["test_loss"], strict=True)) for arch, here in grid.groupby("arch")}
    whole = pd.DataFrame(losses({"moe8": -0.3, "ultramem": -0.31}, jitter=0.01))
    worse, best = loss.standings[1].arch, loss.best
    seeds = apart(of[worse], of[best], noise_of(whole))
    assert (loss.gap.low, loss.gap.high) == pytest.approx((seeds.low, seeds.high))
    unsure = stats.Interval(1.0, 0.6, 1.4, 4, "made up")
    both = decided({"moe8": -0.3, "ultramem": -0.31}, paces, unsure, jitter=0.01, p20_ms=9.0, p80_ms=11.0)[1]
    time = 1.96 * 1.253 * math.log10(11 / 9) / 1.683 / math.sqrt(9) * math.sqrt(2)
    half = math.hypot(seeds.high - seeds.value, 0.4 * math.log10(1.5), time)
    assert both.gap.high - both.gap.value == pytest.approx(half)
    assert both.gap.value - both.gap.low == pytest.approx(half)


def test_what_the_interval_does_not_tell_apart_is_level():
    cells = decided({"moe8": -0.3, "ultramem": -0.301}, {"moe8": (1.0, 1.0, 3.0), "ultramem": 1.0}, jitter=0.02)
    assert set(cells[1].level) == {"moe8", "ultramem"}
    assert not cells[1].told
    assert cells[256].level == ("ultramem",)
    grid = pd.DataFrame(losses({"moe8": -0.1, "ultramem": -0.3}, 1))
    rows = decision.rows(grid, grid[:0].assign(label=""), "d256")
    (cell, *_) = decision.decide(rows, decision.times(pd.DataFrame(latency({"moe8": 1.0, "ultramem": 1.0}))), FLAT, None)
    assert not cell.gap.bounded
    assert len(cell.level) == 3


def test_rooflines_stand_in_for_experts_alone_or_for_all():
    gaps, paces = {"moe8": -0.3, "ultramem": -0.1}, {"moe8": 4.0, "ultramem": 1.0}
    pace = {
        name: {standing.arch: standing.pace for standing in decided(gaps, paces, perfect=change)[1].standings}
        for name, change in (("moe", decision.at_roofline), ("all", lambda timed: decision.at_roofline(timed, every=True)))
    }
    assert pace["moe"] == pytest.approx({"dense": 1.0, "moe8": 2.0, "ultramem": 1.0})
    assert pace["all"] == pytest.approx({"dense": 1.0, "moe8": 4.0, "ultramem": 1.0})
    assert decided(gaps, paces, perfect=decision.at_roofline, predicted_ms=None) == {}


def test_rows_are_the_grid_and_the_other_ratios_of_the_chain():
    chain, _ = sparsity({3.0: {"moe2": 3.9, "ultramem": 3.8}, 6.1: {"moe2": 1.0, "ultramem": 1.0}, 18.0: {"ultramem": 3.0}})
    better = [run | {"label": "other", "test_loss": run["test_loss"] - 0.2} for run in chain[:6] if run["arch"] == "ultramem"]
    arms = pd.DataFrame([run | {"label": run["run"].partition("-")[0]} for run in chain] + better)
    grid = pd.DataFrame(losses({"moe8": -0.1, "ultramem": -0.3}))
    found = decision.rows(grid, arms, "d256")
    assert [(round(row.ratio, 2), row.size) for row in found] == [(3.0, "d64"), (6.0, "d256")]  # 18 has no experts
    assert set(found[0].losses) == {"dense", "moe2", "ultramem"}
    assert found[0].losses["ultramem"][0] == pytest.approx(3.6)
    assert set(found[1].losses) == {"dense", "moe8", "ultramem"}
    assert decision.rows(grid[grid["arch"] != "dense"], arms, "d256") == []


def test_parts_timed_at_other_ratios_get_what_the_whole_model_took_beside_them():
    rows = [timed("dense", 16, 10.0), timed("dense", 16, 6.0, part="ffn")]
    for arch in ("moe8", "ultramem"):
        rows += [timed(arch, 16, 30.0, 12.0), timed(arch, 16, 26.0, 12.0, "ffn"), timed(arch, 16, 20.0, 6.0, "ffn")]
    rows += [timed("moe8", 16, 1.0, 6.0, "ffn", dtype="fp32"), timed("moe8", 16, 1.0, 6.0, "ffn", variant="folded")]
    rows += [timed("moe8", 16, 1.0, 6.0, "ffn", threads=2), timed("moe8", 16, 1.0, 6.0, "ffn", kind="modelled")]
    found = decision.times(pd.DataFrame(rows)).set_index(["arch", "sparse_ratio"])["p50_ms"]
    assert found["moe8", 6.0] == pytest.approx(20.0 + 4.0)
    assert found["moe8", 12.0] == 30.0
    assert found["dense", 0.0] == 10.0
    assert len(found) == 5
    alone = decision.times(pd.DataFrame([row for row in rows if row["part"] == "ffn"])).set_index(["arch", "sparse_ratio"])
    assert alone["p50_ms"]["moe8", 6.0] == 20.0
    assert set(alone["part"]) == {"ffn"}


def test_times_of_a_ratio_far_from_the_trained_one_are_not_taken():
    gaps, paces = {"moe8": -0.3, "ultramem": -0.1}, {"moe8": 2.0, "ultramem": 1.0}
    assert {cell.timed for cell in decided(gaps, paces, ratio=12.0).values()} == {12.0}
    assert decided(gaps, paces, ratio=60.0) == {}
