"""The decision chart: which layer has the lowest loss at equal decode time, by batch and stored parameters.

What that means, and how loss and time become one number, is in `evals/decode/decision.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd

from evals import stats
from evals.decode import decision
from evals.decode.decision import Cell as Choice
from evals.stats import Interval
from reports import figures
from reports.contrast import seed_noise
from reports.page import Cell, Missing, Picture, Results, Table, arch_cell, kinds, number
from reports.ranking import ranking, role
from reports.style import BROAD, in_order, interval, key, look, si
from reports.timings import timings

MEASURED = "measured"
VARIANTS = {
    MEASURED: lambda timed: timed,
    "MoE at its roofline": decision.at_roofline,
    "all at their roofline": partial(decision.at_roofline, every=True),
}
WORDS = {
    MEASURED: "as measured",
    "MoE at its roofline": "every MoE at its roofline, the rest as measured",
    "all at their roofline": "every layer at its roofline",
}


@dataclass(frozen=True)
class Decision:
    """Cells by variant of the times, those as measured first, and what they were made with."""

    cells: dict[str, list[Choice]]
    slope: Interval
    timed: pd.DataFrame

    @property
    def measured(self) -> list[Choice]:
        return self.cells[MEASURED]


def decide(results: Results) -> Decision | str:
    """The chart's cells, or why there are none."""
    at = ranking(results)
    if at is None:
        return "no size has a mixture of experts and a memory layer with a test loss"
    if "latency" not in results:
        return "latency.csv holds no decode times"
    slope = stats.slopes(results.grid).get(decision.DENSE)
    if not isinstance(slope, Interval):
        return (
            f"time is converted by the slope of dense's loss over sizes, and dense has none ({getattr(slope, 'statement', '')})"
        )
    if slope.value <= 0:
        return "time is converted by what dense's loss falls by with size, and it does not fall"
    timed = decision.times(timings(results))
    rows = decision.rows(results.grid, arms(results), at.size)
    noise = seed_noise(results)
    cells = {name: list(decision.decide(rows, change(timed), slope, noise)) for name, change in VARIANTS.items() if len(timed)}
    cells = {name: found for name, found in cells.items() if found}
    if MEASURED not in cells:
        return "no measured decode time belongs to the architectures and sparse ratios that were trained"
    return Decision(cells, slope, timed)


def arms(results: Results, chain: str = decision.CHAIN) -> pd.DataFrame:
    """Finished runs of a chain, by default of the one that varies stored parameters, with their arm's `label`."""
    finished = results.runs[results.runs["test_loss"].notna()]
    if "arms" not in results:
        return finished[:0].assign(label="")
    members = results["arms"][results["arms"]["chain"] == chain].drop_duplicates("run")
    return finished.merge(members[["run", "label"]], on="run")


def chart(results: Results) -> Iterator:
    """The chart in each variant, and its numbers as a table."""
    found = decide(results)
    if isinstance(found, str):
        yield Missing(f"No decision chart from this run: {found}.")
        return
    first, row = found.timed.iloc[0], found.measured[0].row
    parts = "whole model" if first["part"] == "model" else "feed-forward and memory alone"
    threads = "" if pd.isna(first["threads"]) else f", {first['threads']:.0f} thread{'s' * bool(first['threads'] > 1)}"
    where = f"losses of {', '.join(dict.fromkeys(cell.row.size for cell in found.measured))}, d_model {_width(results, row)}"
    where += f" · times of size {first['size']}, {parts}, {first['dtype']}{threads} · {first['device']}"
    badges = (*kinds(found.timed["device"]), "measured")
    csv = "runs.csv + latency.csv" + " + arms.csv" * (len({cell.row.ratio for cell in found.measured}) > 1)
    names = in_order({standing.arch for cells in found.cells.values() for cell in cells for standing in cell.standings})
    yield Picture(csv, caption(found), where, list(_panels(found)), badges=badges)
    yield _table(found, names, csv, where, badges)


def caption(found: Decision) -> str:
    """What the chart shows and what `at equal decode time` means in it."""
    b = found.slope
    return (
        "Best layer at equal decode time, by batch and by parameters stored over activated ones. A layer whose step takes t "
        "times as long as dense's is charged b log₁₀ t: what dense's test loss falls by as it grows until its step takes as "
        "long "
        f"(b = {b.value:.2f} [{b.low:.2f}, {b.high:.2f}] nats for ten times the activated parameters, tokens along with them). "
        "Score = test loss + charge; the lowest is named, with its distance to the runner-up in nats. Hatched: the 95 % "
        "interval (seeds, b, times) does not tell the named layers apart. A roofline is the time of perfect code on this "
        "machine." + " † Timed at another sparse ratio than trained (see the table)." * any(map(elsewhere, found.measured))
    )


