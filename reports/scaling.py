"""Loss against what it costs: its fall from size to size, the laws, and the papers' points on the same axes."""

from collections.abc import Iterator

import pandas as pd

from evals import stats
from reports import figures, published
from reports.figures import Series
from reports.fits import fits
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import Panel, in_order, interval, look

LOSS = "test loss (nats/token)"


def loss_against(results: Results, name: str, column: str, words: str, title: str) -> Panel:
    """Mean loss of the comparison's sizes, joined by architecture."""
    frame, labels = by_size(results, column)
    return figures.curves(name, frame, column, "loss", title=title, x_label=words, **labels)


def by_size(results: Results, column: str) -> tuple[pd.DataFrame, dict]:
    """Mean, lowest and highest loss by architecture and size, and how `figures.curves` draws them against `column`."""
    values = {"loss": ("test_loss", "mean"), "low": ("test_loss", "min"), "high": ("test_loss", "max"), "run": ("run", "first")}
    frame = results.grid.groupby(["arch", "size"], as_index=False).agg(**{column: (column, "mean")}, **values)
    return frame[frame[column].notna()], {"y_label": LOSS, "log": "x", "band": ("low", "high")}


def scaling(results: Results) -> Iterator:
    """Whether loss falls with size, the laws of fits.csv, and the papers' points on the same axes."""
    if "runs" not in results:
        yield results.missing("runs")
        return
    if len(results.grid):
        yield from _slopes(results)
    yield from fits(results)
    if len(results.grid):
        yield from _beside_the_papers(results)


def _slopes(results: Results) -> Iterator:
    """Whether loss falls from size to size, and by how much for ten times the activated parameters."""
    means = results.grid.groupby(["arch", "size"])["test_loss"].mean().unstack()[results.sizes]
    archs = in_order(means.index[means.notna().sum(axis=1) > 1])
    if not archs:
        yield Missing("Not measured in this run: no architecture was trained at more than one size, so there is no slope.")
        return
    rises, steps = [], 0
    for arch in archs:
        line = means.loc[arch].dropna()
        steps += len(line) - 1
        for size, change in line.diff().items():
            if change >= 0:
                rises.append(f"{look(arch).label} at {size} ({change:+.3f})")
    falls = f"Test loss falls at every step of size for every architecture ({steps} steps)."
    yield Text(f"Test loss does not fall at every step of size: it rises for {', '.join(rises)}." if rises else falls)
    found, rows = stats.slopes(results.grid), []
    for arch in archs:
        this, line = found[arch], means.loc[arch].dropna()
        about = [arch_cell(arch), number(len(line), "d"), number(line.iloc[0] - line.iloc[-1], ".3f")]
        if isinstance(this, stats.NotALaw):
            rows.append([*about, number(None, "d"), Cell("–"), Cell(this.statement, kind="not-tested")])
        else:
            rows.append([*about, number(this.value, ".3f"), Cell(interval(this.low, this.high)), Cell(f"by {this.method}")])
    words = (
        "Fall of the test loss, smallest to largest size and for ten times the activated parameters (b of y = a − b log₁₀ x), "
    )
    words += (
        "with its 95 % interval. Tokens move with the size where the preset lets them: a slope of this path and of no other."
    )
    header = ["architecture", "sizes", "fall, first to last", "slope", "95 % interval", "interval"]
    yield Table("runs.csv", words, results.context(results.grid), header, rows, kinds(results.grid["device"]))


def _beside_the_papers(results: Results) -> Iterator:
    """Our comparison and the papers' models on the same axes."""
    panels, papers = [], published.losses()
    for column, words in (("active_params", "activated parameters"), ("params", "total parameters"), ("tokens", "tokens")):
        points = papers.assign(x=papers[column], y=papers["loss"])
        ours = [
            Series(arch, look(arch).label, here.assign(x=here[column].astype(float), y=here["test_loss"]))
            for arch, here in results.grid[results.grid[column].notna()].groupby("arch")
        ]
        labels = {"title": f"Against {words}", "x_label": words, "y_label": LOSS}
        panels.append(figures.laws(f"papers-{column}", ours, points[points["x"].notna()], **labels))
    yield Picture(
        "runs.csv + evals/claims/reference",
        "Ours (filled) and the papers' models (hollow; P1 table 1, P2 tables 1 and 3, pre-training only) on the same axes. "
        "Data and tokenizers differ, so the distance says nothing of quality: it shows how far from the papers' scale these "
        "runs are. MoE of P2 is drawn as MoE-8, grey is Memory+. P1 publishes no tokens.",
        results.context(results.grid),
        panels,
        in_order([*results.grid["arch"], *papers["arch"]]),
        (*kinds(results.grid["device"]), "published"),
    )
