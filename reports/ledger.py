"""What the results cost and stand on: the cost by target, the corpus, and every run with all that made it."""

import json
from collections.abc import Iterator

from evals.records.errors import UserError
from reports import figures
from reports.page import Cell, Facts, Missing, Picture, Results, Table, kinds, number
from reports.style import WIDE, anchor, si


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


def data(results: Results) -> Iterator:
    """The corpus, as its meta file describes it."""
    path = results.folder / "data.json"
    if not path.exists():
        yield Missing("Not recorded in this run: data.json is absent (the data stage writes it).")
        return
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path} does not describe a corpus: it holds no names")
    yield Facts([(name, _plain(value)) for name, value in meta.items() if not isinstance(value, dict | list)])
    for name, value in meta.items():
        entries = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            continue
        header = list(dict.fromkeys(title for entry in entries for title in entry))
        rows = [[Cell(_plain(entry.get(title, "–")), title=str(entry.get(title, ""))) for title in header] for entry in entries]
        if isinstance(value, dict):
            header, rows = ["", *header], [[Cell(title), *row] for title, row in zip(value, rows, strict=True)]
        yield Table("data.json", f"Corpus: {name}.", "", header, rows)


def provenance(results: Results) -> Iterator:
    """Every run with everything that made it."""
    if "runs" not in results:
        yield results.missing("runs")
        return
    header, rows = results.listing("runs", results.runs)
    rows = [[Cell(row[0].text, id=anchor(row[0].text)), *row[1:]] for row in rows]
    words = "One row a run, written by the worker that trained it. Hashes are cut to ten digits; hover for the whole."
    yield Table("runs.csv", words, "", header, rows, kinds(results.runs["device"]), searchable=True, tall=True, cards=True)


def _plain(value) -> str:
    return f"{value:,}".replace(",", "\u202f") if type(value) is int else str(value)
