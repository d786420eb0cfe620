"""The corpus that everything was trained on."""

import json
from collections.abc import Iterator

from evals.records.errors import UserError
from reports.page import Cell, Facts, Missing, Results, Table


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
        yield from _tables(name, value)


def _tables(name: str, value) -> Iterator:
    """A table of the entries of a list or dict; entries that hold entries themselves have tables of their own."""
    if isinstance(value, dict):
        within = {key: entry for key, entry in value.items() if _entries(entry) and isinstance(entry, dict)}
        for key, entry in within.items():
            yield from _tables(f"{name}, {key}", entry)
        value = {key: entry for key, entry in value.items() if key not in within}
    entries = _entries(value)
    if not entries:
        return
    header = list(dict.fromkeys(title for entry in entries for title in entry))
    rows = [[Cell(_plain(entry.get(title, "–")), title=str(entry.get(title, ""))) for title in header] for entry in entries]
    if isinstance(value, dict):
        header, rows = ["name", *header], [[Cell(title), *row] for title, row in zip(value, rows, strict=True)]
    yield Table("data.json", f"Corpus: {name}.", "", header, rows)


def _entries(value) -> list[dict]:
    """The dicts of a list or dict that holds nothing else."""
    entries = list(value.values()) if isinstance(value, dict) else value
    return entries if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) else []


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items()) or "none"
    return f"{value:,}".replace(",", "\u202f") if type(value) is int else str(value)
