"""The best of several settings that share their seeds, and the minimum of a parabola through them, by bootstrap over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evals.stats.intervals import Interval, finite

RESAMPLES = 10_000


def optimum(
    x: Sequence[float], values: Sequence[Mapping[int, float]], confidence: float = 0.95
) -> tuple[Interval, Interval | None]:
    """(x of the lowest mean, minimum of a least-squares parabola or None where it is not inside), `values` by seed.

    Over the seeds that all settings share. Each run of a resample gets the deviation of some run from what its setting and
    its seed (which fixes the order of the data for all of them) explain, scaled to the variance that these leave: with few
    seeds, drawing the seeds themselves again would make the spread too small. A resampled parabola that opens downwards or
    has its minimum outside counts as its lower end.

    Raises:
        ValueError: fewer than three settings, or no seed that all of them have.
    """
    at = finite(x)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values))) if values else []
    if len(at) < 3 or not seeds:
        raise ValueError("an optimum needs three settings and a seed that all of them have")
    y = np.array([[by_seed[seed] for by_seed in values] for seed in seeds], float)
    (n, k), mean = y.shape, y.mean(0)
    best, (vertex, inside) = float(at[mean.argmin()]), _vertex(at, mean[None])
    if n < 2:
        return Interval(best, math.nan, math.nan, n, "one seed"), _inside(vertex, inside, math.nan, math.nan, n, "one seed")
    left = (y - mean - y.mean(1, keepdims=True) + y.mean()) * math.sqrt(n * k / ((n - 1) * (k - 1)))
    drawn = mean + np.random.default_rng(0).choice(left.ravel(), (RESAMPLES, n, k)).mean(1)
    ends = [0.5 - confidence / 2, 0.5 + confidence / 2]
    low, high = np.quantile(at[drawn.argmin(1)], ends, method="inverted_cdf")
    span = np.quantile(_vertex(at, drawn)[0], ends)
    found = Interval(best, float(low), float(high), n, "seed bootstrap")
    return found, _inside(vertex, inside, float(span[0]), float(span[1]), n, "seed bootstrap")


def _vertex(at: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where parabolas through rows of y have their minimum between the ends of `at`, and whether it is inside."""
    a, b, _ = np.linalg.pinv(np.vander(at, 3)) @ y.T
    low, high = at.min(), at.max()
    vertex = np.divide(-b, 2 * a, out=np.full_like(a, np.inf), where=a > 0)
    inside = (vertex > low) & (vertex < high)
    lower = np.where(a * high**2 + b * high < a * low**2 + b * low, high, low)
    return np.where(inside, vertex, lower), inside


def _inside(vertex: np.ndarray, inside: np.ndarray, low: float, high: float, n: int, method: str) -> Interval | None:
    return Interval(float(vertex[0]), low, high, n, method) if inside[0] else None
