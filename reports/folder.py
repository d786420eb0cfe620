"""What is found in a folder of results: its tables, and of single runs, `runs/{run}` beside them, curves and configs."""

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from evals.records import schema
from evals.records.errors import UserError
from evals.records.store import Stored, stored

FILES = {name: name for name in schema.TABLES} | {"latency_modelled": "latency", "access_hardware": "access", "peers": "speed"}


def read_folder(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a folder by file name, `train` put together from its runs where it has none.

    Raises:
        UserError: there is no such folder, or a file is no table.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results: run `snakemake` first, or name one with --results")
    paths = {name: folder / f"{name}.csv" for name in FILES}
    found = {name: schema.read(path, FILES[name]) for name, path in paths.items() if path.exists()}
    if "runs" in found and "train" not in found:
        named = set(found["runs"]["run"])
        parts = [part for run in stored(folder / "runs") if run.run in named for part in _curve(run)]
        found |= {"train": pd.concat(parts, ignore_index=True)} if parts else {}
    return found


def _curve(run: Stored) -> Iterable[pd.DataFrame]:
    """The table `train` of a stored run, none where it has no such file; as committed it was checked when it was stored."""
    content = run.content("train.csv")
    if content is None:
        return
    columns = schema.columns("train")
    types = {column.name: str if column.dtype is str else float for column in columns}
    try:
        frame = pd.read_csv(io.BytesIO(content), dtype=types)[[*types]]
    except (ValueError, KeyError) as error:
        raise UserError(f"train.csv of {run.folder} is not a CSV of table 'train': {error}") from None
    yield frame.fillna({name: "" for name, dtype in types.items() if dtype is str})


def config_of(folder: Path, run: str) -> str:
    """The text of a run's config, "" where none is kept; tables of one chain lie a folder deeper than the runs."""
    for runs in (folder / "runs", folder.parent / "runs"):
        if (path := runs / run / "config.yaml").exists():
            return path.read_text(encoding="utf-8")
    return ""


def join(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Rows of one table, each once."""
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True).drop_duplicates() if frames else pd.DataFrame()
