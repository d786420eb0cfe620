"""What a metric reads and what it returns: the tables of a results folder, and `Evidence`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from evals import stats
from evals.records import schema
from evals.records.errors import UserError


class NotTested(Exception):
    """The results at hand cannot speak to the claim; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """What a metric found.

    Args:
        kind: "seeds" (an interval over training seeds), "items" (over the items of a task), "timings" (p20 to p80),
            "points" (a fit), "counted" (exact) or "modelled" (exact, but of a model of the hardware).
        n: pairs, items, timings or points behind the value.
        runs: the runs it came from.
        scale: what it speaks of, where that is not the runs' own scale.
        seeds: training seeds behind the value; None where nothing was trained for it.
        spread, freedom: standard deviation of the value for one seed each, and its degrees of freedom (`stats.Interval`).
        conservative: the same ratio if the mixture of experts took no longer than its roofline on this machine; its value
            is NaN where the roofline is unknown, and it is None where no mixture of experts is the yardstick.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    kind: str = "seeds"
    note: str = ""
    runs: tuple[str, ...] = ()
    scale: str = ""
    seeds: int | None = None
    spread: float = math.nan
    freedom: float = math.nan
    conservative: Evidence | None = None

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


class Results:
    """The tables of one results folder, each read once; a table that was not made raises `NotTested`."""

    def __init__(self, folder: Path, aliases: dict[str, dict[str, str]] | None = None):
        self.folder, self.aliases = folder, aliases or {}
        self.runs = schema.read(folder / "runs.csv", "runs")
        if self.runs.empty:
            raise UserError(f"{folder / 'runs.csv'} holds no run: train something first")
        self.runs = self.runs[self.runs.status == "finished"].set_index("run", drop=False)
        self.table = cache(self._table)
        self.noise = cache(self._noise)

    def _table(self, name: str) -> pd.DataFrame:
        """One frame of all files of a table: measured and modelled latencies stand in two."""
        stems = (name, "latency_modelled") if name == "latency" else (name,)
        paths = [path for stem in stems if (path := self.folder / f"{stem}.csv").exists()]
        if not paths:
            raise NotTested(f"{name}.csv was not made here")
        return pd.concat([schema.read(path, name) for path in paths], ignore_index=True)

    def _noise(self, column: str = "test_loss") -> stats.Noise | None:
        """Seed noise of a column of the runs, pooled over every config with two seeds or more; None without any."""
        runs = self.runs
        config = runs.run.str.replace(r"-s\d+$", "", regex=True)
        return stats.noise(pd.DataFrame({"config": config, "seed": runs.seed, "block": block(runs), "value": runs[column]}))

    def _plain(self, arch: str) -> pd.DataFrame:
        runs = self.runs
        plain = runs[(runs.arch == arch) & (runs.run == runs.arch + "-" + runs["size"] + "-s" + runs.seed.astype(str))]
        if plain.empty:
            raise NotTested(f"no finished {arch} run in the grid")
        return plain

    def sizes(self, archs: Iterable[str], at_least: int = 1) -> list[str]:
        """Sizes of the grid that all of `archs` have, by width: those with the most seeds, or all if these are too few."""
        seeds = pd.concat([self._plain(arch).groupby("size").seed.nunique() for arch in archs], axis=1, join="inner").min(
            axis=1
        )
        width = self.runs.groupby("size").d_model.first()
        order = sorted(seeds.index, key=lambda size: (width[size], size))
        most = [size for size in order if seeds[size] == seeds.max()]
        return most if len(most) >= at_least else order

    def grid(self, arch: str, size: str) -> pd.DataFrame:
        """Runs of the main grid by seed. `size` is a name in any case, or smallest or largest."""
        plain = self._plain(arch)
        if size in ("smallest", "largest"):
            order = plain.groupby("size").d_model.first().sort_values(kind="stable").index
            size = order[0] if size == "smallest" else order[-1]
        found = plain[plain["size"].str.lower() == size.lower()]
        if found.empty:
            raise NotTested(f"no finished {arch} run of size {size}")
        return found.set_index("seed", drop=False)

    def arm(self, chain: str, name: str) -> pd.DataFrame:
        """Runs of one arm by seed; `name` is its step id, its label, or an alias of claims.yaml."""
        name = self.aliases.get(chain, {}).get(name, name)
        arms = self.table("arms")
        arms = arms[(arms.chain == chain) & ((arms.step == name) | (arms.label == name))]
        found = self.runs[self.runs.run.isin(arms.run)]
        if found.empty:
            raise NotTested(f"arm {name!r} of {chain} was not run: snakemake ablation_{chain}")
        return found.set_index("seed", drop=False)

    def scale(self, runs: Iterable[str]) -> str:
        """What the verdict speaks of: sizes, tokens, preset and device of the runs behind it."""
        found = self.runs[self.runs.run.isin(list(runs))]
        if found.empty:
            return ""
        active, tokens = found.active_params / 1e6, found.tokens.astype(float) / 1e6
        return (
            f"{'/'.join(found.preset.unique())}: {_span(active)} M activated parameters, {_span(tokens)} M tokens, "
            f"{found.seed.nunique()} seed(s), {'; '.join(found.device.unique())}"
        )


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def block(runs: pd.DataFrame) -> pd.Series:
    """What pairs runs of one seed: they saw the same batches if size and tokens are the same."""
    return runs["size"] + " " + runs.tokens.astype(str)


METRICS: dict[str, Callable[..., Evidence]] = {}


def metric(function: Callable[..., Evidence]) -> Callable[..., Evidence]:
    """Registers a function under its name, by which claims.yaml asks for it."""
    METRICS[function.__name__] = function
    return function


def of_seeds(interval: stats.Interval, runs: Iterable[str], note: str = "") -> Evidence:
    """An interval over training seeds."""
    found = Evidence(interval.value, interval.low, interval.high, interval.n, "seeds", note, tuple(runs), seeds=interval.n)
    return replace(found, spread=interval.spread, freedom=interval.freedom)


def exact(value: float, kind: str, note: str = "", runs: tuple[str, ...] = (), scale: str = "") -> Evidence:
    """A number without noise, `kind` "counted" or "modelled"."""
    return Evidence(float(value), float(value), float(value), None, kind, note, runs, scale)
