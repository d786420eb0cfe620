"""Every run and all that made it."""

from collections.abc import Iterator

from reports.page import Cell, Results, Table, kinds
from reports.style import anchor


def provenance(results: Results) -> Iterator:
    """Every run with everything that made it."""
    if "runs" not in results:
        yield results.missing("runs")
        return
    header, rows = results.listing("runs", results.runs)
    rows = [[Cell(row[0].text, id=anchor(row[0].text)), *row[1:]] for row in rows]
    words = "One row a run, written by the worker that trained it. Hashes are cut to ten digits; hover for the whole."
    yield Table("runs.csv", words, "", header, rows, kinds(results.runs["device"]), searchable=True, tall=True, cards=True)
