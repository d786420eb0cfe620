"""A folder's manifest.json: the hashes of its tables as they were gathered."""

import fcntl
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from evals.records.errors import UserError
from evals.records.schema.files import read, write_whole

MANIFEST = "manifest.json"


def seal(folder: Path, tables: Iterable[str]) -> None:
    """Note sha256 and number of rows of `tables`, just written to `folder`, in its manifest.json."""
    folder = Path(folder)
    with (folder / f".{MANIFEST}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # stages that run side by side each note theirs
        path = folder / MANIFEST
        manifest = json.loads(path.read_text()) if path.exists() else {}
        for table in tables:
            content = (folder / f"{table}.csv").read_bytes()
            rows = len(read(folder / f"{table}.csv", table))
            manifest[table] = {"sha256": hashlib.sha256(content).hexdigest(), "rows": rows}
        write_whole(path, json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def check_seal(folder: Path) -> None:
    """Compare the tables of `folder` with its manifest.json; without one there is nothing to compare.

    Raises:
        UserError: a table is missing or not as it was written; or the manifest is no JSON.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text()) if path.exists() else {}
        expected = {table: entry["sha256"] for table, entry in manifest.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: run python -m workflows.gather {folder} again") from None
    for table, sha256 in expected.items():
        file = Path(folder) / f"{table}.csv"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise UserError(
                f"{file} is missing or was changed after it was gathered from the runs (its sha256 is not that of {MANIFEST}): "
                f"delete both files and run snakemake again"
            )
