"""Evidence for claims: what the tables of a results folder say about a loss, a score, a time or a count.

Every function marked `metric` can be named in claims.yaml. It returns `Evidence`: a value, an interval where the
results carry one, and the runs behind it; or it raises `NotTested` with the reason. Differences are left minus right,
losses in nats, scores in points, paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from evals import access, roofline, schema, stats
from workflows.errors import UserError

REFERENCE = Path(__file__).with_name("reference")
SCORES = ("acc", "len_norm")  # a task has one of them
CACHED = 6.4e7  # bytes: a step that reads less is no test of memory access


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
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    kind: str = "seeds"
    note: str = ""
    runs: tuple[str, ...] = ()
    scale: str = ""

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

    def _table(self, name: str) -> pd.DataFrame:
        """One frame of all files of a table: measured and modelled latencies stand in two."""
        stems = (name, "latency_modelled") if name == "latency" else (name,)
        paths = [path for stem in stems if (path := self.folder / f"{stem}.csv").exists()]
        if not paths:
            raise NotTested(f"{name}.csv was not made here")
        return pd.concat([schema.read(path, name) for path in paths], ignore_index=True)

    def grid(self, arch: str, size: str) -> pd.DataFrame:
        """Runs of the main grid by seed. `size` is a name in any case, or smallest or largest."""
        runs = self.runs
        plain = runs[runs.run == runs.arch + "-" + runs["size"] + "-s" + runs.seed.astype(str)]
        plain = plain[plain.arch == arch]
        if plain.empty:
            raise NotTested(f"no finished {arch} run in the grid")
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


def _losses(runs: pd.DataFrame, column: str = "val_loss") -> dict[int, float]:
    return runs[column].dropna().to_dict()


def _seeds(interval: stats.Interval, runs: Iterable[str], note: str = "") -> Evidence:
    return Evidence(interval.value, interval.low, interval.high, interval.n, "seeds", note, tuple(runs))


@metric
def loss_gap(results: Results, of: str, against: str, size: str = "largest", against_size: str = "") -> Evidence:
    """Validation loss of one architecture minus another's, in nats, paired by seed, in the main grid."""
    left, right = results.grid(of, size), results.grid(against, against_size or size)
    if not _losses(left) or not _losses(right):
        raise NotTested(f"no validation loss for {of} or {against}")
    flops = left.flops_per_token.mean() / right.flops_per_token.mean()
    return _seeds(stats.difference(_losses(left), _losses(right)), [*left.run, *right.run], f"FLOPs ratio {flops:.2f}")


@metric
def gap_change(results: Results, of: str, against: str) -> Evidence:
    """The loss gap at the largest size minus that at the smallest; negative means gaining with scale."""
    sides, runs = [], []
    for size in ("largest", "smallest"):
        left, right = results.grid(of, size), results.grid(against, size)
        seeds = left.index.intersection(right.index)
        sides.append((left.val_loss[seeds] - right.val_loss[seeds]).dropna().to_dict())
        runs += [*left.run, *right.run]
    if len(results.runs.loc[runs, "size"].unique()) < 2 or not all(sides):
        raise NotTested(f"needs {of} and {against} at two sizes")
    return _seeds(stats.difference(*sides), runs)


@metric
def contrast(results: Results, chain: str, weights: dict[str, float], column: str = "val_loss") -> Evidence:
    """Weighted sum of the losses of arms, by seed: {arm: 1, other: -1} is what the arm changes, in nats."""
    arms = {name: results.arm(chain, name) for name in weights}
    losses = {name: _losses(runs, column) for name, runs in arms.items()}
    seeds = set.intersection(*(set(values) for values in losses.values()))
    if not seeds:
        raise NotTested(f"no seed of {chain} has all of {', '.join(weights)}")
    sums = [sum(w * losses[name][seed] for name, w in weights.items()) for seed in sorted(seeds)]
    return _seeds(stats.mean(sums), [run for runs in arms.values() for run in runs.run])


@metric
def best_arm(results: Results, chain: str, arms: list[str], column: str, factor: float = 1.0) -> Evidence:
    """What the arm with the lowest loss has in `column` of its runs; the interval spans arms that are not clearly worse."""
    runs = {name: results.arm(chain, name) for name in arms}
    settings = {name: factor * float(found[column].mean()) for name, found in runs.items()}
    losses = {name: _losses(found) for name, found in runs.items()}
    means = {name: np.mean(list(values.values())) for name, values in losses.items()}
    best = min(means, key=means.get)
    close = []
    for name, values in losses.items():
        gap = stats.difference(values, losses[best])
        if not gap.bounded or gap.low <= 0:
            close.append(settings[name])
    n = min(len(values) for values in losses.values())
    if n < 2:
        close = list(settings.values())
    tried = ", ".join(f"{value:.3g}" for value in sorted(settings.values()))
    note = f"tried {tried}; interval: settings not clearly worse"
    return Evidence(settings[best], min(close), max(close), n, "seeds", note, tuple(r for f in runs.values() for r in f.run))


