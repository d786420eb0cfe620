"""Training curves of a results folder: the table `train`, its own or put together from what its runs keep."""

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from evals.records import schema
from evals.records.errors import UserError
from evals.records.store import Stored, stored


def curves(folder: Path, runs: Iterable[str]) -> pd.DataFrame | None:
    """The table `train` of `folder`, where it is kept run by run (`results/reference`) of `runs` alone; None without curves.

    Raises:
        UserError: a file is no such table.
    """
    path, named = folder / "train.csv", set(runs)
    if path.exists():
        return schema.read(path, "train")
    parts = [part for run in stored(folder / "runs") if run.run in named for part in _curve(run)]
    return pd.concat(parts, ignore_index=True) if parts else None


def _curve(run: Stored) -> Iterable[pd.DataFrame]:
    """The table of a stored run, none where it has no such file; as committed it was checked when it was stored."""
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
