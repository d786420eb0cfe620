"""The time of MoE over that of the memory layer, as measured and against an MoE as fast as this machine allows."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.evidence.times import speedups
from reports import figures
from reports.page import Cell, Picture, Table, arch_cell, number
from reports.style import WIDE, key, look
from reports.timings import CSV, PARTS, SETTING, context

READINGS = {
    "holds against a perfect MoE": "good",
    "holds against our MoE only": "",
    "memory is slower": "opposite",
    "MoE has no roofline": "not-tested",
}


def reading(row) -> str:
    """What a row of `speedups` says of the claim that the memory layer is faster."""
    if row.value <= 1:
        return "memory is slower"
    if pd.isna(row.conservative):
        return "MoE has no roofline"
    return "holds against a perfect MoE" if row.conservative > 1 else "holds against our MoE only"


def speed_up_map(frame: pd.DataFrame, kind: str, badges: tuple[str, ...]) -> Iterator:
    """Maps of MoE over memory by batch and sparse ratio, measured and conservative, and the same as a table."""
    pairs = speedups(frame)
    if pairs.empty:
        return
    measured = kind == "measured"
    panels = list(_maps(pairs, kind, "value", kind))
    if measured:
        panels += _maps(pairs[pairs["conservative"].notna()], kind, "conservative", f"conservative, {kind}")
    words = f"Speed-up, {kind}: time of MoE over time of the memory layer by batch and sparse ratio (row: size, cache, ratio). "
    words += "Above 1 (blue) the memory layer is faster."
    words += " Conservative: the roofline of MoE, what a perfect one would take here, in the place of its time." * measured
    yield Picture(CSV[kind], words, context(pairs), panels, badges=badges)
    if measured:
        yield _table(frame, pairs, badges)


def _maps(pairs: pd.DataFrame, kind: str, column: str, word: str) -> Iterator:
    groups = pairs.groupby(["device", "dtype", "threads", "arch_moe", "arch"], dropna=False, sort=False)
    for place, ((device, dtype, threads, moe, memory), here) in enumerate(groups):
        what = ("KV " + here["kv"]).where(here["part"] == "model", "FFN")
        here = here.assign(
            row=here["size"] + ", " + what + ", " + here["sparse_ratio"].map("{:.0f}×".format),
            text=here[column].map(lambda value: "–" if pd.isna(value) else f"{value:.2g}"),
        ).drop_duplicates(["row", "batch"])
        order = {"index": list(dict.fromkeys(here["row"])), "columns": sorted(here["batch"].unique())}
        cells, words = (here.pivot(index="row", columns="batch", values=name).reindex(**order) for name in (column, "text"))
        where = f"{device.partition(': ')[2]}, {dtype}" + (f", {threads:.0f} thr" if threads == threads else "")
        title = f"{look(moe).label} over {look(memory).label}\n{word}, {where}"
        shape = {"title": title, "x_label": "batch", "width": WIDE, "height": 1.0 + 0.27 * len(cells)}
        yield figures.heat(f"map-{kind}-{column}-{place}", cells, words.fillna(""), **shape)


def _table(frame: pd.DataFrame, pairs: pd.DataFrame, badges: tuple[str, ...]) -> Table:
    dense = frame[frame["arch"].map(key) == "dense"].drop_duplicates([*SETTING, "batch"])[[*SETTING, "batch", "p50_ms"]]
    pairs = pairs.merge(dense, on=[*SETTING, "batch"], how="left", suffixes=("", "_dense"))
    rows = []
    order = ["part", "dtype", "arch_moe", "sparse_ratio", "batch"]
    for row in pairs.sort_values(order, key=lambda values: values != "model" if values.name == "part" else values).itertuples():
        about = [arch_cell(row.arch_moe), arch_cell(row.arch), Cell(row.dtype), Cell(PARTS[row.part])]
        about += [number(row.batch, "d"), number(row.sparse_ratio, ".3g"), number(row.value, ".2f")]
        word = reading(row)
        shown = [Cell(f"{row.low:.2f} … {row.high:.2f}"), number(row.conservative, ".2f"), number(row.distance, ".2f")]
        shown.append(Cell(word, kind=READINGS[word]))
        rows.append([*about, *shown, number(row.p50_ms / row.p50_ms_dense, ".2f"), Cell(row.device)])
    header = ["MoE", "memory", "dtype", "part", "batch", "sparse ratio", "MoE / memory", "spread", "conservative"]
    header += ["MoE / roofline", "reading", "memory / dense", "device"]
    words = "Speed-up over MoE: as measured, with its spread (p20 over p80 to p80 over p20), and conservative, which is MoE's "
    words += "roofline over the memory's measured time. What is above 1 in both holds against any MoE on this machine; what is "
    words += "above 1 in the first alone holds against our MoE only. Memory over dense: 1 is as fast as dense."
    return Table("latency.csv", words, context(frame), header, rows, badges, searchable=True, tall=True)