def _law(results: Results, chain: str, arch: str, x: str) -> tuple[stats.Fit, tuple[str, ...]]:
    """loss = a - b log10(x) over the arms of one architecture.

    Lines of a chain (densities) are told apart by the text of their labels up to a comma; the worst fit stands for all.
    """
    arms = results.table("arms")
    lines = arms[arms.chain == chain].drop_duplicates("run").set_index("run").label
    found = results.runs[results.runs.run.isin(lines.index) & (results.runs.arch == arch)].dropna(subset=["val_loss"])
    if found.empty:
        raise NotTested(f"no {arch} arm of {chain} was run: snakemake ablation_{chain}")
    labels = lines[found.run]
    line = labels.where(labels.str.contains(","), "").str.partition(",")[0]
    fits = [(stats.log_linear(part[x].astype(float), part.val_loss), (*part.run,)) for _, part in found.groupby(line)]
    if not_a_law := [fit for fit, _ in fits if isinstance(fit, stats.NotALaw)]:
        raise NotTested(f"{arch} in {chain}: {not_a_law[0].statement}")
    return min(fits, key=lambda pair: pair[0].r2)


@metric
def law_slope(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """b of loss = a - b log10(x): nats gained by ten times as much."""
    fit, runs = _law(results, chain, arch, x)
    slope = fit.interval("b")
    return Evidence(slope.value, slope.low, slope.high, fit.n, "points", fit.statement, runs)


@metric
def law_r2(results: Results, chain: str, arch: str, x: str = "sparse_params") -> Evidence:
    """R² of loss = a - b log10(x)."""
    fit, runs = _law(results, chain, arch, x)
    return Evidence(fit.r2, fit.r2, fit.r2, fit.n, "points", fit.statement, runs)


@metric
def law_slope_gap(results: Results, chain: str, of: str, against: str, x: str = "sparse_params") -> Evidence:
    """Slope of one architecture's line minus another's; their errors taken as independent."""
    left, right = law_slope(results, chain, of, x), law_slope(results, chain, against, x)
    half = math.hypot(left.high - left.value, right.high - right.value)
    gap, runs = left.value - right.value, (*left.runs, *right.runs)
    return Evidence(gap, gap - half, gap + half, min(left.n, right.n), "points", "", runs)


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
def health(results: Results, arch: str, name: str, reduce: str = "mean", minus: float = 0.0) -> Evidence:
    """A health metric at the end of the grid runs of one architecture: mean or max over layers, less a constant."""
    runs = results.grid(arch, "largest")
    table = results.table("health")
    table = table[(table.metric == name) & table.run.isin(runs.run)]
    if table.empty:
        raise NotTested(f"health.csv has no {name} for {arch}")
    last = table[table.step == table.groupby("run").step.transform("max")]
    values = last.groupby("run").value.agg(reduce) - minus
    return _seeds(stats.mean(values), values.index)


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
def score_gap(results: Results, of: str, against: str, tasks: list[str], size: str = "largest") -> Evidence:
    """Mean accuracy over tasks of one architecture minus another's, in points; over seeds, or over items for one seed.

    A task with a `*` is the mean over all that match.
    """
    table = results.table("evals")
    sides, error, items = [], 0.0, 0
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
    return Evidence(gap.value, gap.value - half, gap.value + half, items, "items", note, run_ids)


def _timings(results: Results, part: str, kv: str | None) -> pd.DataFrame:
    """Measured decode rows of one device, size, cache and dtype: a GPU's if there is one, the largest size."""
    rows = results.table("latency")
    rows = rows[(rows.kind == "measured") & (rows.phase == "decode") & (rows.part == part) & (rows.variant == "plain")]
    if kv is not None:
        rows = rows[rows.kv == kv]
    if rows.empty:
        raise NotTested(f"latency.csv has no measured decode step of part {part}" + (f" with kv {kv}" if kv else ""))
    rows = rows.assign(gpu=rows.device.str.startswith("CUDA"), points=1)
    keys = ["gpu", "bytes_declared", "points"]
    groups = rows.groupby(["device", "size", "kv", "dtype", "context", "threads"], dropna=False)
    best = groups[keys].agg({"gpu": "max", "bytes_declared": "max", "points": "sum"}).sort_values(keys, kind="stable")
    if (most := best.bytes_declared.iloc[-1]) < CACHED:
        raise NotTested(f"the models that were timed read at most {most / 1e6:.3g} MB a step, which a cache holds")
    return groups.get_group(best.index[-1])


def _fair(rows: pd.DataFrame, arch: str) -> tuple[pd.DataFrame, str]:
    """The rows that may be compared, and what was withheld: a mixture of experts that is far from its own roofline."""
    if not arch.startswith("moe"):
        return rows, ""
    near = rows.p50_ms <= stats.OWN_ROOFLINE * rows.predicted_ms
    over = f"{arch} takes over {stats.OWN_ROOFLINE:g} times its own roofline, or has none"
    if not near.any():
        raise NotTested(f"withheld: {over}")
    batches = ", ".join(f"{batch}" for batch in sorted(set(rows.batch[~near])))
    return rows[near], f"batches {batches} withheld, where {over}" if batches else ""


def _by_batch(rows: pd.DataFrame, arch: str) -> tuple[pd.DataFrame, str]:
    """One fair row per batch for an architecture, at the sparse ratio measured at most batches; what was withheld."""
    rows = rows[rows.arch == arch]
    if rows.empty:
        raise NotTested(f"latency.csv has no measured decode step of {arch} beside the others")
    ratio = rows.groupby("sparse_ratio").batch.nunique().idxmax()
    rows, withheld = _fair(rows[rows.sparse_ratio == ratio].drop_duplicates("batch"), arch)
    return rows.set_index("batch"), withheld


def _time_ratio(left: pd.Series, right: pd.Series, *notes: str) -> Evidence:
    low, high = (left.p20_ms / right.p80_ms, left.p80_ms / right.p20_ms)
    n = None if pd.isna(left.n_iters) else int(left.n_iters)
    runs = tuple(name for name in (left.run, right.run) if name)
    threads = "" if pd.isna(left.threads) else f", {left.threads:g} thread(s)"
    what = "whole model" if left.part == "model" else "feed-forward and memory alone"
    scale = f"size {left['size']}, {what}, {left['dtype']}{threads}, {left.device}"
    return Evidence(left.p50_ms / right.p50_ms, low, high, n, "timings", "; ".join(filter(None, notes)), runs, scale)


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
    """Measured decode time over another's: the largest or smallest ratio over the batches, with its spread."""
    rows = _timings(results, part, kv)
    (left, left_withheld), (right, right_withheld) = _by_batch(rows, of), _by_batch(rows, against)
    withheld = left_withheld or right_withheld
    shared = [b for b in left.index.intersection(right.index) if batches is None or batches[0] <= b <= batches[-1]]
    if not shared:
        raise NotTested(f"{of} and {against} were not measured at a shared batch" + (f"; {withheld}" if withheld else ""))
    ratio = (left.p50_ms / right.p50_ms)[shared]
    batch = ratio.idxmax() if pick == "max" else ratio.idxmin()
    where = f"{pick} over batches {shared[0]} to {shared[-1]}, at {batch}"
    return _time_ratio(left.loc[batch], right.loc[batch], where, withheld)


@metric
def latency_growth(results: Results, arch: str, batch: int = 512, against: str = "", part: str = "ffn") -> Evidence:
    """Measured decode time at the largest sparse ratio over that at the smallest, at the measured batch nearest
    `batch`; divided by the growth of `against` if one is named."""
    rows = _timings(results, part, None)
    ends = []
    for name in (arch, *([against] if against else [])):
        mine = rows[rows.arch == name]
        varied = mine.groupby("batch").sparse_ratio.nunique()
        varied = varied[varied > 1].index
        if not len(varied):
            raise NotTested(f"latency of {name} was not measured at two sparse ratios")
        near = min(varied, key=lambda b: abs(math.log(b / batch)))
        mine, withheld = _fair(mine[mine.batch == near].sort_values("sparse_ratio"), name)
        if len(mine) < 2:
            raise NotTested(withheld)
        note = f"batch {near}, sparse ratio {mine.sparse_ratio.iloc[0]:g} to {mine.sparse_ratio.iloc[-1]:g}"
        ends.append(_time_ratio(mine.iloc[-1], mine.iloc[0], note, withheld))
    if not against:
        return ends[0]
    left, right = ends
    value, low, high = left.value / right.value, left.low / right.high, left.high / right.low
    return replace(left, value=value, low=low, high=high, runs=left.runs + right.runs)


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
    table = reference("ultramem_inference")
    labels = table[table.metric == "bytes_ratio"].value.astype(float)
    ours = access.figure_1c()
    note = "ours " + ", ".join(f"{x:.2f}" for x in ours)
    return _exact(max(abs(a - b) for a, b in zip(ours, labels, strict=True)), "counted", note, scale="P1 1.6B")


@metric
def figure_1c_ratio(results: Results, batch: int, routing: str = "uniform") -> Evidence:
    """MoE over UltraMem 1.6B in weights read at one batch, counted as figure 1c counts."""
    return _exact(access.figure_1c((batch,), routing=routing)[0], "counted", f"{routing} routing", scale="P1 1.6B")


@metric
def rows_share(results: Results, size: str, batch: int) -> Evidence:
    """Share of the rows of an UltraMem of P1 that one step reads, expected under uniform routing."""
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
    """A table of evals/reference."""
    return pd.read_csv(REFERENCE / f"{name}.csv", dtype=str, keep_default_na=False)
