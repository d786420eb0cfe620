"""The report's pictures: data in, one small SVG out, drawn by matplotlib.

A figure is a row of panels that the page wraps, so that text keeps its size on a phone. A point that stands for a run
links to its section.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evals.decode.decision import Cell as Choice
from reports.style import (
    AFTER,
    DASHES,
    GAIN,
    INK,
    LOSS,
    MUTED,
    PAPER,
    hollow,
    in_order,
    labelled,
    link,
    look,
    markers,
    panel,
    scales,
    si,
)


@panel
def curves(
    axes: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: str = "",
    by: tuple[str, ...] = ("arch",),
    band: tuple[str, str] | None = None,
    levels: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
    blind: tuple[float, float] | None = None,
    lines: str = "",
    marks: pd.DataFrame | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """`y` against `x`, one line for each value of `by`; `log` names the logarithmic axes ("x", "y", "xy").

    `lines` names a column whose values, in their order, are drawn solid and filled, dashed and open, dotted and open, a
    line each; the points of `marks` (`x`, `y`) are ringed. `y_range` is for panels that share a scale.

    `band` names the columns of the interval to shade; `levels` (arch, `y`) and a blind guess's (`y`, half width) are
    drawn across; `published` (arch, `x`, `y`) are hollow points. Where `frame` has a column `run`, its points link to it
    unless it is empty.
    """
    by = (*by, lines) if lines and lines not in by else by
    strokes = list(dict.fromkeys(frame[lines])) if lines else [""]
    few = frame.groupby(list(by)).size().max() <= 12
    archs = in_order(frame["arch"])
    for _, line in sorted(frame.groupby(list(by)), key=lambda item: archs.index(item[1]["arch"].iloc[0])):
        line, this = line.sort_values(x), look(line["arch"].iloc[0])
        stroke = strokes.index(line[lines].iloc[0]) if lines else 0
        axes.plot(line[x], line[y], color=this.colour, linestyle=DASHES[stroke % len(DASHES)])
        if band:
            axes.fill_between(line[x], line[band[0]], line[band[1]], color=this.colour, alpha=0.12, linewidth=0)
        if few:
            markers(axes, line[x], line[y], this, line.get("run", ()), solid=not stroke)
    for _, level in (levels if levels is not None else frame[:0]).iterrows():
        axes.axhline(level[y], color=look(level["arch"]).colour, linestyle=(0, (4, 3)), linewidth=1.2)
    if blind:
        axes.axhspan(blind[0] - blind[1], blind[0] + blind[1], color=MUTED, alpha=0.15, linewidth=0)
        axes.axhline(blind[0], color=INK, linestyle=(0, (1, 2)), linewidth=1.2)
    if marks is not None:
        axes.scatter(marks[x], marks[y], 130, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=4)
    hollow(axes, published, x, y)
    if y_range:
        axes.set_ylim(y_range)
    scales(axes, log)
    if "x" not in log and frame[x].nunique() <= 4:
        axes.set_xticks(sorted(frame[x].unique()))
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return f"{title}: {y_label} against {x_label} for {', '.join(look(arch).label for arch in archs)}"


@dataclass(frozen=True)
class Series:
    """Points of one architecture (columns x, y, run, of a law also residual) and the law through them: it has `predict`."""

    arch: str
    label: str
    points: pd.DataFrame
    law: Any = None


@panel
def laws(
    axes: Axes, series: list[Series], published: pd.DataFrame | None = None, *, title: str, x_label: str, y_label: str
) -> str:
    """Points, joined only by a fitted law; `published` (arch, x, y) are hollow. x is logarithmic."""
    for place, this in enumerate(series):
        drawn, dashes = look(this.arch), DASHES[[s.arch for s in series[:place]].count(this.arch) % len(DASHES)]
        markers(axes, this.points["x"], this.points["y"], drawn, this.points["run"], solid=dashes == "solid")
        if this.law:
            x = np.geomspace(this.points["x"].min(), this.points["x"].max(), 40)
            axes.plot(x, this.law.predict(x), color=drawn.colour, linestyle=dashes)
    hollow(axes, published, "x", "y")
    scales(axes, "x")
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return f"{title}: {y_label} against {x_label} for {', '.join(this.label for this in series)}"


@panel
def residuals(
    axes: Axes, series: list[Series], *, title: str, x_label: str, y_label: str = "loss minus law (nats/token)"
) -> str:
    """What each fitted law leaves (column `residual`), point by point."""
    for place, this in enumerate(series):
        solid = this.arch not in [s.arch for s in series[:place]]
        markers(axes, this.points["x"], this.points["residual"], look(this.arch), this.points["run"], solid=solid)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    scales(axes, "x")
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return f"{title}: {y_label} against {x_label}"


@panel
def heat(axes: Axes, cells: pd.DataFrame, words: pd.DataFrame, *, title: str, x_label: str) -> str:
    """A map of ratios by row and batch: blue above 1, orange below, blank where `cells` is NaN; `words` stand in it."""
    strongest = max(np.nanmax(np.abs(np.log(cells.to_numpy(float)))), np.log(1.5))
    for row, (_, line) in enumerate(cells.iterrows()):
        for column, value in enumerate(line):
            text = words.iloc[row, column]
            if not pd.isna(value):
                shade = min(1.0, abs(math.log(value)) / strongest)
                colour = GAIN if value >= 1 else LOSS
                axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, color=colour, alpha=0.06 + 0.5 * shade, lw=0))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=INK if not pd.isna(value) else MUTED)
    axes.set(xlim=(-0.5, cells.shape[1] - 0.5), ylim=(cells.shape[0] - 0.5, -0.5), title=title, xlabel=x_label)
    batches = [f"{batch // 1024} k" if batch % 1024 == 0 else str(batch) for batch in cells.columns]
    axes.set_xticks(range(cells.shape[1]), batches)
    axes.set_yticks(range(cells.shape[0]), cells.index)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return f"{title} by {x_label}: " + "; ".join(f"{name}: {', '.join(words.loc[name])}" for name in words.index)


@panel
def choices(axes: Axes, cells: list[Choice], *, rows: dict[float, str], marked: set[int], title: str, x_label: str) -> str:
    """The best layer by batch and row (label by ratio, first at the bottom): its colour and name, hatched where not told apart.

    Cells whose `id` is in `marked` carry a dagger.
    """
    batches, ratios, spoken = sorted({cell.batch for cell in cells}), list(rows), []
    for cell in cells:
        x, y, this = batches.index(cell.batch), ratios.index(cell.row.ratio), look(cell.best)
        place = ((x - 0.48, y - 0.46), 0.96, 0.92)
        axes.add_patch(Rectangle(*place, facecolor=this.colour, lw=0, alpha=0.36 if cell.told else 0.08))
        others = [f"or {look(arch).label}" for arch in cell.level[1:]]
        others = others if len(others) < 3 else [f"or {len(others)} others"]
        words = [this.label + "†" * (id(cell) in marked), *(others or [f"by {cell.gap.value:.2f}"])]
        box = None
        if not cell.told:
            axes.add_patch(Rectangle(*place, fill=False, edgecolor=this.colour, lw=0, hatch="////", alpha=0.8))
            box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.9, "pad": 2}
        axes.text(x, y, "\n".join(words), ha="center", va="center", fontsize=8.5, color=INK, bbox=box, linespacing=1.1)
        spoken.append(f"batch {cell.batch}, {cell.row.ratio:.3g} times stored: {' '.join(words)}")
    axes.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(ratios) - 0.5), title=title, xlabel=x_label)
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_yticks(range(len(ratios)), list(rows.values()))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return f"{title}: {'; '.join(spoken)}"


@panel
def bars(
    axes: Axes, frame: pd.DataFrame, value: str, label: str, *, title: str, x_label: str, mark: float | None = None
) -> str:
    """One horizontal bar for each row, in order; `mark` draws a line there."""
    places = range(len(frame))[::-1]
    colours = [look(arch).colour for arch in frame["arch"]] if "arch" in frame else [MUTED] * len(frame)
    drawn = axes.barh(places, frame[value], height=0.62, color=colours)
    for bar, run in zip(drawn, frame.get("run", []), strict=False):
        bar.set_url(link(run))
    for place, number in zip(places, frame[value], strict=True):
        axes.annotate(si(number), (number, place), (4, 0), **AFTER)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=0.8)
    axes.set_yticks(places, frame[label])
    axes.set_xlim(0, frame[value].max() * 1.2)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: si(number)))
    axes.set(title=title, xlabel=x_label)
    axes.spines["left"].set_visible(False)
    return f"{title}: {x_label} by {label}"


@panel
def waterfall(axes: Axes, labels: list[str], losses: list[float], runs: list[str], *, title: str) -> str:
    """A cumulative chain: each bar leads from the loss before a step to the loss after it; the base is a line."""
    places = range(len(losses))[::-1]
    for place, before, after, run in zip(places, [losses[0], *losses], losses, runs, strict=False):
        if place == places[0]:
            axes.plot([after], [place], "o", color=INK, clip_on=False)
            continue
        (bar,) = axes.barh([place], [after - before], 0.62, [before], color=GAIN if after <= before else LOSS)
        bar.set_url(link(run))
        axes.plot([before, before], [place - 0.31, place + 1], color=MUTED, linewidth=0.7)
    axes.annotate(f"{losses[-1]:.3f}", (max(losses[-2:]), places[-1]), (4, 0), **AFTER)
    room_left = losses[0] > (min(losses) + max(losses)) / 2
    offset, side = ((-7, 0), "right") if room_left else ((7, 0), "left")
    axes.annotate(f"{losses[0]:.3f}", (losses[0], places[0]), offset, **AFTER, ha=side)
    axes.use_sticky_edges = False
    axes.margins(x=0.1)
    labelled(axes, places, labels, title, "test loss (nats/token)")
    return f"{title}: test loss after each step, from {losses[0]:.3f} to {losses[-1]:.3f}"


@panel
def changes(
    axes: Axes,
    labels: list[str],
    ours: list[float],
    paper: list[float],
    runs: list[str],
    *,
    title: str,
    spread: list[tuple[float, float]] = (),
) -> str:
    """The change each step makes: ours as a bar with the interval `spread` (low, high), the paper's as a diamond."""
    places = range(len(labels))[::-1]
    for place, ends in zip(places, spread, strict=False):
        axes.plot(ends, [place, place], color=INK, linewidth=1, zorder=3)
    for bar, run in zip(axes.barh(places, ours, 0.62, color=[LOSS if x > 0 else GAIN for x in ours]), runs, strict=True):
        bar.set_url(link(run))
    axes.plot(paper, places, "D", color=INK, markersize=5, markeredgecolor=PAPER, linestyle="none")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.use_sticky_edges = False
    labelled(axes, places, labels, title, "change of test loss (nats/token)")
    return f"{title}: change of test loss by step, ours as bars and the paper's as diamonds"


