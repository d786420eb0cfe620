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
    yield from _parts(results)
    yield from _peers(results)
    yield from _growth(results)


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


def _parts(results: Results) -> Iterator:
    """Where a step's time goes, and how much of it its matrix products need."""
    if "step" not in results:
        yield results.missing("step")
        return
    frame = results["step"]
    widths = sorted(frame["d_model"].unique())
    header = ["architecture", "part", *(f"{what}, d {d}" for d in widths for what in ("ms", "of the step", "products' share"))]
    rows = []
    for (arch, part), here in frame.groupby(["arch", "part"], sort=False):
        cells, by_width = [arch_cell(arch), Cell(part)], here.set_index("d_model")
        for d in widths:
            found = by_width.loc[d] if d in by_width.index else None
            shares = [] if found is None else [found.p50_ms, found.p50_ms / found.step_ms, found.product_ms / found.p50_ms]
            cells += [number(value, style) for value, style in zip(shares or [None] * 3, (".1f", ".0%", ".0%"), strict=True)]
        rows.append(cells)
    words = (
        "Where a training step's time goes: each part run alone, forward and backward, in all its places. Products' share: "
        "what the part's linear maps alone take at the measured rate of torch.mm of their shapes, over the part's time."
    )
    context = " · ".join([*sorted(frame["device"].unique()), threads(frame)])
    yield Table("step.csv", words, context, header, rows, kinds(frame["device"]), searchable=True, tall=True)


def _growth(results: Results) -> Iterator:
    """How a layer's time grows with its table, its experts and threads."""
    if "growth" not in results:
        yield results.missing("growth")
        return
    frame = results["growth"]
    for axis, here in frame.groupby("axis", sort=False):
        values = sorted(here["value"].unique())
        header = ["layer", "implementation", "threads", *(f"{value:,} {axis}" for value in values), "exponent"]
        rows = []
        for (layer, impl, n_threads), curve in here.groupby(["layer", "impl", "threads"], sort=False):
            times = curve.set_index("value")["us_per_token"].reindex(values)
            cells = [Cell(layer), Cell(impl), number(n_threads, "d"), *(number(time, ".3g") for time in times)]
            rows.append([*cells, number(curve["exponent"].iloc[0], ".2f")])
        words = f"Forward time per token in µs as {axis} grow, and the exponent of a power law through it: 0 does not grow."
        context = " · ".join(sorted(frame["device"].unique()))
        yield Table("growth.csv", words, context, header, rows, kinds(frame["device"]))


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
