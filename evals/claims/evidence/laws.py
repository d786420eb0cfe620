"""Scaling laws of losses over the arms of a chain."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from evals import stats
from evals.claims.evidence.losses import by_seed
from evals.claims.evidence.results import Evidence, NotTested, Results, block, metric, of_seeds


class Law(NamedTuple):
    """Points of loss = a - b log10(x): x, losses by seed, block and line of each, and the runs behind them."""

    x: list[float]
    losses: list[dict[int, float]]
    blocks: list[str]
    lines: list[str]
    runs: tuple[str, ...]

    @property
    def note(self) -> str:
        lines = list(dict.fromkeys(filter(None, self.lines)))
        return f"{len(lines)} lines with one slope: {', '.join(lines)}" if len(lines) > 1 else ""


def _law(results: Results, chain: str, arch: str, x: str) -> Law:
    """The arms of one architecture as points of a law.

    Lines of a chain (densities) are told apart by the text of their labels up to a comma; each has a height of its own and
    all have one slope.
    """
    arms = results.table("arms")
    labels = arms[arms.chain == chain].drop_duplicates("run").set_index("run").label
    found = results.runs[results.runs.run.isin(labels.index) & (results.runs.arch == arch)].dropna(subset=["test_loss"])
    if found.empty:
        raise NotTested(f"no {arch} arm of {chain} was run: snakemake ablation_{chain}")
    found = found.assign(label=labels[found.run], x=found[x].astype(float))
    found["line"] = found.label.where(found.label.str.contains(","), "").str.partition(",")[0]
    for name, line in found.groupby("line"):
        if problem := stats.too_few(line.x):
            raise NotTested(f"{arch} in {chain}{f', {name}' if name else ''}: {problem.statement}")
    points = [here for _, here in found.groupby(["line", "label"])]
    return Law(
        [here.x.iloc[0] for here in points],
        [by_seed(here.set_index("seed")) for here in points],
        [block(here).iloc[0] for here in points],
        [here.line.iloc[0] for here in points],
        (*found.run,),
    )


def _of_points(interval: stats.Interval, points: int, runs: Iterable[str], note: str = "") -> Evidence:
    return replace(of_seeds(interval, runs, note), kind="points", n=points)


@metric
def law_slope(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """b of loss = a - b log10(x): nats gained by ten times as much."""
    law = _law(results, chain, arch, x)
    slope = stats.line_slope(law.x, law.losses, law.blocks, law.lines, results.noise())
    return _of_points(slope, len(law.x), law.runs, "; ".join(filter(None, (slope.method, law.note))))


@metric
def law_r2(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """R² of loss = a - b log10(x), its interval by a bootstrap over seeds."""
    law = _law(results, chain, arch, x)
    found = stats.line_r2_interval(law.x, law.losses, law.lines, results.noise())
    return _of_points(found, len(law.x), law.runs, "; ".join(filter(None, (found.method, law.note))))


@metric
def law_slope_gap(results: Results, chain: str, of: str, against: str, x: str = "sparse_params") -> Evidence:
    """Slope of one architecture's line minus another's, a contrast of all runs of both.

    Where no seed was repeated, the errors of both, from what the lines leave, are taken as independent.
    """
    left, right = _law(results, chain, of, x), _law(results, chain, against, x)
    weights = [*stats.line_weights(left.x, left.lines), *-stats.line_weights(right.x, right.lines)]
    parts = zip(weights, left.losses + right.losses, left.blocks + right.blocks, strict=True)
    gap = stats.contrast([stats.Term(*part) for part in parts], results.noise())
    points, runs = min(len(left.x), len(right.x)), (*left.runs, *right.runs)
    if gap.bounded:
        return _of_points(gap, points, runs)
    ends = [law_slope(results, chain, arch, x) for arch in (of, against)]
    half = math.hypot(*(end.high - end.value for end in ends))
    return _of_points(replace(gap, low=gap.value - half, high=gap.value + half), points, runs, ends[0].note)
