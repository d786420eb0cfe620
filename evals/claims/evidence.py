"""Evidence for claims: what the tables of a results folder say about a loss, a score, a time or a count.

Every function marked `metric` can be named in claims.yaml. It returns `Evidence`: a value, an interval where the
results carry one, and the runs behind it; or it raises `NotTested` with the reason. Differences are left minus right,
losses (`test_loss`) in nats, scores in points, paired by seed. Intervals of losses come from seed noise pooled over every
config that was run with several seeds (`stats.noise`), those of other quantities from their own repeated seeds.

Nothing here needs a model or torch to be imported but the metrics of the papers' models, so the report can use `speedups`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from evals import stats
from evals.records import schema
from evals.records.errors import UserError

REFERENCE = Path(__file__).with_name("reference")
SCORES = ("acc", "len_norm")  # a task has one of them
CACHED = 6.4e7  # bytes: a step that reads less is no test of memory access
DTYPE = "bf16"  # what the papers decode in; others stand beside


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
        return stats.noise(pd.DataFrame({"config": config, "seed": runs.seed, "block": _block(runs), "value": runs[column]}))

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


METRICS: dict[str, Callable[..., Evidence]] = {}


def metric(function: Callable[..., Evidence]) -> Callable[..., Evidence]:
    METRICS[function.__name__] = function
    return function


def _block(runs: pd.DataFrame) -> pd.Series:
    """What pairs runs of one seed: they saw the same batches if size and tokens are the same."""
    return runs["size"] + " " + runs.tokens.astype(str)


def _losses(runs: pd.DataFrame, column: str = "test_loss") -> dict[int, float]:
    return runs[column].dropna().to_dict()


def _term(weight: float, runs: pd.DataFrame, column: str = "test_loss") -> stats.Term:
    losses = _losses(runs, column)
    if not losses:
        raise NotTested(f"no {column} of {', '.join(runs.run)}")
    return stats.Term(weight, losses, _block(runs).iloc[0])


def _seeds(interval: stats.Interval, runs: Iterable[str], note: str = "") -> Evidence:
    found = Evidence(interval.value, interval.low, interval.high, interval.n, "seeds", note, tuple(runs), seeds=interval.n)
    return replace(found, spread=interval.spread, freedom=interval.freedom)


def _points(interval: stats.Interval, points: int, runs: Iterable[str], note: str = "") -> Evidence:
    return replace(_seeds(interval, runs, note), kind="points", n=points)


@metric
def loss_gap(results: Results, of: str, against: str, size: str = "", against_size: str = "") -> Evidence:
    """Test loss of one architecture minus another's, in nats, paired by seed, in the main grid.

    Without a size, the largest of those that both have with the most seeds; smallest and largest are of those too.
    """
    if size in ("smallest", "largest"):
        ends = {name: end for end, name in zip((0, -1), ("smallest", "largest"), strict=True)}
        sizes = results.sizes([of, against], 2)
        size, against_size = sizes[ends[size]], sizes[ends[against_size]] if against_size in ends else against_size
    elif not size:
        sizes = results.sizes([of, against])
        if not sizes:
            raise NotTested(f"no size of the grid has both {of} and {against}")
        size = sizes[-1]
    left, right = results.grid(of, size), results.grid(against, against_size or size)
    flops = left.flops_per_token.mean() / right.flops_per_token.mean()
    gap = stats.contrast([_term(1, left), _term(-1, right)], results.noise())
    return _seeds(gap, [*left.run, *right.run], f"FLOPs ratio {flops:.2f}")


@metric
def gap_change(results: Results, of: str, against: str) -> Evidence:
    """The loss gap at the largest size minus that at the smallest; negative means gaining with scale."""
    sizes = results.sizes([of, against], 2)
    if len(sizes) < 2:
        raise NotTested(f"needs {of} and {against} at two sizes")
    corners = ((1, of, -1), (-1, against, -1), (-1, of, 0), (1, against, 0))
    runs = [(sign, results.grid(arch, sizes[end])) for sign, arch, end in corners]
    gap = stats.contrast([_term(sign, found) for sign, found in runs], results.noise())
    return _seeds(gap, [run for _, found in runs for run in found.run], f"{sizes[0]} to {sizes[-1]}")


@metric
def contrast(results: Results, chain: str, weights: dict[str, float], column: str = "test_loss") -> Evidence:
    """Weighted sum of the losses of arms, by seed: {arm: 1, other: -1} is what the arm changes, in nats."""
    arms = {name: results.arm(chain, name) for name in weights}
    terms = [_term(weight, arms[name], column) for name, weight in weights.items()]
    return _seeds(stats.contrast(terms, results.noise(column)), [run for runs in arms.values() for run in runs.run])


@metric
def best_arm(results: Results, chain: str, arms: list[str], column: str, factor: float = 1.0) -> Evidence:
    """What the arm with the lowest loss has in `column` of its runs; the interval spans arms that are not clearly worse."""
    runs = {name: results.arm(chain, name) for name in arms}
    settings = {name: factor * float(found[column].mean()) for name, found in runs.items()}
    losses = {name: _losses(found) for name, found in runs.items()}
    means = {name: np.mean(list(values.values())) for name, values in losses.items()}
    best = min(means, key=means.get)
    close = []
    for name, found in runs.items():
        gap = stats.contrast([_term(1, found), _term(-1, runs[best])], results.noise())
        if name == best or not gap.bounded or gap.low <= 0:
            close.append(settings[name])
    n = min(len(values) for values in losses.values())
    tried = ", ".join(f"{value:.3g}" for value in sorted(settings.values()))
    note = f"tried {tried}; interval: settings not clearly worse"
    behind = tuple(run for found in runs.values() for run in found.run)
    return Evidence(settings[best], min(close), max(close), n, "seeds", note, behind, seeds=n)


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
        if isinstance(problem := stats.log_linear(line.x, line.test_loss), stats.NotALaw):
            raise NotTested(f"{arch} in {chain}{f', {name}' if name else ''}: {problem.statement}")
    points = [here for _, here in found.groupby(["line", "label"])]
    return Law(
        [here.x.iloc[0] for here in points],
        [_losses(here.set_index("seed")) for here in points],
        [_block(here).iloc[0] for here in points],
        [here.line.iloc[0] for here in points],
        (*found.run,),
    )


@metric
def law_slope(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """b of loss = a - b log10(x): nats gained by ten times as much."""
    law = _law(results, chain, arch, x)
    slope = stats.line_slope(law.x, law.losses, law.blocks, law.lines, results.noise())
    return _points(slope, len(law.x), law.runs, "; ".join(filter(None, (slope.method, law.note))))


@metric
def law_r2(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """R² of loss = a - b log10(x), its interval by a bootstrap over seeds."""
    law = _law(results, chain, arch, x)
    found = stats.line_r2_interval(law.x, law.losses, law.lines, results.noise())
    return _points(found, len(law.x), law.runs, "; ".join(filter(None, (found.method, law.note))))


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
        return _points(gap, points, runs)
    ends = [law_slope(results, chain, arch, x) for arch in (of, against)]
    half = math.hypot(*(end.high - end.value for end in ends))
    return _points(replace(gap, low=gap.value - half, high=gap.value + half), points, runs, ends[0].note)


@metric
def loss_jump(results: Results, chain: str, of: str, against: str, skip: float = 0.1) -> Evidence:
    """Largest rise of the training loss above its running minimum after `skip` of the run: one arm minus another."""
    train = results.table("train")
    sides = []
    for name in (of, against):
        runs, rise = results.arm(chain, name), {}
        for seed, run_id in runs.run.items():
            curve = train[(train.run == run_id) & (train.split == "train")].sort_values("step")
            curve = curve[curve.step > skip * curve.step.max()].loss.to_numpy()
            if len(curve):
                rise[seed] = float((curve - np.minimum.accumulate(curve)).max())
        sides.append((runs, rise))
    (left, a), (right, b) = sides
    if not a or not b:
        raise NotTested("no training curve")
    return _seeds(stats.difference(a, b), [*left.run, *right.run])


@metric
def health(results: Results, arch: str, name: str, reduce: str = "mean", of_tokens: bool = False) -> Evidence:
    """A health metric at the end of the grid runs of one architecture: mean or max over layers.

    Args:
        of_tokens: the metric is a recall, so its interval is at least the exact one of a share of the tokens it was
            measured on in each layer and run, and stays within 0 and 1.
    """
    runs = results.grid(arch, results.sizes([arch])[-1])
    table = results.table("health")
    table = table[(table.metric == name) & table.run.isin(runs.run)]
    if table.empty:
        raise NotTested(f"health.csv has no {name} for {arch}")
    last = table[table.step == table.groupby("run").step.transform("max")]
    values = last.groupby("run").value.agg(reduce)
    found = _seeds(stats.mean(values), values.index)
    if not of_tokens:
        return found
    from models.memory import recall_tokens

    matched = results.table("matched_compute")
    keys = matched[(matched.arch == arch) & (matched["size"] == runs["size"].iloc[0])].n_keys.dropna()
    if keys.empty:
        raise NotTested(f"matched_compute.csv has no n_keys of {arch}")
    n = len(last) * recall_tokens(int(keys.iloc[0]))
    low, high = stats.share(found.value, n)
    if found.bounded:
        low, high = max(0.0, min(low, found.low)), min(1.0, max(high, found.high))
    return replace(found, low=low, high=high, note=f"at least the interval of a share of {n} tokens")


@metric
def health_growth(results: Results, chain: str, arm: str, name: str) -> Evidence:
    """A health metric's largest value over training divided by its first, worst layer."""
    runs = results.arm(chain, arm)
    table = results.table("health")
    table = table[(table.metric == name) & table.run.isin(runs.run)].sort_values("step")
    if table.empty or table.groupby("run").step.nunique().max() < 2:
        raise NotTested(f"health.csv has no {name} over time for {arm}")
    groups = table.groupby(["run", "layer"]).value
    growth = (groups.max() / groups.first()).groupby("run").max()
    return _seeds(stats.mean(growth), growth.index)


