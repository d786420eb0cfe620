"""Where a straight line crosses zero, with the interval that Fieller's theorem gives a ratio of two estimates."""

from __future__ import annotations

import math

from scipy import stats as distributions

from evals.stats.intervals import Interval


def zero_crossing(level: Interval, slope: Interval, confidence: float = 0.95) -> tuple[float, float, float]:
    """(u, low, high) of level + slope * u = 0, u the distance from where `level` was taken.

    Both are contrasts of the same noise whose errors are not correlated: a line's height at the mean of its points, and its
    slope. The interval holds every u at which the line is not told from zero (Fieller 1954); it is infinite where the slope
    itself is not told from zero, and NaN without noise.
    """
    u = -level.value / slope.value if slope.value else math.inf
    if not (level.bounded and slope.bounded):
        return u, math.nan, math.nan
    t = float(distributions.t.ppf(0.5 + confidence / 2, slope.freedom))
    error = {one: (t * one.spread) ** 2 / one.n for one in (level, slope)}
    a = slope.value**2 - error[slope]
    if a <= 0:
        return u, -math.inf, math.inf
    b, c = level.value * slope.value, level.value**2 - error[level]
    root = math.sqrt(max(b * b - a * c, 0.0))
    return u, (-b - root) / a, (-b + root) / a
