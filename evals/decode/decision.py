"""Which layer has the lowest loss at equal decode time, by batch and stored parameters.

Losses are of models with equal compute per token, decode times are not equal: a layer whose step takes longer has spent time
that dense could have spent on more activated parameters. So time becomes loss by dense's own line,

    score = loss + b log10(t / t of dense)

t: time of one decoding step at a batch; b: the fall of dense's test loss for ten times the activated parameters along the
grid (`stats.slopes`; tokens move with the size there). It supposes that a step's time grows with activated parameters, which
is so for dense at every batch, and that the others would lose as much by shrinking as dense gains by growing.

A 95 % interval of two scores' difference has three parts, their half widths added in quadrature: the losses' (seeds), the
slope's, and the times' (of the medians, from p20, p80 and the number of timed steps as if their logarithms were normal). Many
cells are compared and no correction is made for their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from evals import stats
from evals.stats import Interval, Noise
from evals.stats.pairs import apart

CHAIN, DENSE, DTYPE = "sparsity", "dense", "bf16"
SAME_RATIO = 1.25  # sparse ratios no further apart than this factor are one row
NEAR = 2.5  # times stand in for those of another sparse ratio up to this factor
TIMES = ["p20_ms", "p50_ms", "p80_ms", "predicted_ms"]
P20_TO_P80 = 1.683  # standard deviations between them
MEDIAN = 1.253  # standard error of a median over that of a mean


@dataclass(frozen=True)
class Row:
    """Losses at one ratio of stored over activated parameters: test losses by architecture and seed, all of one size."""

    ratio: float
    params: float
    active_params: float
    size: str
    losses: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Standing:
    """An architecture in a cell: mean test loss, decode time over dense's, and the two together (nats/token)."""

    arch: str
    loss: float
    pace: float
    score: float


@dataclass(frozen=True)
class Cell:
    """A batch at a row's ratio, times taken at the ratio `timed`: standings, lowest score first.

    `gap` is the runner-up's score minus the best's, `level` the architectures that are not told apart from the best, which is
    the first of them.
    """

    batch: int
    row: Row
    timed: float
    standings: tuple[Standing, ...]
    gap: Interval
    level: tuple[str, ...]

    @property
    def best(self) -> str:
        return self.standings[0].arch

    @property
    def told(self) -> bool:
        return len(self.level) == 1


def is_moe(arch: str) -> bool:
    return arch.startswith("moe")


def compared(archs: Mapping[str, object]) -> bool:
    """Whether there is dense to convert by, a mixture of experts and a memory."""
    return DENSE in archs and any(map(is_moe, archs)) and any(arch != DENSE and not is_moe(arch) for arch in archs)


def rows(grid: pd.DataFrame, arms: pd.DataFrame, size: str) -> list[Row]:
    """The grid's models of a size, and the chain `sparsity`'s other ratios beside dense of its size; few parameters first.

    Args:
        grid: finished runs of the comparison.
        arms: finished runs of the chain with its column `label`; of several arms of an architecture at one ratio the one with
            the lowest mean loss counts.
    """
    here = grid[grid["size"] == size]
    found = [row for row in [_row(here, here)] if row]
    ratios = arms["params"] / arms["active_params"]
    order = arms.assign(ratio=ratios)[arms["arch"] != DENSE].sort_values("ratio")
    steps = order["ratio"] / order["ratio"].shift() > SAME_RATIO
    for _, level in order.groupby(steps.cumsum()):
        for _, at in level.groupby("size"):
            if any(max(at["ratio"].mean(), row.ratio) / min(at["ratio"].mean(), row.ratio) < SAME_RATIO for row in found):
                continue
            means = at.groupby(["arch", "label"])["test_loss"].mean()
            labels = {arch: means[arch].idxmin() for arch in at["arch"].unique()}
            best = at[at["label"] == at["arch"].map(labels)]
            dense = grid[(grid["size"] == at["size"].iloc[0]) & (grid["arch"] == DENSE)]
            found += [row for row in [_row(best, pd.concat([best, dense]))] if row]
    return sorted(found, key=lambda row: row.ratio)


def _row(sparse: pd.DataFrame, runs: pd.DataFrame) -> Row | None:
    losses = {str(arch): dict(zip(here["seed"], here["test_loss"], strict=True)) for arch, here in runs.groupby("arch")}
    sparse = sparse[sparse["arch"] != DENSE]
    if not compared(losses):
        return None
    params, active = sparse["params"].mean(), sparse["active_params"].mean()
    return Row(params / active, params, active, str(runs["size"].iloc[0]), losses)