@metric
def score_gap(results: Results, of: str, against: str, tasks: list[str], size: str = "") -> Evidence:
    """Mean accuracy over tasks of one architecture minus another's, in points; over seeds, or over items for one seed.

    A task with a `*` is the mean over all that match.
    """
    table = results.table("evals")
    sides, error, items = [], 0.0, 0
    size = size or (results.sizes([of, against]) or ["largest"])[-1]
    left, right = results.grid(of, size), results.grid(against, size)
    for runs in (left, right):
        scores = {}
        for seed, run_id in runs.run.items():
            rows = table[(table.run == run_id) & table.metric.isin(SCORES)]
            rows = [rows[rows.task.map(lambda name, task=task: fnmatch(name, task))] for task in tasks]
            if any(part.empty for part in rows):
                continue
            scores[seed] = 100 * float(np.mean([part.value.mean() for part in rows]))
            variance = sum((part.stderr.fillna(0) ** 2).sum() / len(part) ** 2 for part in rows) / len(tasks) ** 2
            error = max(error, 100 * math.sqrt(variance))
            items = int(sum(part.n.sum() for part in rows))
        if not scores:
            raise NotTested(f"evals.csv has no accuracy of {', '.join(tasks)} for {runs.arch.iloc[0]}")
        sides.append(scores)
    gap = stats.difference(*sides)
    run_ids = (*left.run, *right.run)
    if gap.bounded:
        return _seeds(gap, run_ids)
    half = 1.96 * math.sqrt(2) * error
    if not half:
        return _seeds(gap, run_ids)
    note = "one seed: the interval is over items and does not hold the noise of training"
    return replace(_seeds(gap, run_ids, note), low=gap.value - half, high=gap.value + half, n=items, kind="items")


