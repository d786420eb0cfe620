"""The comparison by every convention of counting FLOPs: `counting.csv` holds the parts, a rule says which of them count.

Always counted are attention's maps, norms, feed-forward, projections and what a token reads of a table. The papers' rule
counts the router too, a memory's addressing with it, and neither embedding, head nor attention scores. The rank by loss is
of no rule; the gap is: loss minus what dense has at equally many FLOPs, on the broken line (in log FLOPs) through its sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from evals.laws.law import QUANTILES
from evals.laws.points import Points

ALWAYS = ("attention", "norm", "ffn", "projection", "table")
SWITCHES = {
    "embedding": ("embedding",),
    "head": ("head",),
    "router": ("router", "addressing"),
    "scores": ("attention scores",),
}
EDGE = 0.05  # of log FLOPs: matched models are equal within a hundredth
PAPERS = "router"
EVERYTHING = "embedding + head + router + scores + selection"


def rules() -> dict[str, tuple[str, ...]]:
    """Rule -> parts counted: every choice of `SWITCHES`, the papers' first, and all with the selection of picks."""
    found = {}
    for chosen in product((False, True), repeat=len(SWITCHES)):
        names = [name for name, on in zip(SWITCHES, chosen, strict=True) if on]
        found[" + ".join(names) or "none"] = (*ALWAYS, *(part for name in names for part in SWITCHES[name]))
    found[EVERYTHING] = (*ALWAYS, *(part for parts in SWITCHES.values() for part in parts), "selection")
    return {PAPERS: found[PAPERS]} | found


def counted(counting: pd.DataFrame, parts: tuple[str, ...]) -> pd.DataFrame:
    """`flops` and `active_params` by (size, arch) of the parts that count."""
    return counting[counting["part"].isin(parts)].groupby(["size", "arch"])[["flops", "active_params"]].sum()


def compute(points: Points, names: list[str], counts: pd.DataFrame) -> pd.Series:
    """Training FLOPs of runs by a rule: three forward passes of every token; runs that were not counted are left out."""
    runs = points.runs[points.runs["run"].isin(names)]
    keys = pd.MultiIndex.from_frame(runs[["size", "arch"]])
    flops = counts["flops"].reindex(keys).to_numpy(float)
    return pd.Series(3 * flops * runs["tokens"].to_numpy(float), runs.index).dropna()


def on_line(x: float, known: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, bool]:
    """Losses (draws,) at `x` on the broken line in log x through `losses` (draws, places) at `known`; if it is prolonged."""
    order = np.argsort(known)
    at, known, losses = np.log(x), np.log(known[order]), losses[:, order]
    place = int(np.clip(np.searchsorted(known, at) - 1, 0, len(known) - 2))
    part = (at - known[place]) / (known[place + 1] - known[place])
    beyond = not known[0] - EDGE <= at <= known[-1] + EDGE
    return losses[:, place] + part * (losses[:, place + 1] - losses[:, place]), beyond


def ranking(points: Points, counting: pd.DataFrame) -> list[dict]:
    """Rows of the table `ranking`: every rule at every size that was trained, best loss first."""
    rows: list[dict] = []
    names = [name for arch in points.archs for name in points.grid(arch)]
    cells = [(size, arch, list(here)) for (size, arch), here in _cells(points.runs[points.runs["run"].isin(names)])]
    losses = {(size, arch): points.of(here, {}).losses.mean(1) for size, arch, here in cells}
    for rule, parts in rules().items():
        counts = counted(counting, parts)
        spent = compute(points, names, counts)
        cells = [cell for cell in cells if cell[2][0] in spent.index]
        dense = {float(spent[here].mean()): losses[size, arch] for size, arch, here in cells if arch == "dense"}
        for size in dict.fromkeys(size for size, _, _ in cells):
            at_size: list[dict[str, Any]] = []
            for arch, here in ((arch, here) for other, arch, here in cells if other == size):
                loss = losses[size, arch]
                row: dict[str, Any] = {"rule": rule, "size": size, "arch": arch, "loss": float(loss[0])}
                row |= {key: counts.loc[(size, arch), key].item() for key in ("flops", "active_params")}
                if len(dense) > 1:
                    base, row["beyond"] = on_line(float(spent[here].mean()), np.array([*dense]), np.stack([*dense.values()], 1))
                    low, high = np.quantile((loss - base)[1:], QUANTILES) if points.repeated else (np.nan, np.nan)
                    row |= {"gap": float((loss - base)[0]), "gap_low": float(low), "gap_high": float(high)}
                at_size.append(row | {"flops": float(row["flops"])})
            for rank, key in (("rank", "loss"), ("gap_rank", "gap")):
                for place, row in enumerate(sorted((row for row in at_size if key in row), key=lambda row: row[key]), 1):
                    row[rank] = place
            rows += sorted(at_size, key=lambda row: row["rank"])
    return rows


def _cells(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.Index]]:
    ordered = runs.sort_values(["active_params", "size"], kind="stable")
    return ((key, here.index) for key, here in ordered.groupby(["size", "arch"], sort=False))
