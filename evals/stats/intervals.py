"""Means, differences and shares with their intervals.

Seeds fix the order of the data, so two architectures trained with one seed saw the same batches: their difference is
taken seed by seed (paired), which removes the part of the noise that both share. Where no two seeds match, the means
are compared (Welch). One seed gives a number and no interval, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as distributions


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `low` and `high` are NaN where `n` values allow none.

    `n` counts pairs (paired), the smaller group (Welch) or values, and `method` says which. `spread` is the standard
    deviation of the value where each seed is run once, so that n seeds give `spread` / sqrt(n), and `freedom` the degrees
    of freedom it was estimated with; both NaN if unknown.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    spread: float = math.nan
    freedom: float = math.nan

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with its t interval."""
    x = finite(values)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan, len(x), "one value")
    return t_interval(float(x.mean()), float(x.std(ddof=1)), len(x), len(x) - 1, "t", level)


def t_interval(value: float, spread: float, n: float, freedom: float, method: str, level: float = 0.95) -> Interval:
    """`value` with the t interval of n values whose standard deviation is `spread`."""
    half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * spread / math.sqrt(n)
    return Interval(value, value - half, value + half, int(n), method, spread, freedom)


def difference(left: Mapping[int, float], right: Mapping[int, float], level: float = 0.95) -> Interval:
    """Mean of left minus right, both keyed by seed: paired over shared seeds, Welch if fewer than two are shared.

    Raises:
        ValueError: a side is empty, or a value is not finite.
    """
    if not left or not right:
        raise ValueError("a difference needs at least one value on each side")
    shared = sorted(left.keys() & right.keys())
    if len(shared) >= 2:
        return replace(mean([left[seed] - right[seed] for seed in shared], level), method="paired t")
    if len(left) >= 2 and len(right) >= 2:
        return _welch(finite(left.values()), finite(right.values()), level)
    if shared:
        (seed,) = shared
        value = float(finite([left[seed] - right[seed]])[0])
        return Interval(value, math.nan, math.nan, 1, "one pair")
    value = float(finite(left.values()).mean() - finite(right.values()).mean())
    return Interval(value, math.nan, math.nan, 1, "unpaired, one value")


def _welch(left: np.ndarray, right: np.ndarray, level: float) -> Interval:
    variances = np.array([left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)])
    value = float(left.mean() - right.mean())
    n = min(len(left), len(right))
    if variances.sum() == 0:
        return Interval(value, value, value, n, "Welch")
    freedom = variances.sum() ** 2 / (variances**2 / np.array([len(left) - 1, len(right) - 1])).sum()
    return t_interval(value, math.sqrt(n * variances.sum()), n, float(freedom), "Welch", level)


def share(value: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of n trials, inside [0, 1]; too wide where a trial is itself a mean of picks."""
    hits, tail = value * n, 0.5 - level / 2
    low = float(distributions.beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    return low, float(distributions.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0


def finite(values: Iterable[float]) -> np.ndarray:
    """The values as an array; ValueError if there are none or one is not finite."""
    x = np.asarray(list(values), float)
    if not len(x):
        raise ValueError("no values")
    if not np.isfinite(x).all():
        raise ValueError("a value is not a finite number")
    return x
