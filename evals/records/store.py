"""Finished runs as they are committed, `results/reference/runs/{run}/`: a folder of small files each, and no weights.

Three hashes in its runs.csv say what a run is: of its config, of the source that trained it, of its data. Whoever wants a run
of the same three may take this one; `restored` gives back every file byte for byte, under whatever name the run has there.
Another source that was seen to give the same losses (`evals.agreement.rerun.vouch`) counts as the same: `same_source.csv`.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.records.errors import UserError
from evals.records.files import whole

# What is kept of what a run and its evaluation write beside each other; runs.csv is the last: it says that all are there.
NEEDED = ("config.yaml", "health.csv", "train.csv", "runs.csv")
FURTHER = ("evals.csv", "evals.json", "access.csv", "access.json", "tokens.safetensors")
FILES = (*NEEDED[:-1], *FURTHER, NEEDED[-1])
PACKED = ("train.csv",)  # a line for each step
HASHES = {"config": "config_sha", "source": "source_sha", "data": "data_sha"}
NAMES = ("run", "preset", "arch", "size")  # what a run is called, by which its hash of the config does not go
STORE = Path("results/reference/runs")
SAME = "same_source"  # table beside the runs


def working_folder(results: Path, name: str) -> Path:
    """Where a preset's runs and tables are made: `results/{preset}`, but for `reference`, whose committed tables lie there.

    Nothing that runs writes to committed files: they would be outputs that snakemake judges by the time of the checkout, and
    each table that changes would make the checkout of the runs after it a dirty one.
    """
    return results / ("reference.run" if name == "reference" else name)


def row_of(folder: Path) -> dict[str, str]:
    """The row of a run's `runs.csv`, cells as they stand in the file."""
    with open(folder / "runs.csv", newline="") as file:
        return next(csv.DictReader(file))


@dataclass(frozen=True)
class Stored:
    """A run of the store."""

    folder: Path
    row: Mapping[str, str]

    @property
    def run(self) -> str:
        return self.folder.name

    def hash(self, what: str) -> str:
        """Of `config`, `source` or `data`."""
        return self.row[HASHES[what]]

    def content(self, name: str) -> bytes | None:
        """A file as the run wrote it; None where it wrote none.

        Raises:
            UserError: the file is damaged.
        """
        path = _path(self.folder, name)
        try:
            return unpacked(name, path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}): check it out again") from None


def _path(folder: Path, name: str) -> Path:
    return folder / (f"{name}.gz" if name in PACKED else name)


def packed(name: str, content: bytes) -> bytes:
    """Equal contents are equal files: no time is noted."""
    return gzip.compress(content, mtime=0) if name in PACKED else content


def unpacked(name: str, content: bytes) -> bytes:
    return gzip.decompress(content) if name in PACKED else content


def stored(store: Path) -> list[Stored]:
    """Every run in `store`, by name; none where there is no such folder."""
    return [Stored(path.parent, row_of(path.parent)) for path in sorted(store.glob("*/runs.csv"))]


def same_sources(store: Path) -> dict[str, str]:
    """Source -> the one before it that gave the same losses, as far as somebody looked."""
    try:
        with open(store / f"{SAME}.csv", newline="") as file:
            return {row["source"]: row["same_as"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}


def first_source(source: str, same: Mapping[str, str]) -> str:
    """The first of the sources that are known to give the same losses as `source`, itself if none is."""
    while source in same:
        source = same[source]
    return source


def keep(folder: Path, store: Path, without: tuple[str, ...] = ()) -> list[str]:
    """Copies the finished run in `folder`, `without` some files, into `store`; returns the names of those new there or changed.

    A run that was trained again takes the place of all that its predecessor left; of the same run, what is there already stays.
    """
    into = store / folder.name
    old = Stored(into, {})
    if old.content("runs.csv") not in (None, (folder / "runs.csv").read_bytes()):
        shutil.rmtree(into)
    into.mkdir(parents=True, exist_ok=True)
    found = {name: (folder / name).read_bytes() for name in FILES if name not in without and (folder / name).exists()}
    new = {name: content for name, content in found.items() if old.content(name) != content}
    for name, content in new.items():
        with whole(_path(into, name)) as part:
            part.write_bytes(packed(name, content))
    return list(new)


def restored(run: Stored, names: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a stored run but its config, for a run that is called `names` (of `NAMES`): its tables get these.

    Raises:
        UserError: a file that every run has is missing, or one is damaged.
    """
    found = {name: content for name in FILES if (content := run.content(name)) is not None}
    if missing := set(NEEDED) - set(found):
        raise UserError(f"{run.folder} lacks {', '.join(sorted(missing))}: check it out again, or store the run again")
    if all(run.row[column] == name for column, name in names.items()):
        return {name: content for name, content in found.items() if name != "config.yaml"}
    tables = {name: _renamed(content, names) for name, content in found.items() if name.endswith(".csv")}
    return {name: tables.get(name, content) for name, content in found.items() if name != "config.yaml"}


def _renamed(table: bytes, names: Mapping[str, str]) -> bytes:
    head, *rows = csv.reader(io.StringIO(table.decode(), newline=""))
    told = io.StringIO()
    writer = csv.writer(told, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([names.get(column, cell) for column, cell in zip(head, row, strict=True)] for row in rows)
    return told.getvalue().encode()
