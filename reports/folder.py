"""What is found in a folder of results: its tables, and of single runs, `runs/{run}` beside them, curves and configs."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from evals.records import schema
from evals.records.curves import curves
from evals.records.errors import UserError

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
    if "runs" in found and "train" not in found and (train := curves(folder, found["runs"]["run"])) is not None:
        found["train"] = train
    return found


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
