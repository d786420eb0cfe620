"""What the seed does to a loss, and contrasts of losses in its light.

Losses of single runs are compared by `contrast`: a weighted sum whose standard error is that of its own coefficients and
of the seed `Noise`, which is pooled over every config that was run with two seeds or more. Nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats as distributions

from evals.stats.intervals import Interval, finite, t_interval

TIE = 0.02  # nats; of one seed's noise: tuned settings whose losses are this close are not told apart
MIN_PAIRED = 2  # degrees of freedom below which the paired variance is not used


@dataclass(frozen=True)
class Noise:
    """What a loss varies by if only the seed changes, from configs that were run with two seeds or more.

    Args:
        variance: of one run about the mean of its config, pooled over configs.
        freedom: degrees of freedom of `variance`: runs less configs.
        paired: variance that is left once what a seed does to all configs of a block alike is taken out; two runs of one
            seed and block differ by twice this.
        paired_freedom: its degrees of freedom.
        deviations: from the mean of its config, one for each run, scaled to have the pooled variance.
    """

    variance: float
    freedom: int
    paired: float
    paired_freedom: int
    deviations: np.ndarray = field(repr=False, compare=False)


def noise(runs: pd.DataFrame) -> Noise | None:
    """Seed noise of `value` over the rows of a frame with columns config, seed, block, value; None if no seed was repeated.

    A block is what shares its order of data seed by seed: runs of one size and number of tokens.
    """
    again = runs.dropna(subset=["value"])
    again = again[again.groupby("config").value.transform("size") > 1]
    if again.empty:
        return None
    cells = again.groupby("config").value
    count, apart = cells.transform("size"), again.value - cells.transform("mean")
    freedom = len(again) - again.config.nunique()
    squares, paired_freedom = 0.0, 0
    for _, block in again.groupby("block", dropna=False):
        if block.config.nunique() < 2:
            continue
        design = pd.get_dummies(block[["config", "seed"]].astype(str), dtype=float).to_numpy()
        fitted, _, rank, _ = np.linalg.lstsq(design, block.value.to_numpy(float), rcond=None)
        squares += float(((block.value.to_numpy(float) - design @ fitted) ** 2).sum())
        paired_freedom += len(block) - int(rank)
    return Noise(
        variance=float((apart**2).sum()) / freedom,
        freedom=freedom,
        paired=squares / paired_freedom if paired_freedom else math.nan,
        paired_freedom=paired_freedom,
        deviations=(apart * np.sqrt(count / (count - 1))).to_numpy(float),
    )


@dataclass(frozen=True)
class Term:
    """One config of a contrast: its weight, its values by seed, and the block that pairs it (see `noise`)."""

    weight: float
    values: Mapping[int, float]
    block: Hashable = None


def contrast(terms: Sequence[Term], seed_noise: Noise | None, level: float = 0.95) -> Interval:
    """Weighted sum of the means of configs, its standard error that of the weights: sqrt(variance * sum(w^2 / n)).

    Where the weights of every block sum to zero, the sum is taken seed by seed over the seeds that all terms share, and the
    paired variance is used. The t quantile has the noise's degrees of freedom. `n` counts the pairs, or the seeds of the
    term that has fewest; without noise there is no interval. ValueError: a term without a value.
    """
    values = [{seed: float(x) for seed, x in term.values.items()} for term in terms]
    if not values or not all(values):
        raise ValueError("a contrast needs at least one value in each term")
    weights = np.array([term.weight for term in terms], float)
    sums = pd.Series(weights).groupby(pd.Categorical([repr(term.block) for term in terms]), observed=True).sum()
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values)))
    pairs = bool(shared) and bool((sums.abs() < 1e-9 * np.abs(weights).max()).all())
    if pairs:
        values = [{seed: by_seed[seed] for seed in shared} for by_seed in values]
    counts = np.array([len(by_seed) for by_seed in values])
    value, n = float(sum(w * finite(x.values()).mean() for w, x in zip(weights, values, strict=True))), int(counts.min())
    method = "paired by seed" if pairs else "seeds"
    if seed_noise is None:
        return Interval(value, math.nan, math.nan, n, method)
    variance, freedom = seed_noise.variance, seed_noise.freedom
    if pairs and seed_noise.paired_freedom >= MIN_PAIRED:
        variance, freedom = seed_noise.paired, seed_noise.paired_freedom
    return t_interval(value, math.sqrt(n * variance * float((weights**2 / counts).sum())), n, freedom, method, level)


def seeds_needed(effect: float, spread: float, freedom: float, power: float = 0.8, level: float = 0.95) -> int | None:
    """Seeds with which an effect of this size is told from none in `power` of all repetitions; None if either is unknown.

    Args:
        spread: standard deviation of the value for one seed, of `freedom` degrees of freedom.
    """
    if not (math.isfinite(effect) and math.isfinite(spread)) or not effect:
        return None
    if not spread:
        return 2

    def quantiles(n: int) -> float:
        of = max(freedom, n - 1)
        return float(distributions.t.ppf(0.5 + level / 2, of) + distributions.t.ppf(power, of))

    n = max(2, math.floor(((distributions.norm.ppf(0.5 + level / 2) + distributions.norm.ppf(power)) * spread / effect) ** 2))
    while math.sqrt(n) * abs(effect) < quantiles(n) * spread:
        n += 1
    return n