def _width(results: Results, row: decision.Row) -> str:
    here = results.grid[results.grid["size"] == row.size]
    return f"{here['d_model'].iloc[0]}, {si(row.active_params)} activated parameters"


def elsewhere(cell: Choice) -> bool:
    """Whether its times are of another sparse ratio than its losses."""
    return max(cell.timed, cell.row.ratio) / min(cell.timed, cell.row.ratio) >= decision.SAME_RATIO


def _panels(found: Decision) -> Iterator:
    for place, (name, cells) in enumerate(found.cells.items()):
        height = 0.6 + 0.5 * len(ticks(cells)) + 0.2 * (place == len(found.cells) - 1)
        yield figures.choices(f"decision-{place}", cells, **drawn(found, name), width=BROAD, height=height)


def drawn(found: Decision, name: str) -> dict:
    """How the cells of a variant are drawn: labels of rows, cells with a dagger, title and, below the last, the axis' name."""
    cells, last = found.cells[name], name == list(found.cells)[-1]
    marked = {id(cell) for cell in cells if elsewhere(cell)}
    labels = {"title": f"Best layer at equal decode time, {WORDS[name]}", "x_label": "batch" * last}
    return {"rows": ticks(cells), "marked": marked} | labels


def ticks(cells: list[Choice]) -> dict[float, str]:
    """Labels of the chart's rows by ratio, few stored parameters first."""
    return {cell.row.ratio: f"{si(cell.row.params)} stored,\n{cell.row.ratio:.2g}× activated" for cell in cells}


def _table(found: Decision, names: list[str], csv: str, where: str, badges: tuple[str, ...]) -> Table:
    rows = []
    for variant, cells in found.cells.items():
        for cell in cells:
            by_arch = {standing.arch: standing for standing in cell.standings}
            scores = [
                Cell(
                    f"{by_arch[arch].score:.3f} ({by_arch[arch].pace:.2f})",
                    by_arch[arch].score,
                    title=f"loss {by_arch[arch].loss:.3f}, {by_arch[arch].pace:.2f} times dense's time",
                    number=True,
                    strong=arch in cell.level,
                )
                if arch in by_arch
                else number(None, ".3f")
                for arch in names
            ]
            about = [Cell(variant), number(cell.batch, "d"), number(cell.row.ratio, ".3g"), number(cell.timed, ".3g")]
            gap = [number(cell.gap.value, ".3f"), Cell(interval(cell.gap.low, cell.gap.high))]
            others = ", ".join(look(arch).label for arch in cell.level[1:])
            rows.append([*about, arch_cell(cell.best), Cell(others or "none", kind="brief"), *gap, *scores])
    header = ["times", "batch", "stored / activated", "timed at", "best", "not told apart from it", "runner-up − best"]
    header += ["95 % interval", *(look(arch).label for arch in names)]
    words = (
        "The numbers of the chart: score in nats (time over dense's in brackets), the best and what is not told apart from it "
    )
    return Table(csv, words + "in bold.", where, header, rows, badges, tall=True)


def spoken(cells: list[Choice]) -> str:
    """The best layer from batch to batch of one row: 'UltraMem at batch 1 to 64 and MoE-8 from 256 to 1024'."""
    groups: list[list[Choice]] = []
    for cell in sorted(cells, key=lambda cell: cell.batch):
        if groups and _named(groups[-1][0]) == _named(cell):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    said = [f"{_named(group[0])} at batch {_span(group)}" for group in groups]
    return " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))


def changes(cells: list[Choice]) -> bool:
    """Whether two batches of one row have different best layers, both told apart from all others."""
    return len({key(cell.best) for cell in cells if cell.told}) > 1


def _named(cell: Choice) -> str:
    """The best layer, the kind of layer if no more is told, or none."""
    names = [look(arch).label for arch in in_order(cell.level)]
    if cell.told:
        return names[0]
    roles = {role(arch) for arch in cell.level}
    kind = {"moe": "experts", "memory": "a memory layer"}.get(roles.pop()) if len(roles) == 1 else None
    return f"{kind} ({' or '.join(names)})" if kind else f"none told apart ({look(cell.best).label} lowest)"


def _span(group: list[Choice]) -> str:
    first, last = group[0].batch, group[-1].batch
    return f"{first}" if first == last else f"{first} to {last}"