def times(latency: pd.DataFrame) -> pd.DataFrame:
    """Time of one decoding step of whole models by arch, sparse_ratio and batch, of one device, dtype and number of threads.

    Where a ratio was timed without attention and head, what these took beside the architecture's own feed-forward part at the
    ratio that was timed whole is added: they do not depend on the tables. Without any whole model the parts stand alone, and
    the column `part` says so.
    """
    keys = ["arch", "sparse_ratio", "batch"]
    frame = latency[(latency["kind"] == "measured") & (latency["phase"] == "decode") & (latency["variant"] == "plain")]
    for name, wanted in (("device", frame["device"].min()), ("dtype", DTYPE), ("threads", frame["threads"].min())):
        chosen = frame[frame[name] == wanted]
        frame = chosen if len(chosen) else frame[frame[name] == frame[name].min()] if frame[name].notna().any() else frame
    if frame.empty:
        return frame
    frame = frame[frame["size"] == frame["size"].mode().iloc[0]].drop_duplicates(["part", *keys])
    whole, parts = (frame[frame["part"] == part] for part in ("model", "ffn"))
    if whole.empty:
        return parts
    beside = whole.merge(parts, on=keys, suffixes=("", "_part"))
    beside = beside.assign(**{name: beside[name] - beside[f"{name}_part"] for name in TIMES})
    beside = beside.drop_duplicates(["arch", "batch"])[["arch", "batch", *TIMES]]
    more = parts.merge(whole[keys], on=keys, how="left", indicator=True).query("_merge == 'left_only'")
    more = more.drop(columns="_merge").merge(beside, on=["arch", "batch"], suffixes=("", "_beside"))
    more = more.assign(part="model", **{name: more[name] + more[f"{name}_beside"] for name in TIMES})
    return pd.concat([whole, more[whole.columns]], ignore_index=True)


def at_roofline(timed: pd.DataFrame, every: bool = False) -> pd.DataFrame:
    """The times with every mixture of experts, or `every` architecture, at its roofline on this machine.

    One whose roofline is unknown is left out.
    """
    perfect = timed.assign(**dict.fromkeys(TIMES, timed["predicted_ms"])).dropna(subset=["p50_ms"])
    moe = timed["arch"].map(is_moe)
    return perfect if every else pd.concat([timed[~moe], perfect[perfect["arch"].map(is_moe)]])


def decide(found: list[Row], timed: pd.DataFrame, slope: Interval, seed_noise: Noise | None) -> Iterator[Cell]:
    """A cell for every row and batch at which dense, a mixture of experts and a memory have both a loss and a time."""
    for row in found:
        for batch, here in timed.groupby("batch"):
            ratios = here.loc[here["arch"] != DENSE, "sparse_ratio"].unique()
            for ratio in sorted(ratios, key=lambda ratio: abs(math.log(ratio / row.ratio))):
                at = here[(here["sparse_ratio"] == ratio) | (here["arch"] == DENSE)].drop_duplicates("arch").set_index("arch")
                at = at.loc[[arch for arch in at.index if arch in row.losses]]
                if compared(dict.fromkeys(at.index)) and max(ratio, row.ratio) / min(ratio, row.ratio) <= NEAR:
                    yield _cell(int(str(batch)), row, float(ratio), at, slope, seed_noise)
                    break


def _cell(batch: int, row: Row, ratio: float, at: pd.DataFrame, slope: Interval, seed_noise: Noise | None) -> Cell:
    standings = []
    for arch in at.index:
        loss, pace = stats.mean(list(row.losses[arch].values())).value, at["p50_ms"][arch] / at["p50_ms"][DENSE]
        standings.append(Standing(arch, loss, pace, loss + slope.value * math.log10(pace)))
    standings.sort(key=lambda standing: standing.score)
    best, *others = (standing.arch for standing in standings)
    gaps = {arch: _gap(row, arch, best, at, slope, seed_noise) for arch in others}
    level = [arch for arch, gap in gaps.items() if not (gap.bounded and gap.low > 0)]
    return Cell(batch, row, ratio, tuple(standings), gaps[others[0]], (best, *level))


def _gap(row: Row, arch: str, best: str, at: pd.DataFrame, slope: Interval, seed_noise: Noise | None) -> Interval:
    """The score of `arch` minus that of `best`; unbounded where losses or slope are."""
    loss, (one, other) = apart(row.losses[arch], row.losses[best], seed_noise), (at.loc[name] for name in (arch, best))
    pace = math.log10(one["p50_ms"] / other["p50_ms"])
    of_pace = math.hypot(_of_median(one), _of_median(other))
    value = loss.value + slope.value * pace
    half = math.hypot(loss.high - loss.value, (slope.high - slope.value) * pace, slope.value * of_pace)
    return Interval(value, value - half, value + half, loss.n, "losses, slope and times in quadrature")


def _of_median(row: pd.Series) -> float:
    """Half the 95 % interval of log10 of a median time; of a single step where nobody says how many were timed."""
    steps = 1 if pd.isna(row["n_iters"]) else row["n_iters"]
    return 1.96 * MEDIAN * math.log10(row["p80_ms"] / row["p20_ms"]) / P20_TO_P80 / math.sqrt(steps)
