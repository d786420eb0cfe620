"""What each item of a task gave, beside a run's evals.csv: two runs are compared item by item, which separates more.

`items.parquet` has a row for each item and task: `item` is a hash of the item itself, so that runs pair whatever else
was asked of them; `cluster` is shared by items that depend on each other (prompts of one question); `value` is the
task's primary metric and `correct` whether the item was right, empty where nothing can be right. An item with a level
stands under `TASK/LEVEL`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats as distributions

from evals.records import files
from evals.records.errors import UserError
from evals.stats.intervals import Interval

FILE = "items.parquet"
TYPES = pa.schema(
    [
        ("task", pa.dictionary(pa.int32(), pa.string())),
        ("item", pa.string()),
        ("cluster", pa.string()),
        ("value", pa.float64()),
        ("correct", pa.bool_()),
    ]
)


def write(run: Path, items: Iterable[dict]) -> None:
    """Rows with the keys of `TYPES`; the file of the run in folder `run` is whole or untouched."""
    with files.whole(run / FILE) as part:
        pq.write_table(pa.Table.from_pylist(list(items), schema=TYPES), part, compression="zstd")


def whole(run: Path) -> bool:
    """Whether the file is there and not cut short: a parquet file has its schema at its end."""
    try:
        return pq.read_schema(run / FILE) is not None
    except (OSError, pa.ArrowInvalid):
        return False


def read(run: Path) -> pd.DataFrame:
    """The items of the run in folder `run`.

    Raises:
        UserError: they are missing or damaged.
    """
    try:
        return pq.read_table(Path(run) / FILE).to_pandas().astype({"task": str})
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{Path(run) / FILE} cannot be read ({error}): run python -m evals.scores.harness --run {run}"
        ) from None


def stderr(values: np.ndarray, clusters: Sequence) -> float | None:
    """Standard error of the mean, items of one cluster (prompts of one question) counted as dependent."""
    sums: Counter[Hashable] = Counter()
    for deviation, cluster in zip(values - values.mean(), clusters, strict=True):
        sums[cluster] += deviation
    k = len(sums)
    return math.sqrt(sum(s * s for s in sums.values()) * k / (k - 1)) / len(values) if k > 1 else None


def paired(a: pd.DataFrame, b: pd.DataFrame, tasks: Sequence[str], column: str = "value", level: float = 0.95) -> Interval:
    """Mean over tasks of a's minus b's mean over the items that both were asked.

    The items are the same, so what makes one harder than another cancels. The interval is over items: it holds none of
    the noise of training.

    Args:
        a, b: what `read` gives of two runs.
        tasks: patterns such as `arc_*`, the levels of a task counted with it; each task that matches weighs the same.
        column: `value` or `correct`.

    Raises:
        UserError: the runs share no item of these tasks.
    """
    a, b = (frame.dropna(subset=[column]) for frame in (a.assign(name=a.task.str.partition("/")[0]), b))
    asked = {name for name in a.name if any(fnmatchcase(name, pattern) for pattern in tasks)}
    a = a[a.name.isin(asked)]
    both = a.merge(b, on=["task", "item"], suffixes=("", "_b"), validate="one_to_one")
    if both.empty:
        raise UserError(f"the two runs were asked no common item of {', '.join(tasks)}: evaluate both with the same tasks")
    gap = both[column].astype(float) - both[f"{column}_b"].astype(float)
    parts = [(gap[rows.index].to_numpy(), rows.cluster) for _, rows in both.groupby("name")]
    value = float(np.mean([part.mean() for part, _ in parts]))
    errors = [error for part in parts if (error := stderr(*part)) is not None]
    if len(errors) < len(parts):
        return Interval(value, math.nan, math.nan, len(both), "one item")
    freedom = sum(clusters.nunique() - 1 for _, clusters in parts)
    half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * math.hypot(*errors) / len(parts)
    return Interval(value, value - half, value + half, len(both), "paired items")
