"""Intervals against known answers, cover by simulation, and what is no law."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from evals import stats


def test_paired_t_interval_is_the_textbook_one():
    result = stats.difference({0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.5, 1: 1.0, 2: 2.5})
    half = 4.302653 * 0.5 / np.sqrt(3)
    assert (result.value, result.n, result.method) == (pytest.approx(1.0), 3, "paired t")
    assert (result.low, result.high) == (pytest.approx(1 - half, abs=1e-5), pytest.approx(1 + half, abs=1e-5))


def test_pairing_removes_what_both_sides_share():
    shared = np.random.default_rng(0).normal(size=6)
    left = {seed: x + 0.1 + 0.001 * seed for seed, x in enumerate(shared)}
    right = dict(enumerate(shared))
    paired = stats.difference(left, right)
    unpaired = stats.difference(left, {seed + 100: x for seed, x in right.items()})
    assert unpaired.method == "Welch"
    assert paired.method == "paired t"
    assert paired.low > 0.09
    assert unpaired.low < 0


def test_pairs_are_matched_by_seed_not_by_position():
    left, right = {3: 1.0, 1: 2.0, 2: 3.0}, {9: 50.0, 3: 0.0, 2: 2.0, 1: 1.0}
    result = stats.difference(left, right)
    assert (result.value, result.low, result.high, result.n) == (1.0, 1.0, 1.0, 3)


def test_one_seed_has_no_interval():
    result = stats.difference({0: 2.0}, {0: 1.5})
    assert result.value == 0.5
    assert not result.bounded
    assert (result.n, result.method) == (1, "one pair")


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = sum(r.low <= 0 <= r.high for r in (stats.mean(rng.normal(size=3)) for _ in range(1500)))
    assert 0.93 < hits / 1500 < 0.97


@pytest.mark.parametrize("bad", [{}, {0: float("nan")}])
def test_empty_or_nan_is_refused(bad):
    with pytest.raises(ValueError, match=r"at least one value|not a finite number"):
        stats.difference(bad, {0: 1.0})


def test_fewer_than_four_sizes_are_not_a_law_however_many_seeds():
    assert stats.too_few([1, 1, 1, 2, 2, 2, 4, 4, 4]).statement == "not a law: 3 points, a law needs 4"
    assert stats.too_few([1, 2, 4, 8]) is None


def frame(config, seeds, block, values):
    return pd.DataFrame({"config": config, "seed": seeds, "block": block, "value": values})


def test_seed_noise_is_pooled_over_repeated_configs_only():
    runs = pd.concat(
        [frame("a", [0, 1], "s", [4.0, 4.2]), frame("b", [0, 1, 2], "m", [3.0, 3.1, 3.2]), frame("c", [0], "s", 9.0)]
    )
    found = stats.noise(runs)
    assert (found.variance, found.freedom) == (pytest.approx((0.02 + 0.02) / 3), 3)
    assert found.paired_freedom == 0
    assert math.isnan(found.paired)
    assert stats.noise(frame(["a", "b"], [0, 0], "s", [4.0, 4.1])) is None


def test_paired_noise_leaves_out_what_a_seed_does_to_all():
    shift = np.array([0.0, 0.3, -0.2])
    own = np.array([0.01, -0.02, 0.01])
    runs = pd.concat([frame(name, [0, 1, 2], "s", 4 + shift + sign * own) for name, sign in (("a", 1), ("b", -1))])
    found = stats.noise(runs)
    assert (found.paired, found.paired_freedom) == (pytest.approx(2 * (own**2).sum() / 2), 2)
    assert found.variance > 50 * found.paired
    terms = [stats.Term(w, dict(enumerate(4 + shift + sign * own)), "s") for w, sign in ((1, 1), (-1, -1))]
    gap = stats.contrast(terms, found)
    known = stats.difference(terms[0].values, terms[1].values)
    assert (gap.value, gap.low, gap.method) == (pytest.approx(known.value), pytest.approx(known.low), "paired by seed")


def test_a_contrast_has_the_standard_error_of_its_own_coefficients():
    noise = stats.Noise(0.01, 10, 0.0004, 12, np.zeros(0))
    t = 2.178813  # 97.5 % of t with 12 degrees of freedom
    one = {0: 4.0}
    for weights in ((1, -1), (1, -1, -1, 1), (0.25,) * 4 + (-0.25,) * 4):
        found = stats.contrast([stats.Term(w, one, "s") for w in weights], noise)
        assert found.high == pytest.approx(t * 0.02 * math.sqrt(sum(w * w for w in weights)), rel=1e-5), weights
        assert found.n == 1
    three = stats.contrast([stats.Term(w, {0: 4.0, 1: 4.0, 2: 4.0}, "s") for w in (1, -1)], noise)
    assert three.high == pytest.approx(t * 0.02 * math.sqrt(2 / 3), rel=1e-5)
    apart = stats.contrast([stats.Term(1, one, "s"), stats.Term(-1, {0: 4.0, 1: 4.0}, "m")], noise)
    assert apart.high == pytest.approx(2.228139 * 0.1 * math.sqrt(1 + 1 / 2), rel=1e-5)
    assert (apart.n, apart.method) == (1, "seeds")
    assert not stats.contrast([stats.Term(1, one), stats.Term(-1, one)], None).bounded


def test_a_contrast_covers_as_often_as_it_says():
    rng, hits = np.random.default_rng(5), 0
    for _ in range(600):
        losses = rng.normal(0, 0.1, 3) + rng.normal(0, 0.02, (4, 3))
        noise = stats.noise(pd.concat([frame(str(i), [0, 1, 2], "s", row) for i, row in enumerate(losses)]))
        found = stats.contrast([stats.Term(w, dict(enumerate(losses[i])), "s") for i, w in ((0, 1), (3, -1))], noise)
        hits += found.low <= 0 <= found.high
    assert 0.925 < hits / 600 < 0.975


def test_seeds_needed_is_the_textbook_number():
    assert stats.seeds_needed(0.5, 1.0, 1000) == 32  # ((1.96 + 0.84) / 0.5)^2
    assert stats.seeds_needed(0.003, 0.02, 1000) == 350
    assert stats.seeds_needed(-1.0, 0.1, 20) == 2
    assert stats.seeds_needed(1.0, 0.0, 3) == 2
    assert stats.seeds_needed(0.5, 1.0, 2) > 32
    for effect, spread in ((0.0, 1.0), (math.nan, 1.0), (1.0, math.nan)):
        assert stats.seeds_needed(effect, spread, 3) is None


def grid(noise, seeds, slope=0.4, bend=(0, 0, 0, 0)):
    rng = np.random.default_rng(4)
    sizes = np.array([1e5, 2e5, 4e5, 8e5])
    return pd.DataFrame(
        [
            {"arch": "a", "size": f"{at:g}", "active_params": at, "seed": seed, "test_loss": loss}
            for at, base in zip(sizes, 6 - slope * np.log10(sizes) + bend, strict=True)
            for seed in seeds
            for loss in [base + rng.normal(0, noise)]
        ]
    )


def test_the_slope_has_the_interval_of_its_seeds_or_else_of_its_residuals():
    seeded = stats.slope(grid(0.02, (0, 1, 2)))
    assert (seeded.n, seeded.method) == (4, "seed noise")
    assert seeded.low < 0.4 < seeded.high
    assert 0.01 < seeded.high - seeded.low < 0.2
    line = grid(0.02, (0,))
    one = stats.slope(line)
    assert one.method == "residuals of the line"
    known, t = linregress(np.log10(line.active_params), line.test_loss), 4.302653  # 97.5 % of t with 2 degrees of freedom
    b, half = -known.slope, t * known.stderr
    assert (one.value, one.low, one.high) == pytest.approx((b, b - half, b + half))
    borrowed = stats.slope(line, stats.Noise(0.02**2, 8, math.nan, 0, np.zeros(0)))
    assert (borrowed.value, borrowed.method) == (pytest.approx(one.value), "seed noise")
    short = grid(0.02, (0, 1, 2))
    assert isinstance(stats.slope(short[short.active_params < 8e5]), stats.NotALaw)


def test_slopes_share_the_noise_of_every_architecture():
    runs = pd.concat([grid(0.02, (0, 1, 2)), grid(0.0, (0,), slope=0.1).assign(arch="b")])
    found = stats.slopes(runs)
    assert list(found) == ["a", "b"]
    assert found["b"].value == pytest.approx(0.1)
    assert found["b"].low < 0.1 < found["b"].high
    assert found["b"].method == "seed noise"


def test_lines_share_a_slope_and_keep_their_height():
    x, line = [1e5, 1e6, 1e7, 1e8] * 2, ["a"] * 4 + ["b"] * 4
    y = np.array([5.0, 4.9, 4.8, 4.7, 6.0, 5.7, 5.4, 5.1])
    weights = stats.line_weights(x, line)
    assert weights @ y == pytest.approx(0.2)
    assert stats.line_r2(x, y, line) == pytest.approx(1 - 0.1 / 0.5, abs=1e-9)
    assert stats.line_weights(x[:4]) @ y[:4] == pytest.approx(0.1)
    assert stats.line_r2(x[:4], y[:4]) == pytest.approx(1)


def test_fieller_intervals_cover_the_crossing():
    """A line through five means of three paired values each, crossing zero at 3."""
    rng, x, hits, runs = np.random.default_rng(0), np.arange(5) - 2.0, 0, 200
    for _ in range(runs):
        y = 1.0 - (x + 2 - 2) / 3 + rng.normal(0, 0.15, (3, 5))
        left = y - y.mean(0)
        spread, freedom = float(np.sqrt((left**2).sum() / 10)), 10
        weights = {"level": np.full(5, 1 / 5), "slope": x / (x @ x)}
        found = {
            name: stats.intervals.t_interval(float(w @ y.mean(0)), spread * float(np.sqrt(w @ w)), 3, freedom, "t")
            for name, w in weights.items()
        }
        at, low, high = stats.zero_crossing(found["level"], found["slope"])
        assert low <= at <= high
        hits += low <= 3 <= high
    assert 0.92 <= hits / runs <= 0.98


def test_a_slope_that_may_be_zero_crosses_anywhere():
    level, slope = (stats.intervals.t_interval(value, 1.0, 3, 6, "t") for value in (1.0, -0.1))
    assert stats.zero_crossing(level, slope) == (pytest.approx(10), -math.inf, math.inf)


def test_the_interval_of_an_optimum_has_the_width_of_the_paired_noise():
    """Six settings of which 0.5 is best: the parabola's minimum moves as its derivative by each mean says."""
    rng, x = np.random.default_rng(0), np.array([0.0, 0.2, 0.4, 0.5, 0.7, 1.0])
    y = (x - 0.45) ** 2 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.01, (3, 6))
    best, parabola = stats.optimum(x, [dict(enumerate(column)) for column in y.T])
    left = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()

    def minimum(means):
        a, b, _ = np.polyfit(x, means, 2)
        return -b / (2 * a)

    moved = np.array([(minimum(y.mean(0) + step) - minimum(y.mean(0))) / 1e-6 for step in 1e-6 * np.eye(6)])
    half = 1.96 * np.sqrt((left**2).sum() / 10 / 3 * (moved**2).sum())
    assert (best.value, best.low <= 0.5 <= best.high, best.n) == (0.5, True, 3)
    assert parabola.value == pytest.approx(minimum(y.mean(0)))
    assert (parabola.low, parabola.high) == (
        pytest.approx(parabola.value - half, abs=0.1 * half),
        pytest.approx(parabola.value + half, abs=0.1 * half),
    )


def test_an_optimum_needs_three_settings_that_share_a_seed():
    with pytest.raises(ValueError, match="three settings"):
        stats.optimum([0, 1], [{0: 1.0}, {0: 2.0}])
    with pytest.raises(ValueError, match="a seed that all of them have"):
        stats.optimum([0, 1, 2], [{0: 1.0}, {0: 2.0}, {1: 3.0}])
    falling, none = stats.optimum([0, 1, 2], [{0: 3.0}, {0: 2.0}, {0: 1.0}])
    assert (falling.value, falling.bounded, none) == (2.0, False, None)