@panel
def dots(axes: Axes, frame: pd.DataFrame, *, title: str, x_label: str) -> str:
    """`value` ± `stderr` by `task` (one row each), a marker for each architecture, a tick at `chance`."""
    tasks = list(dict.fromkeys(frame["task"]))
    archs = in_order(frame["arch"])
    for arch, rows in frame.groupby("arch"):
        this = look(arch)
        shift = 0.3 - 0.6 * (archs.index(arch) + 0.5) / len(archs)
        places = [len(tasks) - 1 - tasks.index(task) + shift for task in rows["task"]]
        axes.errorbar(rows["value"], places, xerr=rows["stderr"], fmt="none", ecolor=this.colour, elinewidth=1)
        points = axes.scatter(rows["value"], places, 22, this.colour, this.marker, edgecolors=PAPER, linewidths=0.5, zorder=3)
        points.set_urls([link(run) for run in rows["run"]])
    for task, chance in frame.dropna(subset=["chance"]).groupby("task")["chance"].first().items():
        place = len(tasks) - 1 - tasks.index(task)
        axes.plot([chance, chance], [place - 0.42, place + 0.42], color=INK, linewidth=1.4)
    labelled(axes, range(len(tasks))[::-1], tasks, title, x_label)
    return f"{title}: {x_label} by task with one standard error, chance as a tick"
