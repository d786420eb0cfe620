"""Loss against what it costs: points, laws where the points carry one, and the papers' points on the same axes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from evals import stats
from reports import figures, published
from reports.figures import Series
from reports.fits import fits
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import Panel, in_order, interval, key, look

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
    """Loss against activated parameters, total parameters, tokens, and sparse ratio at fixed density."""
    axes = list(_axes(results))
    if not axes:
        yield results.missing("runs")
        return
    yield Text(
        "For a look, a law is fitted by plain least squares where a series has four or more different sizes: y = c + a x⁻ᵇ "
        "against parameters and tokens, y = a − b log₁₀ x against the sparse ratio. Fewer points stay points, unjoined. "
        "What is claimed of exponents stands further below, with intervals."
    )
    if len(results.grid):
        yield from _slopes(results)
    drawn, panels, rows = [], [], []
    for place, (words, series) in enumerate(axes):
        drawn += [this.points for this in series]
        labels = {"x_label": words, "title": f"Against {words}"}
        panels.append(figures.laws(f"law-{place}", series, y_label=LOSS, **labels))
        if fitted := [this for this in series if isinstance(this.law, stats.Fit)]:
            panels.append(figures.residuals(f"residual-{place}", fitted, title="What the law leaves", x_label=words))
        rows += [_row(results, words, this) for this in series]
    runs = results.runs.loc[list(dict.fromkeys(pd.concat(drawn)["run"]))]
    context, badges, archs = results.context(runs), kinds(runs["device"]), in_order(runs["arch"])
    yield Picture(
        "runs.csv + arms.csv",
        "Test loss, one point a run; lines are fitted laws with their 95 % confidence band, residuals beside them. "
        "Open markers and dashes are a second line of an architecture (half as dense).",
        context,
        panels,
        archs,
        badges,
    )
    header = ["loss against", "architecture", "series", "points", "law", "R²", "largest residual", "runs"]
    yield Table("runs.csv + arms.csv", "Every curve drawn, or why there is none.", context, header, rows, badges)
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


def _axes(results: Results) -> Iterator[tuple[str, list[Series]]]:
    """(name of the x axis, its series): the comparison's sizes, then the chains that scale one thing."""
    for column, words in (("active_params", "activated parameters"), ("params", "total parameters")):
        if len(results.grid):
            points = results.grid.assign(x=results.grid[column].astype(float), line="")
            yield words, _series(points, stats.power_law)
    chains = (("scaling_tokens", "tokens", "tokens", stats.power_law),)
    chains += (("sparsity", "sparse_ratio", "sparse over activated parameters", stats.log_linear),)
    for chain, column, words, fit in chains:
        if "arms" not in results:
            continue
        arms = results["arms"][results["arms"]["chain"] == chain].drop_duplicates("run")
        points = results.runs[results.runs["test_loss"].notna()].merge(arms[["run", "label"]], on="run")
        if len(points):
            points["sparse_ratio"] = points["sparse_params"] / points["active_params"]
            line = points["label"].str.partition(",")[0].where(points["label"].str.contains(","), "")
            points = points.assign(
                x=points[column].astype(float), line=line.where(line.map(key) != points["arch"].map(key), "")
            )
            yield words, _series(points, fit)


def _series(points: pd.DataFrame, fit) -> list[Series]:
    found = []
    for arch in in_order(points["arch"]):
        for line, here in points[points["arch"] == arch].groupby("line", sort=False):
            here = here.assign(y=here["test_loss"]).sort_values("x")[["x", "y", "run", "seed"]]
            law = fit(here["x"], here["y"])
            here["residual"] = law.residuals if isinstance(law, stats.Fit) else np.nan
            found.append(Series(arch, f"{look(arch).label} {line}".strip(), here, law))
    return found


def _row(results: Results, words: str, this: Series) -> list[Cell]:
    law, runs = this.law, tuple((run, results.href(run)) for run in this.points["run"])
    line = this.label.removeprefix(look(this.arch).label).strip() or "–"
    row = [Cell(words), arch_cell(this.arch), Cell(line), number(this.points["x"].nunique(), "d")]
    if isinstance(law, stats.NotALaw):
        return [*row, Cell(law.statement, kind="not-tested"), *[number(None, "d")] * 2, Cell("", more=runs)]
    values = ", ".join(f"{name} = {value:.3g} ± {law.stderr[name]:.2g}" for name, value in law.params.items())
    form = law.form.replace("x^-b", "x⁻ᵇ").replace("-", "−").replace("log10", "log₁₀")
    worst = float(np.abs(law.residuals).max())
    return [*row, Cell(f"{form}: {values}".replace("-", "−")), number(law.r2, ".3f"), number(worst, ".3f"), Cell("", more=runs)]


def _beside_the_papers(results: Results) -> Iterator:
    """Our comparison and the papers' models on the same axes."""
    panels, papers = [], published.losses()
    for column, words in (("active_params", "activated parameters"), ("params", "total parameters"), ("tokens", "tokens")):
        points = papers.assign(x=papers[column], y=papers["loss"])
        ours = [
            Series(arch, look(arch).label, here.assign(x=here[column].astype(float), y=here["test_loss"]), stats.NotALaw(0, ""))
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