def _timings(results: Results, part: str, kv: str | None) -> dict[str, pd.DataFrame]:
    """Measured decode rows by dtype, `DTYPE` first, of one device, size and cache: a GPU's if there is one, the largest."""
    rows = results.table("latency")
    rows = rows[(rows.kind == "measured") & (rows.phase == "decode") & (rows.part == part) & (rows.variant == "plain")]
    if kv is not None:
        rows = rows[rows.kv == kv]
    if rows.empty:
        raise NotTested(f"latency.csv has no measured decode step of part {part}" + (f" with kv {kv}" if kv else ""))
    rows = rows.assign(gpu=rows.device.str.startswith("CUDA"), papers=rows["dtype"] == DTYPE, points=1)
    keys = ["gpu", "papers", "bytes_declared", "points"]
    setting = ["device", "size", "kv", "context", "threads", "dtype"]
    groups = rows.groupby(setting, dropna=False)
    most = {"gpu": "max", "papers": "max", "bytes_declared": "max", "points": "sum"}
    best = groups[keys].agg(most).sort_values(keys, kind="stable")
    if (read := best.bytes_declared.iloc[-1]) < CACHED:
        raise NotTested(f"the models that were timed read at most {read / 1e6:.3g} MB a step, which a cache holds")
    *where, dtype = best.index[-1]
    beside = {name[-1]: groups.get_group(name) for name in best.index if [*map(str, name[:-1])] == [*map(str, where)]}
    return {dtype: beside.pop(dtype)} | beside


