"""Measured decode times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from evals.claims.evidence.results import Evidence, NotTested, Results, metric

CACHED = 6.4e7  # bytes: a step that reads less is no test of memory access
DTYPE = "bf16"  # what the papers decode in; others stand beside
SETTING = ("kind", "device", "size", "part", "phase", "context", "kv", "dtype", "threads")
TIMES = ("p20_ms", "p50_ms", "p80_ms")
PAIRS = (("moe2", "ultramem"), ("moe8", "ultramem_v2"))  # a mixture of experts and the memory it is compared with
SAME_RATIO = 1.25  # sparse ratios further apart than this factor are not compared


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
