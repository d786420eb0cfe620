"""Where architectures are ranked by test loss: the largest size at which those compared have two seeds or more each."""

from collections.abc import Container
from dataclasses import dataclass

import pandas as pd

from evals.stats import Interval
from evals.stats.pairs import apart
from reports.contrast import by_seed, seed_noise
from reports.page import Results
from reports.style import look

FEWEST = 2  # seeds of an architecture that is ranked


@dataclass(frozen=True)
class Ranking:
    """Mean test losses of the architectures compared at a size, lowest first; `left_out` have a loss there and too few seeds.

    `seeds` is the smallest number that one of those compared has: 1 where no size has more, which ranks nobody.
    """

    size: str
    means: pd.Series
    left_out: tuple[str, ...]
    seeds: int
    runs: pd.DataFrame

    @property
    def best(self) -> str:
        return self.means.index[0]

    def lowest(self, what: str, among: Container[str] | None = None) -> str | None:
        """The architecture with the lowest loss among those of a role, and `among` some if these are given, if there is one."""
        ours = (arch for arch in self.means.index if among is None or arch in among)
        return next((arch for arch in ours if role(arch) == what), None)

    def gap(self, results: Results, arch: str, other: str) -> Interval:
        """Test loss of an architecture minus another's, paired by seed, the interval that of the pooled noise (`apart`)."""
        left, right = (by_seed(self.runs[self.runs["arch"] == name]) for name in (arch, other))
        return apart(left, right, seed_noise(results))


def role(arch: str) -> str:
    """`dense`, `moe` or `memory`; `other` is none of them and is not ranked."""
    return look(arch).role


def ranking(results: Results) -> Ranking | None:
    """None where no size has a memory and a mixture of experts."""
    for fewest in (FEWEST, 1):
        for size in reversed(results.sizes):
            here = results.grid[results.grid["size"] == size]
            here = here[here["arch"].map(role) != "other"]
            seeds = here.groupby("arch")["seed"].nunique()
            compared = seeds[seeds >= fewest]
            if {"moe", "memory"} <= set(map(role, compared.index)):
                runs = here[here["arch"].isin(compared.index)]
                means = runs.groupby("arch")["test_loss"].mean().sort_values(kind="stable")
                return Ranking(size, means, tuple(sorted(set(seeds.index) - set(compared.index))), int(compared.min()), runs)
    return None


def leaders(results: Results, best: str) -> pd.DataFrame:
    """Who has the lowest mean test loss at each size with a mixture of experts and a memory: a row for each size.

    Columns: `size`, `arch`, the fewest `seeds` of one there, and whether it is `told` apart from `best`: both have two seeds
    or more there and the interval of their difference leaves out zero.
    """
    found = []
    for size in results.sizes:
        here = results.grid[(results.grid["size"] == size) & (results.grid["arch"].map(role) != "other")]
        if not {"moe", "memory"} <= set(map(role, here["arch"])):
            continue
        cells = here.groupby("arch")
        first, seeds = cells["test_loss"].mean().idxmin(), cells["seed"].nunique()
        told = False
        if first != best and min(seeds[first], seeds.get(best, 0)) >= FEWEST:
            left, right = (by_seed(here[here["arch"] == name]) for name in (best, first))
            told = apart(left, right, seed_noise(results)).low > 0
        found.append((size, first, int(seeds.min()), told))
    return pd.DataFrame(found, columns=["size", "arch", "seeds", "told"])