def _by_batch(rows: pd.DataFrame, arch: str) -> pd.DataFrame:
    """One row per batch for an architecture, at the sparse ratio measured at most batches."""
    rows = rows[rows.arch == arch]
    if rows.empty:
        raise NotTested(f"latency.csv has no measured decode step of {arch} beside the others")
    ratio = rows.groupby("sparse_ratio").batch.nunique().idxmax()
    return rows[rows.sparse_ratio == ratio].drop_duplicates("batch").set_index("batch", drop=False)


def _time_ratio(left: pd.Series, right: pd.Series, *notes: str) -> Evidence:
    low, high = (left.p20_ms / right.p80_ms, left.p80_ms / right.p20_ms)
    n = None if pd.isna(left.n_iters) else int(left.n_iters)
    runs = tuple(name for name in (left.run, right.run) if name)
    threads = "" if pd.isna(left.threads) else f", {left.threads:g} thread(s)"
    what = "whole model" if left.part == "model" else "feed-forward and memory alone"
    scale = f"size {left['size']}, {what}, {left['dtype']}{threads}, {left.device}"
    return Evidence(left.p50_ms / right.p50_ms, low, high, n, "timings", "; ".join(filter(None, notes)), runs, scale)


def _perfect(row: pd.Series) -> pd.Series:
    """The row of a model that takes its roofline on this machine and no longer."""
    return pd.concat([row.drop(["p20_ms", "p50_ms", "p80_ms"]), pd.Series(dict.fromkeys(TIMES, row.predicted_ms))])


def _distance(row: pd.Series) -> str:
    if pd.isna(row.predicted_ms):
        return f"the roofline of {row.arch} is unknown"
    return f"{row.arch} takes {row.p50_ms / row.predicted_ms:.2f} times its own roofline"


def _beside(found: dict[str, Evidence]) -> Evidence:
    """The first dtype's evidence, with the others' numbers in its note."""
    (_, first), *others = found.items()
    notes = [first.note]
    for dtype, other in others:
        safe = "" if other.conservative is None else f" (conservative {other.conservative.value:.3g})"
        notes.append(f"{dtype}: {other.value:.3g}{safe}")
    return replace(first, note="; ".join(filter(None, notes)))


def _each_dtype(tables: dict[str, pd.DataFrame], measure: Callable[[pd.DataFrame], Evidence]) -> Evidence:
    """Evidence of the first dtype (or why there is none), the others beside it where they have any."""
    found = {}
    for dtype, rows in tables.items():
        try:
            found[dtype] = measure(rows)
        except NotTested:
            if not found:
                raise
    return _beside(found)


