"""Which runs a law is fitted to, and their losses resampled over seeds.

Points are test losses at the end of a schedule of the run's own, one for each run; nothing is read off a curve. Left out, and
named, are runs without one and runs on other data than most. A bootstrap draws seeds anew within every cell (runs that
differ by nothing but the seed), in log L. Deviations from a cell's mean are stretched by sqrt(n / (n - 1)), without which
three seeds would give intervals a fifth too narrow; a cell of one seed takes the deviation of some run of the repeated
ones. Cells of one size and number of tokens draw the same seeds, for these saw the same batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

RESAMPLES = 200
TOKENS, SPARSITY = "scaling_tokens", "sparsity"


@dataclass(frozen=True)
class Series:
    """Runs of one law: `x` (runs, axes), `losses` (1 + resamples, runs), the first row as measured."""

    runs: pd.DataFrame
    x: pd.DataFrame
    losses: np.ndarray
    left_out: tuple[str, ...] = ()
    repeated: bool = True

    @property
    def arch(self) -> str:
        return self.runs["arch"].iloc[0]

    def where(self, kept: np.ndarray) -> Series:
        return Series(self.runs[kept], self.x[kept], self.losses[:, kept], self.left_out, self.repeated)


class Points:
    """The usable runs of a results folder (`runs`, by name) and everything that is fitted to them.

    Args:
        runs, arms: tables; without arms there are no chains.
        resamples: of the bootstrap, drawn by `seed`.
    """

    def __init__(self, runs: pd.DataFrame, arms: pd.DataFrame | None = None, resamples: int = RESAMPLES, seed: int = 0):
        every = runs.drop_duplicates("run").set_index("run", drop=False).rename_axis(None)
        every["cell"] = every["run"].str.replace(r"-s\d+$", "", regex=True)
        done = (every["status"] == "finished") & every["test_loss"].notna() & every["tokens"].notna()
        common = every.loc[done, "data_sha"].mode()
        same = every["data_sha"].isin(common[:1])
        self.every, self.arms = every, arms
        self.why_not = dict.fromkeys(every.index[~done], "no test loss") | dict.fromkeys(
            every.index[done & ~same], "other data"
        )
        self.runs = every[done & same]
        self.losses = resampled(self.runs, resamples, seed)

    @cached_property
    def named(self) -> pd.Series:
        every = self.every
        return every["run"] == every["arch"] + "-" + every["size"] + "-s" + every["seed"].astype(str)

    @cached_property
    def archs(self) -> list[str]:
        return list(dict.fromkeys(self.runs["arch"][self.named[self.runs.index]]))

    @cached_property
    def repeated(self) -> bool:
        """Whether any seed was repeated: without, nothing has an interval."""
        return bool(self.runs["cell"].duplicated().any())

    def of(self, names: Iterable[str], x: dict[str, pd.Series], wanted: Iterable[str] = ()) -> Series:
        """A series of the usable ones of `names` (each once), axes from the values by run in `x`.

        Left out are those of `wanted` (by default of `names`) that are not usable.
        """
        names = list(dict.fromkeys(names))
        kept = [name for name in names if name in self.runs.index]
        runs = self.runs.loc[kept]
        frame = pd.DataFrame({axis: values[kept].astype(float) for axis, values in x.items()}, index=kept)
        losses = self.losses[:, self.runs.index.get_indexer(kept)]
        left_out = tuple(f"{name} ({self.why_not[name]})" for name in (list(wanted) or names) if name in self.why_not)
        return Series(runs, frame, losses, left_out, self.repeated)

    def grid(self, arch: str) -> list[str]:
        """Names of an architecture's runs in the comparison, usable or not."""
        return list(self.every.index[self.named & (self.every["arch"] == arch)])

    def chain(self, name: str) -> pd.DataFrame:
        """Rows of `arms` of one chain whose runs are known, a run once, with `arch` and `line`: its label up to a comma."""
        if self.arms is None:
            return pd.DataFrame(columns=["run", "label", "step", "arch", "line"])
        arms = self.arms[(self.arms["chain"] == name) & self.arms["run"].isin(self.every.index)].drop_duplicates("run")
        arms = arms.assign(arch=self.every["arch"][arms["run"]].to_numpy())
        return arms.assign(line=[label.rpartition(",")[0].partition(",")[0] for label in arms["label"]])


def resampled(runs: pd.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """Losses (1 + resamples, runs), the first row as measured, of a frame with cell, size, tokens, seed and test_loss."""
    logs = np.log(runs["test_loss"].to_numpy(float))
    groups = pd.Series(logs).groupby(runs["cell"].to_numpy())
    count, apart = groups.transform("size").to_numpy(), logs - groups.transform("mean").to_numpy()
    stretched = np.where(count > 1, apart * np.sqrt(count / np.maximum(count - 1, 1)), 0.0)
    pool = stretched[count > 1] if (count > 1).any() else np.zeros(1)
    drawn = np.repeat(logs[None], 1 + resamples, 0)
    blocks = runs["size"] + " " + runs["tokens"].astype("int64").astype(str)
    for cell, places in pd.Series(np.arange(len(runs))).groupby(runs["cell"].to_numpy()):
        here = places.to_numpy()[np.argsort(runs["seed"].to_numpy()[places])]
        rng = np.random.default_rng([seed, zlib.crc32(blocks.iloc[here[0]].encode())])
        chance = rng.random((resamples, 64))[:, : len(here)]  # a row of draws does not depend on the number of seeds
        if len(here) > 1:
            drawn[1:, here] = logs[here].mean() + stretched[here][(chance * len(here)).astype(int)]
        else:
            rng = np.random.default_rng([seed, zlib.crc32(str(cell).encode())])
            drawn[1:, here] = logs[here] + rng.choice(pool, (resamples, 1))
    return np.exp(drawn)
