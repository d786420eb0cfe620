"""Intervals against known answers, cover by simulation, and fits on curves whose parameters are known."""

import numpy as np
import pytest

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


def test_bootstrap_repeats_and_agrees_with_t_on_many_values():
    values = np.random.default_rng(2).normal(3, 1, size=200)
    one, two, t = stats.bootstrap(values), stats.bootstrap(values), stats.mean(values)
    assert one == two
    assert one.low == pytest.approx(t.low, abs=0.02)
    assert one.high == pytest.approx(t.high, abs=0.02)


@pytest.mark.parametrize("bad", [{}, {0: float("nan")}])
def test_empty_or_nan_is_refused(bad):
    with pytest.raises(ValueError, match=r"at least one value|not a finite number"):
        stats.difference(bad, {0: 1.0})


def test_log_linear_recovers_the_line():
    x = [1e6, 1e7, 1e8, 1e9, 1e10]
    noise = np.array([0.01, -0.01, 0.0, -0.01, 0.01])
    fit = stats.log_linear(x, 4.0 - 0.2 * np.log10(x) + noise)
    assert fit.params["a"] == pytest.approx(4.0, abs=0.05)
    assert fit.params["b"] == pytest.approx(0.2, abs=0.005)
    assert fit.r2 > 0.99
    assert np.abs(fit.residuals).max() < 0.02
    slope = fit.interval("b")
    assert slope.low < 0.2 < slope.high
    assert slope.low > 0.18
    low, high = fit.band([1e8, 1e14])
    assert high[1] - low[1] > 2 * (high[0] - low[0])


def test_log_linear_errors_match_the_textbook():
    from scipy.stats import linregress

    x, y = np.array([1.0, 10, 100, 1000, 3000]), np.array([3.0, 2.7, 2.6, 2.2, 2.1])
    fit, known = stats.log_linear(x, y), linregress(np.log10(x), y)
    assert fit.params["b"] == pytest.approx(-known.slope)
    assert fit.stderr["b"] == pytest.approx(known.stderr)
    assert fit.r2 == pytest.approx(known.rvalue**2)


def test_power_law_recovers_the_curve_at_large_x():
    x = np.geomspace(1e6, 1e9, 7)
    fit = stats.power_law(x, 1.7 + 400 * x**-0.35)
    assert fit.params == pytest.approx({"a": 400, "b": 0.35, "c": 1.7}, rel=1e-3)
    assert fit.predict([1e12])[0] == pytest.approx(1.7 + 400 * 1e12**-0.35, rel=1e-4)


def test_power_law_errors_survive_the_change_of_scale():
    rng = np.random.default_rng(3)
    x = np.repeat(np.geomspace(1e6, 1e9, 8), 5)
    truth = {"a": 400, "b": 0.35, "c": 1.7}
    inside = dict.fromkeys(truth, 0)
    for _ in range(40):
        fit = stats.power_law(x, 1.7 + 400 * x**-0.35 + rng.normal(0, 0.01, len(x)))
        for k, value in truth.items():
            interval = fit.interval(k, level=0.99)
            inside[k] += interval.low <= value <= interval.high
    assert all(count >= 35 for count in inside.values()), inside


@pytest.mark.parametrize("fit", [stats.log_linear, stats.power_law])
def test_fewer_than_four_sizes_are_not_a_law_however_many_seeds(fit):
    result = fit([1, 1, 1, 2, 2, 2, 4, 4, 4], [3, 3.1, 2.9, 2, 2.1, 1.9, 1, 1.1, 0.9])
    assert isinstance(result, stats.NotALaw)
    assert result.statement == "not a law: 3 points, a law needs 4"


def test_a_flat_line_is_not_a_power_law():
    assert isinstance(stats.power_law([1, 10, 100, 1000], [2.0, 2.0, 2.0, 2.0]), stats.NotALaw)