@metric
def latency_ratio(
    results: Results,
    of: str,
    against: str,
    batches: list[int] | None = None,
    pick: str = "max",
    part: str = "model",
    kv: str | None = None,
) -> Evidence:
    """Measured decode time over another's: the largest or smallest ratio over the batches, with its spread.

    Over a mixture of experts, `conservative` is the same with the time that its roofline takes.
    """

    def measure(rows: pd.DataFrame) -> Evidence:
        left, right = _by_batch(rows, of), _by_batch(rows, against)
        shared = [b for b in left.index.intersection(right.index) if batches is None or batches[0] <= b <= batches[-1]]
        if not shared:
            raise NotTested(f"{of} and {against} were not measured at a shared batch")

        def ratio(over: pd.DataFrame, slow: bool = False) -> Evidence:
            by_batch = (over.p50_ms / right.p50_ms)[shared]
            if by_batch.isna().all():
                return Evidence(math.nan, kind="timings")
            at = by_batch.idxmax() if pick == "max" else by_batch.idxmin()
            notes = [_distance(side.loc[at]) for side in (left, right)] if slow else []
            where = f"{pick} over batches {shared[0]} to {shared[-1]}, at {at}"
            return _time_ratio(over.loc[at], right.loc[at], where, *notes)

        if not of.startswith("moe"):
            return ratio(left)
        perfect = left.assign(**dict.fromkeys(TIMES, left.predicted_ms))
        return replace(ratio(left, slow=True), conservative=ratio(perfect))

    return _each_dtype(_timings(results, part, kv), measure)


@metric
def latency_growth(results: Results, arch: str, batch: int = 512, against: str = "", part: str = "ffn") -> Evidence:
    """Measured decode time at the largest sparse ratio over that at the smallest, at the measured batch nearest
    `batch`; divided by the growth of `against` if one is named. Of a mixture of experts, `conservative` is the growth of
    its roofline."""

    def growth(rows: pd.DataFrame, name: str) -> Evidence:
        mine = rows[rows.arch == name]
        varied = mine.groupby("batch").sparse_ratio.nunique()
        varied = varied[varied > 1].index
        if not len(varied):
            raise NotTested(f"latency of {name} was not measured at two sparse ratios")
        near = min(varied, key=lambda b: abs(math.log(b / batch)))
        mine = mine[mine.batch == near].sort_values("sparse_ratio")
        first, last = mine.iloc[0], mine.iloc[-1]
        note = f"batch {near}, sparse ratio {first.sparse_ratio:g} to {last.sparse_ratio:g}"
        if not name.startswith("moe"):
            return _time_ratio(last, first, note)
        return replace(
            _time_ratio(last, first, note, _distance(last)), conservative=_time_ratio(_perfect(last), _perfect(first))
        )

    def over(left: Evidence, right: Evidence) -> Evidence:
        value, low, high = left.value / right.value, left.low / right.high, left.high / right.low
        return replace(left, value=value, low=low, high=high, runs=left.runs + right.runs)

    def measure(rows: pd.DataFrame) -> Evidence:
        left = growth(rows, arch)
        if not against:
            return left
        right = growth(rows, against)
        safe = None if left.conservative is None else over(left.conservative, right)
        return replace(over(left, right), conservative=safe)

    return _each_dtype(_timings(results, part, None), measure)


SETTING = ("kind", "device", "size", "part", "phase", "context", "kv", "dtype", "threads")
TIMES = ("p20_ms", "p50_ms", "p80_ms")
PAIRS = (("moe2", "ultramem"), ("moe8", "ultramem_v2"))  # a mixture of experts and the memory it is compared with
SAME_RATIO = 1.25  # sparse ratios further apart than this factor are not compared


