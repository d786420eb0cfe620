"""Straight lines y = a - b log10(x) through losses by seed: the slope, what it explains, and their intervals.

`slope` is the descent along a path of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from evals.stats.fits import NotALaw, too_few
from evals.stats.intervals import Interval, finite, t_interval
from evals.stats.seeds import Noise, Term, contrast, noise

RESAMPLES = 10_000


def line_weights(x: Sequence[float], line: Sequence[Hashable] | None = None) -> np.ndarray:
    """Weights w of the points such that sum(w * y) is b of y = a - b log10(x), least squares, one a for each line, b shared."""
    points = pd.DataFrame({"x": np.log10(finite(x)), "line": 0 if line is None else list(line)})
    centred = points.x - points.groupby("line").x.transform("mean")
    return (-centred / (centred**2).sum()).to_numpy()


def line_r2(x: Sequence[float], y: np.ndarray, line: Sequence[Hashable] | None = None) -> np.ndarray:
    """Share of the variance within lines that y = a - b log10(x) explains (one a for each line); y is (..., points)."""
    points = pd.DataFrame({"x": np.log10(finite(x)), "line": 0 if line is None else list(line)})
    y = np.asarray(y, float)
    within = np.eye(len(points)) - (same := (points.line.to_numpy()[:, None] == points.line.to_numpy())) / same.sum(1)
    x_in, y_in = within @ points.x.to_numpy(), y @ within.T
    total = (y_in**2).sum(-1)
    return np.divide((y_in @ x_in) ** 2 / (x_in @ x_in), total, out=np.ones_like(total), where=total > 0)


def line_slope(
    x: Sequence[float],
    values: Sequence[Mapping[int, float]],
    blocks: Sequence[Hashable],
    line: Sequence[Hashable] | None = None,
    seed_noise: Noise | None = None,
) -> Interval:
    """b of y = a - b log10(x) through the means of `values` (by seed) at each x, one a for each line, with its interval.

    The interval is that of `contrast` (method "seed noise"), or, where no seed was repeated, the t interval of what the
    lines leave ("residuals of the line"). `n` counts seeds.
    """
    weights = line_weights(x, line)
    terms = [Term(w, by_seed, block) for w, by_seed, block in zip(weights, values, blocks, strict=True)]
    found = contrast(terms, seed_noise)
    if found.bounded:
        return replace(found, method="seed noise")
    y, method = np.array([np.mean(list(by_seed.values())) for by_seed in values]), "residuals of the line"
    freedom = len(y) - len(set([0] if line is None else line)) - 1
    if freedom < 1:
        return replace(found, method=method)
    points = pd.DataFrame({"x": np.log10(finite(x)), "y": y, "line": 0 if line is None else list(line)})
    left = points.y + found.value * points.x
    left -= left.groupby(points.line).transform("mean")
    error = math.sqrt(float((left**2).sum()) / freedom * float((weights**2).sum()))
    return replace(t_interval(found.value, error, 1, freedom, method), n=found.n)


def line_r2_interval(
    x: Sequence[float],
    values: Sequence[Mapping[int, float]],
    line: Sequence[Hashable] | None = None,
    seed_noise: Noise | None = None,
    level: float = 0.95,
) -> Interval:
    """`line_r2` of the means of `values`, its interval by bootstrap: every run gets the deviation of some repeated seed."""
    y = np.array([np.mean(list(by_seed.values())) for by_seed in values])
    r2, n = float(line_r2(x, y, line)), min(map(len, values))
    if seed_noise is None:
        return Interval(r2, math.nan, math.nan, n, "one seed")
    rng = np.random.default_rng(0)
    moved = [rng.choice(seed_noise.deviations, (RESAMPLES, len(by_seed))).mean(axis=1) for by_seed in values]
    low, high = np.quantile(line_r2(x, y + np.stack(moved, axis=1), line), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(r2, float(low), float(high), n, "seed bootstrap")


def slope(
    runs: pd.DataFrame, seed_noise: Noise | None = None, y: str = "test_loss", x: str = "active_params"
) -> Interval | NotALaw:
    """Loss gained by ten times the activated parameters along a path of sizes, with its 95 % interval: b of y = a - b log10(x).

    Tokens may move with the size (they do in the presets), so this is the slope of that compute path and of no other.
    The fit is through the mean of each size. Where seeds are repeated (here, or in the runs behind `seed_noise`), the
    interval is what other seeds of the same sizes would give; else it is the t interval of what the line leaves.

    Args:
        runs: runs of one architecture, with columns `x`, `y` and seed.
        seed_noise: from more runs than these; by default from these alone.

    Returns:
        The interval, `n` the number of sizes and `method` one of "seed noise" and "residuals of the line"; `NotALaw` with
        fewer than four sizes.
    """
    runs = runs.dropna(subset=[x, y])
    sizes = {float(at): dict(zip(here.seed, here[y], strict=True)) for at, here in runs.groupby(x)}
    if problem := too_few(list(sizes)):
        return problem
    if seed_noise is None:
        seed_noise = noise(pd.DataFrame({"config": runs[x], "seed": runs.seed, "block": runs[x], "value": runs[y]}))
    found = line_slope(list(sizes), list(sizes.values()), list(sizes), seed_noise=seed_noise)
    return replace(found, n=len(sizes))


def slopes(runs: pd.DataFrame, y: str = "test_loss") -> dict[str, Interval | NotALaw]:
    """`slope` of every architecture of the comparison's runs, with the seed noise of all of them together."""
    cells = pd.DataFrame({"config": runs.arch + " " + runs["size"], "seed": runs.seed, "block": runs["size"], "value": runs[y]})
    pooled = noise(cells)
    return {arch: slope(here, pooled, y) for arch, here in runs.groupby("arch", sort=False)}
