"""Gains as the compute that dense would have needed, and net of time: of the comparison's models and of a chain's arms."""

from collections.abc import Iterator

import pandas as pd

from reports.contrast import runs_of
from reports.page import Cell, Results, Table, arch_cell, kinds, number
from reports.style import in_order, interval, si

WORDS = (
    "as the training FLOPs with which dense reaches the same loss, over its own: read off dense's fitted curve over sizes, or "
    "over tokens at the size. Net: the time that dense takes for these (its own core-seconds per FLOP there) over the time "
    "that was taken, above 1 a speed-up to the same loss on this device; both at a run's fastest pace, that of a fiftieth of "
    "its steps, as other jobs slowed some. 95 % intervals are of resampled seeds; * lies beyond what dense was trained with."
)
HEADER = ["read off", "loss", "dense’s compute", "95 % interval", "core-seconds", "dense’s", "net", "95 % interval"]


def of_grid(results: Results) -> Iterator:
    """Every model of the comparison."""
    if "equivalents" not in results:
        yield results.missing("equivalents")
        return
    frame = results["equivalents"]
    frame, rows = frame[frame["chain"] == ""], []
    for place, size in enumerate(results.sizes):
        for arch in in_order(frame.loc[frame["size"] == size, "arch"]):
            for one in frame[(frame["size"] == size) & (frame["arch"] == arch)].itertuples():
                rows.append([Cell(size, place), arch_cell(arch), *_cells(results, one)])
    if rows:
        header = ["size", "architecture", *HEADER]
        yield Table(
            "equivalents.csv", f"What a lower loss is worth, {WORDS}", *_about(results, frame), header, rows, *_kinds(results)
        )


def of_chain(results: Results, name: str) -> Iterator:
    """Every arm of a chain, and each step over the row before or the base."""
    frame = results["equivalents"] if "equivalents" in results else pd.DataFrame({"chain": []})
    frame = frame[frame["chain"] == name]
    rows = []
    for one in frame.itertuples():
        step = "–" if pd.isna(one.step_ratio) else f"{one.step_ratio:.2f}"
        ends = interval(one.step_low, one.step_high, ".2f")
        rows.append([Cell(one.label), *_cells(results, one), Cell(step, number=True), Cell(ends)])
    if rows:
        header = ["step", *HEADER, "this step", "95 % interval"]
        words = f"{name}: what each arm is worth, {WORDS} This step: over the row before (of a sweep, over the base)."
        yield Table("equivalents.csv", words, *_about(results, frame), header, rows, *_kinds(results))


def _about(results: Results, frame: pd.DataFrame) -> tuple[str]:
    return (results.context(runs_of(results, " ".join(frame["runs"]).split())),)


def _kinds(results: Results) -> tuple[tuple[str, ...]]:
    return (kinds(results.runs["device"]),)


def _cells(results: Results, one) -> list[Cell]:
    links = tuple((str(place), href) for place, run in enumerate(one.runs.split()) if (href := results.href(run)))
    star = "*" * bool(one.beyond)
    ratio = f"below dense’s floor{star}" if pd.isna(one.ratio) else f"{one.ratio:.2f}{star}"
    net = Cell("–") if pd.isna(one.speedup) else Cell(f"{one.speedup:.2f}{star}", one.speedup, number=True, title=one.statement)
    return [
        Cell(one.curve),
        number(one.loss, ".3f", links[0][1] if links else None),
        Cell(ratio, None if pd.isna(one.ratio) else one.ratio, number=True, title=one.statement),
        Cell(interval(one.ratio_low, one.ratio_high, ".2f")),
        Cell(si(one.core_seconds), number=True),
        Cell(si(one.dense_core_seconds), number=True),
        net,
        Cell(interval(one.speedup_low, one.speedup_high, ".2f")),
    ]
