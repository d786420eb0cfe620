"""Losses at matched compute: the table, the same in full, and the curves over training."""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.equivalents import of_grid
from reports.page import Cell, Picture, Results, Table, arch_cell, kinds, number
from reports.style import in_order, key, si


def losses(results: Results) -> Iterator:
    """The loss table and curves of the comparison."""
    grid = results.grid
    if grid.empty:
        yield results.missing("runs")
        return
    context, badges = results.context(grid), kinds(grid["device"])
    means = grid.groupby(["size", "arch"])["test_loss"].mean()
    rows = []
    for arch in results.archs:
        of_arch = [(size, grid[(grid["arch"] == arch) & (grid["size"] == size)]) for size in results.sizes]
        best = [means.get((size, arch)) == means[size].min() for size in results.sizes]
        cells = [results.mean(here, "test_loss", strong=strong) for (_, here), strong in zip(of_arch, best, strict=True)]
        rows.append([arch_cell(arch), *cells])
    yield Table(
        "runs.csv",
        "Test loss in nats per token, mean of the headline sources, at matched compute: mean ± standard deviation over seeds, "
        "lowest in bold. With one seed a small difference is no ranking. Nothing was chosen on the test split.",
        context,
        ["architecture", *results.sizes],
        rows,
        badges,
    )
    sources = _by_source(results)
    dense = grid[grid["arch"].map(key) == "dense"].groupby("size")["test_loss"].mean()
    rows = []
    for place, size in enumerate(results.sizes):
        for arch in in_order(grid.loc[grid["size"] == size, "arch"]):
            here = grid[(grid["size"] == size) & (grid["arch"] == arch)]
            row = [Cell(size, place), arch_cell(arch), results.mean(here, "train_loss"), results.mean(here, "test_loss")]
            row += [number(means[size, arch] - dense.get(size, float("nan")), "+.3f"), results.mean(here, "test_bpb")]
            row += [results.mean(here[["run", "seed"]].merge(last, on="run"), "loss") for last in sources.values()]
            optimizer = Cell(", ".join(sorted(set(here["value_optimizer"]) - {""})) or "–")
            rows.append([*row, results.mean(here, "tokens", si), results.mean(here, "core_seconds", si), optimizer])
    header = ["size", "architecture", "train loss", "test loss", "against dense", "bits per byte", *sources]
    yield Table(
        "runs.csv" + " + train.csv" * bool(sources),
        "Losses in nats per token; test also by source of the corpus. Value optimizer: AdamW over the whole value tables "
        "(dense) or over the rows that a step read (rows). Every number leads to its run.",
        context,
        [*header, "tokens", "core-seconds", "value optimizer"],
        rows,
        badges,
    )
    yield from of_grid(results)
    if "train" not in results:
        yield results.missing("train")
        return
    train = results.joined("train")
    for split, source in (("validation", "all"), ("train", "")):
        frame = train[(train["split"] == split) & (train["source"] == source) & (train["tokens"] > 0)]
        words = {"x_label": "tokens", "y_label": f"{split} loss (nats/token)", "by": ("arch", "run"), "log": "x"}
        panels = [
            figures.curves(f"curve-{split}-{place}", thinned(here), "tokens", "loss", title=size, **words)
            for place, size in enumerate(results.sizes)
            if len(here := frame[frame["size"] == size])
        ]
        if panels:
            smooth = " A curve of more than 120 points is a running median over 1/40 of the run." * (split == "train")
            caption = f"{split.capitalize()} loss against tokens, one line a run, one panel a size.{smooth}"
            yield Picture("train.csv", caption, context, panels, results.archs, badges)


def _by_source(results: Results) -> dict[str, pd.DataFrame]:
    """The test loss of every run, by source."""
    if "train" not in results:
        return {}
    frame = results["train"]
    frame = frame[(frame["split"] == "test") & ~frame["source"].isin(["", "all"])]
    frame = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    return {source: rows[["run", "loss"]] for source, rows in frame.groupby("source")}


def thinned(frame: pd.DataFrame, points: int = 120) -> pd.DataFrame:
    """At most `points` a run; a longer curve is first smoothed by a running median over 1/40 of it."""
    parts = []
    for _, line in frame.groupby("run"):
        line = line.sort_values("tokens")
        if len(line) > points:
            smooth = line["loss"].rolling(max(1, len(line) // 40), center=True, min_periods=1).median()
            line = line.assign(loss=smooth).iloc[:: -(-len(line) // points)]
        parts.append(line)
    return pd.concat(parts)
