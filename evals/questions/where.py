"""Where does a memory help? Its gain over the dense model token by token, by how often rows were read and tokens occur.

Every run keeps what it loses on the same test tokens (`tokens.safetensors`, workflows/health.py). The gain is the dense
model's loss minus the run's, of one size, seed and number of training tokens. Tokens are split into fifths: by the mean log
of the times that training read the rows they read, by how often the target stands in the training shard, and by reads among
tokens of one fifth of frequency, which takes apart what often goes together. Intervals are over seeds, not over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from evals import stats
from evals.claims.evidence.results import NotTested, Results
from evals.questions.answer import Answer, not_tested, told
from evals.records.errors import UserError
from evals.records.tensors import read_tensors

WHERE, BASE, CHAIN = "where", "dense", "scaling_tokens"
READS, FREQUENCY, BOTH = "reads", "frequency", "reads at equal frequency"
BINS = 5


def edges(values: np.ndarray) -> np.ndarray:
    """Ends of the fifths of a vector, (BINS + 1,)."""
    return np.quantile(values, np.linspace(0, 1, BINS + 1))


def fifths(values: np.ndarray) -> np.ndarray:
    """Which fifth each value is in, 0 to 4; equal values are in one."""
    return np.searchsorted(edges(values)[1:-1], values, side="right")


def fifths_within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which fifth of its own group each value is in."""
    found = np.empty(len(values), int)
    for group in np.unique(groups):
        found[groups == group] = fifths(values[groups == group])
    return found


def compared(results: Results) -> pd.DataFrame:
    """Runs that dense has a counterpart of: the grid's, and those of other budgets of tokens."""
    runs = results.runs.dropna(subset=["test_loss"])
    named = runs.run == runs.arch + "-" + runs["size"] + "-s" + runs.seed.astype(str)
    chained = set()
    try:
        arms = results.table("arms")
        chained = set(arms.run[arms.chain == CHAIN])
    except NotTested:
        pass
    runs = runs[named | runs.run.isin(chained)]
    keys = ["size", "seed", "tokens"]
    dense = runs[runs.arch == BASE].drop_duplicates(keys)[[*keys, "run"]].rename(columns={"run": "dense"})
    return runs[runs.arch != BASE].merge(dense, on=keys)


@lru_cache(maxsize=1)
def gains(results: Results) -> pd.DataFrame:
    """One row for each run, split and fifth: low and high end, targets in it, mean gain. NotTested: nothing was kept."""

    @cache
    def kept(run: str) -> dict[str, np.ndarray] | None:
        path = results.folder / "runs" / run / "tokens.safetensors"
        if not path.exists():
            return None
        tensors, _ = read_tensors(path)
        return {name: values.double().numpy() for name, values in tensors.items()}

    rows: list[dict] = []
    for run in compared(results).to_dict("records"):
        mine, dense = kept(run["run"]), kept(run["dense"])
        if mine is None or dense is None:
            continue
        if not np.array_equal(mine["frequency"], dense["frequency"]):
            pair = f"{run['run']} and {run['dense']}"
            raise UserError(f"{pair} kept the losses of different test tokens: train them again on the same data")
        about = {name: run[name] for name in ("run", "dense", "arch", "size", "d_model", "seed", "tokens")}
        rows += [about | row for row in _split(mine, dense["loss"] - mine["loss"])]
    if not rows:
        raise NotTested("no run and its dense counterpart have a tokens.safetensors in the folder of runs")
    return pd.DataFrame(rows)


def _split(kept: dict[str, np.ndarray], gain: np.ndarray) -> Iterator[dict]:
    common = fifths(kept["frequency"])
    splits = {FREQUENCY: common}
    if READS in kept:
        splits |= {READS: fifths(kept[READS]), BOTH: fifths_within(kept[READS], common)}
    for by, place in splits.items():
        ends = 2 ** edges(kept[by]) - 1 if by in kept else np.full(BINS + 1, np.nan)
        for fifth in range(BINS):
            if (here := place == fifth).any():
                yield {
                    "by": by,
                    "bin": fifth + 1,
                    "low": ends[fifth],
                    "high": ends[fifth + 1],
                    "targets": int(here.sum()),
                    "gain": float(gain[here].mean()),
                }


def table(results: Results) -> list[dict]:
    """Rows of the table `where`: the gain in each fifth, its interval that of the seed noise of this fifth over all configs."""
    try:
        found = gains(results)
    except NotTested:
        return []
    rows = []
    for (by, fifth), here in found.groupby(["by", "bin"], sort=False):
        noise = _noise(here)
        for (arch, size, tokens), cell in here.groupby(["arch", "size", "tokens"], sort=False):
            gain = stats.contrast([stats.Term(1, dict(zip(cell.seed, cell.gain, strict=True)))], noise)
            row = {"arch": arch, "size": size, "d_model": int(cell.d_model.iloc[0]), "tokens": int(tokens)}
            row |= {"by": by, "bin": fifth}
            row |= {"low": cell.low.mean(), "high": cell.high.mean(), "targets": round(cell.targets.mean())}
            row |= {"gain": gain.value, "ci_low": gain.low, "ci_high": gain.high, "n": len(cell)}
            rows.append(row | {"runs": " ".join([*cell.run, *cell.dense])})
    return sorted(rows, key=lambda row: (row["by"], row["d_model"], row["tokens"], row["arch"], row["bin"]))


def _noise(gains: pd.DataFrame) -> stats.Noise | None:
    config = gains["arch"] + " " + gains["size"] + " " + gains["tokens"].astype(str)
    return stats.noise(pd.DataFrame({"config": config, "seed": gains.seed, "block": config, "value": gains.gain}))


def answers(results: Results) -> list[Answer]:
    """Of every architecture: how much more it gains in the uppermost fifth than in the lowest, at the size that has the most
    seeds (of these the widest, at its largest budget), and the gain in both."""
    try:
        found = gains(results)
    except NotTested as missing:
        return [not_tested(WHERE, "ultramem", f"last fifth by {READS}", str(missing))]
    seeds = found.groupby(["size", "tokens", "d_model"]).seed.nunique()
    size, tokens, _ = max(seeds.index, key=lambda key: (seeds[key], key[2], key[1]))
    rows = []
    for by, here in found.groupby("by", sort=False):
        keys = ["arch", "size", "tokens", "d_model", "seed", "run", "dense"]
        wide = here.pivot(index=keys, columns="bin", values="gain").reset_index()
        if not {1, BINS} <= set(wide.columns):
            continue
        for quantity, values in (("first", wide[1]), ("last", wide[BINS]), ("last minus first", wide[BINS] - wide[1])):
            cells = wide.assign(gain=values).dropna(subset=["gain"])
            noise = _noise(cells)
            for arch, cell in cells[(cells["size"] == size) & (cells["tokens"] == tokens)].groupby("arch"):
                change = stats.contrast([stats.Term(1, dict(zip(cell.seed, cell.gain, strict=True)))], noise)
                given: dict[str, Any] = {
                    "question": WHERE,
                    "arch": str(arch),
                    "quantity": f"{quantity} fifth by {by}",
                    "unit": "nats/token",
                }
                rows.append(told(results, change, [*cell.run, *cell.dense], **given))
    return rows