def speedups(latency: pd.DataFrame) -> pd.DataFrame:
    """Time of MoE over that of the memory layer, at equal `SETTING` and batch and the nearest sparse ratio.

    Args:
        latency: rows of the `latency` table, measured or modelled, of one variant.

    Returns:
        The memory's rows, the MoE's columns beside them with the suffix `_moe`, and

        value, low, high: the measured (or modelled) ratio, and p20 over p80 to p80 over p20
        conservative, conservative_low, conservative_high: the same if MoE took its roofline on this machine; NaN if unknown
        distance: MoE's time over its own roofline

        A memory whose `conservative` is above 1 is faster than any MoE could be here; where only `value` is, it is faster
        than ours.
    """
    found = []
    for moe, memory in PAIRS:
        left, right = latency[latency.arch == memory], latency[latency.arch == moe]
        pairs = left.merge(right, on=[*SETTING, "batch"], suffixes=("", "_moe"))
        gap = np.log(pairs.sparse_ratio / pairs.sparse_ratio_moe).abs()
        pairs = pairs.assign(gap=gap)[gap < math.log(SAME_RATIO)].sort_values("gap", kind="stable")
        found.append(pairs.drop_duplicates([*SETTING, "batch", "sparse_ratio"]).sort_index())
    pairs = pd.concat(found, ignore_index=True).drop(columns="gap")
    return pairs.assign(
        value=pairs.p50_ms_moe / pairs.p50_ms,
        low=pairs.p20_ms_moe / pairs.p80_ms,
        high=pairs.p80_ms_moe / pairs.p20_ms,
        conservative=pairs.predicted_ms_moe / pairs.p50_ms,
        conservative_low=pairs.predicted_ms_moe / pairs.p80_ms,
        conservative_high=pairs.predicted_ms_moe / pairs.p20_ms,
        distance=pairs.p50_ms_moe / pairs.predicted_ms_moe,
    )


@metric
def bytes_ratio(results: Results, of: str, against: str, batch: int = 64, part: str = "ffn", kv: str = "none") -> Evidence:
    """Bytes that a decoding step reads over another architecture's: counted if it was, else declared."""
    rows = results.table("access")
    rows = rows[rows.layer.isna() & (rows.batch == batch) & rows.routing.isin(["trained", "uniform"])]
    rows = rows[(rows.part == part) & (rows.kv == kv)]
    runs = [results.grid(arch, "largest").run for arch in (of, against)]
    for kind in ("counted", "declared-expected"):
        left, right = (rows[(rows.kind == kind) & rows.run.isin(mine)] for mine in runs)
        if len(left) and len(right):
            value = float(left.bytes.mean() / right.bytes.mean())
            return _exact(value, "counted", f"{kind}, batch {batch}", (*left.run.unique(), *right.run.unique()))
    raise NotTested(f"access.csv has no bytes of {of} and {against} at batch {batch}")


def _exact(value: float, kind: str, note: str = "", runs: tuple[str, ...] = (), scale: str = "") -> Evidence:
    return Evidence(float(value), float(value), float(value), None, kind, note, runs, scale)


@metric
def figure_1c_error(results: Results) -> Evidence:
    """Largest distance of the four counted ratios from the labels that P1 figure 1c prints."""
    from evals.access import declared as access

    table = reference("ultramem_inference")
    labels = table[table.metric == "bytes_ratio"].value.astype(float)
    ours = access.figure_1c()
    note = "ours " + ", ".join(f"{x:.2f}" for x in ours)
    return _exact(max(abs(a - b) for a, b in zip(ours, labels, strict=True)), "counted", note, scale="P1 1.6B")


@metric
def figure_1c_ratio(results: Results, batch: int, routing: str = "uniform") -> Evidence:
    """MoE over UltraMem 1.6B in weights read at one batch, counted as figure 1c counts."""
    from evals.access import declared as access

    return _exact(access.figure_1c((batch,), routing=routing)[0], "counted", f"{routing} routing", scale="P1 1.6B")


