"""Training speed: of the runs themselves, of the benchmark, and beside other public implementations."""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.page import Cell, Picture, Results, Table, arch_cell, kinds, number, threads
from reports.style import WIDE, in_order, look


def speed(results: Results) -> Iterator:
    """Training speed: of the runs themselves, and of the benchmark."""
    grid = results.grid[results.grid["tokens_per_s"].notna()]
    panels = []
    for size in results.sizes if len(grid) else ():
        means = grid[grid["size"] == size].groupby("arch").agg(tokens_per_s=("tokens_per_s", "mean"), run=("run", "first"))
        means = means.loc[in_order(means.index)].reset_index()
        means["label"] = [look(arch).label for arch in means["arch"]]
        panels.append(
            figures.bars(f"speed-{results.sizes.index(size)}", means, "tokens_per_s", "label", title=size, x_label="tokens/s")
        )
    if panels:
        yield Picture(
            "runs.csv",
            "Training tokens per second, median over the steps of a run (mean over seeds). Runs may have shared the "
            "machine with others: the benchmark is the comparison.",
            results.context(grid),
            panels,
            badges=kinds(grid["device"]),
        )
    yield from _benchmark(results)
    yield from _peers(results)


def _benchmark(results: Results) -> Iterator:
    if "speed" not in results:
        yield results.missing("speed")
        return
    frame, panels = results["speed"], []
    context, badges = " · ".join([*sorted(frame["device"].unique()), threads(frame)]), kinds(frame["device"])
    for benchmark, here in frame[frame["ratio"].notna()].groupby("benchmark", sort=False):
        here = here.assign(label=_speed_labels(here))[["label", "ratio", "arch"]]
        words = {"title": benchmark, "x_label": "speed over yardstick", "mark": 1.0}
        shape = {"width": WIDE, "height": 0.9 + 0.23 * len(here)}
        panels.append(figures.bars(f"ratio-{len(panels)}", here, "ratio", "label", **words, **shape))
    if panels:
        words = "Speed over the yardstick, median of interleaved pairs; above 1 is faster. The table names each yardstick."
        yield Picture("speed.csv", words, context, panels, badges=badges)
    words = "Training benchmark: medians with 20th and 80th percentile, implementations interleaved in one process."
    yield Table("speed.csv", words, context, *results.listing("speed", frame), badges, searchable=len(frame) > 12, tall=True)


def _peers(results: Results) -> Iterator:
    """Other public implementations of the same layers beside ours."""
    if "peers" not in results:
        yield results.missing("peers")
        return
    frame, rows = results["peers"], []
    where = ["benchmark", "arch", "d_model", "tokens", "threads", "precision", "device"]
    ours = frame[frame["impl"] == "ours"][[*where, "p50_ms"]]
    for row in frame.merge(ours, on=where, how="left", suffixes=("", "_ours")).itertuples():
        about = [Cell(row.benchmark), Cell(row.impl), arch_cell(row.arch), number(row.d_model, "d"), number(row.tokens, "d")]
        times = [number(value, ".3g") for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
        rows.append(
            [*about, Cell(row.precision), *times, number(row.p50_ms / row.p50_ms_ours, ".2f"), number(row.n_iters, "d")]
        )
    header = ["benchmark", "implementation", "architecture", "d_model", "tokens", "precision", "p20 ms", "median ms", "p80 ms"]
    context = " · ".join([*sorted(frame["device"].unique()), threads(frame)])
    words = (
        "Public implementations of the same layers beside ours, interleaved in one process. Time over ours: above 1 ours is "
    )
    words += "faster."
    header += ["time over ours", "calls"]
    yield Table("peers.csv", words, context, header, rows, kinds(frame["device"]), searchable=True, tall=True)


def _speed_labels(frame: pd.DataFrame) -> list[str]:
    """A name for each row from the columns in which the rows differ."""
    words = {
        "impl": frame["impl"],
        "arch": frame["arch"].map(lambda arch: look(arch).label if arch else ""),
        "d_model": "d " + frame["d_model"].astype(str),
        "tokens": frame["tokens"].astype(str) + " tokens",
        "precision": frame["precision"],
        "threads": frame["threads"].astype(str) + " thr",
    }
    differ = [column for column in words.values() if column.nunique() > 1] or [words["impl"]]
    return [" ".join(part for part in row if part and "<NA>" not in part) for row in zip(*differ, strict=True)]
