"""Losses against each other: differences paired by seed, and what one seed is worth."""

from collections.abc import Iterable

import pandas as pd

from evals import stats
from evals.stats.pairs import apart
from reports.page import Results


def by_seed(runs: pd.DataFrame, loss: str = "test_loss") -> dict[int, float]:
    """Loss of finished runs, keyed by seed."""
    runs = runs[runs[loss].notna()]
    return dict(zip(runs["seed"], runs[loss], strict=True))


def seed_noise(results: Results) -> stats.Noise | None:
    """What a loss of the comparison varies by if only the seed changes; None if no seed was repeated."""
    grid = results.grid
    cells = {"config": grid["arch"] + " " + grid["size"], "seed": grid["seed"], "block": grid["size"]}
    return stats.noise(pd.DataFrame(cells | {"value": grid["test_loss"]}))


def contrast(results: Results, left: pd.DataFrame, right: pd.DataFrame, loss: str = "test_loss") -> stats.Interval | None:
    """Loss of some runs minus that of others, with the t interval of the seeds they share.

    Of one seed the interval is that of the comparison's pooled seed noise, if it has any; None if a side has no loss.
    """
    one, other = by_seed(left, loss), by_seed(right, loss)
    if not one or not other:
        return None
    found = stats.difference(one, other)
    return found if found.bounded else apart(one, other, seed_noise(results))


def runs_of(results: Results, names: Iterable[str]) -> pd.DataFrame:
    """The rows of `runs` of some names, those that are there."""
    return results.runs[results.runs["run"].isin(list(names))]