@metric
def rows_share(results: Results, size: str, batch: int) -> Evidence:
    """Share of the rows of an UltraMem of P1 that one step reads, expected under uniform routing."""
    from evals.access import declared as access

    cost = access.p1("ultramem", size).slots.only("table")
    share = sum(p.rows_read(batch) for p in cost.parts) / sum(p.rows for p in cost.parts)
    return _exact(share, "counted", f"batch {batch}", scale=f"P1 {size}")


@metric
def modelled_ratio(
    results: Results,
    of: str,
    against: str,
    size: str = "1.6B",
    device: str = "A100",
    kv: str = "mha",
    batches: list[int] | None = None,
    pick: str = "max",
) -> Evidence:
    """Modelled decode time over another's at one of P1's sizes: the largest or smallest ratio over the batches."""
    from evals.access import declared as access
    from evals.decode import roofline

    devices, launches = roofline.load()
    ratios = {}
    for batch in batches or [2**i for i in range(11)]:
        left, right = (roofline.decode(access.p1(arch, size), devices[device], launches, batch, kv) for arch in (of, against))
        ratios[batch] = left.seconds / right.seconds
    batch = (max if pick == "max" else min)(ratios, key=ratios.get)
    return _exact(ratios[batch], "modelled", f"cache {kv}, at batch {batch}", scale=f"{device} modelled, P1 {size}")


@metric
def modelled_bytes_share(results: Results, arch: str, batch: int, device: str = "A100", kv: str = "mha") -> Evidence:
    """Share of a modelled step's time in parts that bytes, not FLOPs, decide."""
    from evals.access import declared as access
    from evals.decode import roofline

    devices, launches = roofline.load()
    step = roofline.decode(access.p1(arch, "1.6B"), devices[device], launches, batch, kv)
    return _exact(step.bytes_bound_share, "modelled", f"cache {kv}, batch {batch}", scale=f"{device} modelled, P1 1.6B")


@metric
def published_params_ratio(results: Results, of: str, against: str) -> Evidence:
    """Stored parameters of one row of P1's ablation table over another's."""
    table = reference("ultramem_ablation").set_index(["row", "metric"]).value.astype(float)
    stored = {row: table[(row, "active_params")] * 1e6 + table[(row, "sparse_params")] * 1e9 for row in (of, against)}
    return _exact(stored[of] / stored[against], "counted", "from the published counts")


@metric
def stream_share(results: Results, n_layers: int, first_write: int) -> Evidence:
    """Share of blocks whose input holds a memory's output; the first writes after block `first_write` (from 1)."""
    return _exact((n_layers - first_write) / n_layers, "counted", "from the published placement")


@cache
def reference(name: str) -> pd.DataFrame:
    """A table of evals/claims/reference."""
    return pd.read_csv(REFERENCE / f"{name}.csv", dtype=str, keep_default_na=False)


def unequal_base(results: Results, chain: str, base: str, arch: str) -> str:
    """Why a chain's base is not the grid's model of `arch`, or "" if it is, within seed noise, or was not run."""
    try:
        arm = results.arm(chain, base)
        model = results.grid(arch, arm["size"].iloc[0])
        gap = stats.contrast([_term(1, arm), _term(-1, model)], results.noise())
    except NotTested:
        return ""
    if not gap.value or (gap.bounded and gap.low <= 0 <= gap.high):
        return ""
    noise = f" [{gap.low:.3g}, {gap.high:.3g}]" if gap.bounded else ", and no seed was repeated to show it to be noise"
    return f"the base of chain {chain} differs from the grid's {arch} by {gap.value:.3g} nats{noise}"


def edge_rate(results: Results, arch: str) -> str:
    """Why the learning rate of an architecture is not known to be its best: it is the lowest or highest tried."""
    try:
        table = results.table("tuning")
    except NotTested:
        return ""
    tried = table[table.arch == arch]
    chosen = tried.lr[tried.chosen.fillna(False).astype(bool)]
    ends = {"lowest": tried.lr.min(), "highest": tried.lr.max()}
    return next((f"{arch} has the {end} of the rates tried ({lr:g})" for end, lr in ends.items() if (chosen == lr).any()), "")
