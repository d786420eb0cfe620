"""What the results cost, by target, and what was predicted."""

from collections.abc import Iterator

from reports import figures
from reports.page import Cell, Picture, Results, Table, kinds, number
from reports.style import WIDE, si


def cost(results: Results) -> Iterator:
    """What it cost to make this report, and what was predicted."""
    yield from _measured_cost(results) if "cost" in results else [results.missing("cost")]
    if "plan" not in results:
        yield results.missing("plan")
        return
    frame = results["plan"]
    header, rows = results.listing("plan", frame)
    measured = results.runs["core_seconds"].astype(float).reindex(frame["run"])
    rows = [[*row, number(value, ".4g")] for row, value in zip(rows, measured, strict=True)]
    words = "The prediction made before anything ran, from a short measured calibration, beside what was measured."
    badges = (*kinds(frame["device"]), "predicted")
    yield Table("plan.csv + runs.csv", words, "", [*header, "measured core_seconds"], rows, badges, searchable=True, tall=True)


def _measured_cost(results: Results) -> Iterator:
    names = ["core_seconds", "tokens", "flops"]
    totals = results["cost"].groupby("target", sort=False)[names].sum(min_count=1).reset_index()
    totals = totals.sort_values("core_seconds", ascending=False)
    context, badges = " · ".join(sorted(results.runs["device"].unique())), kinds(results.runs["device"])
    words = {"title": "Core-seconds by target", "x_label": "core-seconds"}
    shape = {"width": WIDE, "height": 0.9 + 0.28 * len(totals)}
    drawn = figures.bars("cost", totals, "core_seconds", "target", **words, **shape)
    yield Picture("cost.csv", "Processor time by target.", context, [drawn], badges=badges)
    rows = [("all", *totals[names].sum(min_count=1)), *totals[["target", *names]].itertuples(index=False)]
    cells = [[Cell(name), *(Cell(si(value), value, number=True) for value in values)] for name, *values in rows]
    yield Table("cost.csv", "Cost by target.", context, ["target", "core-seconds", "tokens", "FLOPs"], cells, badges)
