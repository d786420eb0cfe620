"""Scores of tasks, and health metrics of layers."""

from __future__ import annotations

import math
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np

from evals import stats
from evals.claims.evidence.results import Evidence, NotTested, Results, metric, of_seeds

SCORES = ("acc", "len_norm")  # a task has one of them


@metric
def score_gap(results: Results, of: str, against: str, tasks: list[str], size: str = "") -> Evidence:
    """Mean accuracy over tasks of one architecture minus another's, in points; over seeds, or over items for one seed.

    A task with a `*` is the mean over all that match.
    """
    table = results.table("evals")
    sides, error, items = [], 0.0, 0
    size = size or (results.sizes([of, against]) or ["largest"])[-1]
    left, right = results.grid(of, size), results.grid(against, size)
    for runs in (left, right):
        scores = {}
        for seed, run_id in runs.run.items():
            rows = table[(table.run == run_id) & table.metric.isin(SCORES)]
            rows = [rows[rows.task.map(lambda name, task=task: fnmatch(name, task))] for task in tasks]
            if any(part.empty for part in rows):
                continue
            scores[seed] = 100 * float(np.mean([part.value.mean() for part in rows]))
            variance = sum((part.stderr.fillna(0) ** 2).sum() / len(part) ** 2 for part in rows) / len(tasks) ** 2
            error = max(error, 100 * math.sqrt(variance))
            items = int(sum(part.n.sum() for part in rows))
        if not scores:
            raise NotTested(f"evals.csv has no accuracy of {', '.join(tasks)} for {runs.arch.iloc[0]}")
        sides.append(scores)
    gap = stats.difference(sides[0], sides[1])
    run_ids = (*left.run, *right.run)
    if gap.bounded:
        return of_seeds(gap, run_ids)
    half = 1.96 * math.sqrt(2) * error
    if not half:
        return of_seeds(gap, run_ids)
    note = "one seed: the interval is over items and does not hold the noise of training"
    return replace(of_seeds(gap, run_ids, note), low=gap.value - half, high=gap.value + half, n=items, kind="items")


@metric
def health(results: Results, arch: str, name: str, reduce: str = "mean", of_tokens: bool = False) -> Evidence:
    """A health metric at the end of the grid runs of one architecture: mean or max over layers.

    Args:
        of_tokens: the metric is a recall, so its interval is at least the exact one of a share of the tokens it was
            measured on in each layer and run, and stays within 0 and 1.
    """
    runs = results.grid(arch, results.sizes([arch])[-1])
    table = results.table("health")
    table = table[(table.metric == name) & table.run.isin(runs.run)]
    if table.empty:
        raise NotTested(f"health.csv has no {name} for {arch}")
    last = table[table.step == table.groupby("run").step.transform("max")]
    values = last.groupby("run").value.agg(reduce)
    found = of_seeds(stats.mean(values), values.index)
    if not of_tokens:
        return found
    from models.memory import recall_tokens

    matched = results.table("matched_compute")
    keys = matched[(matched.arch == arch) & (matched["size"] == runs["size"].iloc[0])].n_keys.dropna()
    if keys.empty:
        raise NotTested(f"matched_compute.csv has no n_keys of {arch}")
    n = len(last) * recall_tokens(int(keys.iloc[0]))
    low, high = stats.share(found.value, n)
    if found.bounded:
        low, high = max(0.0, min(low, found.low)), min(1.0, max(high, found.high))
    return replace(found, low=low, high=high, note=f"at least the interval of a share of {n} tokens")


@metric
def health_growth(results: Results, chain: str, arm: str, name: str) -> Evidence:
    """A health metric's largest value over training divided by its first, worst layer."""
    runs = results.arm(chain, arm)
    table = results.table("health")
    table = table[(table.metric == name) & table.run.isin(runs.run)].sort_values("step")
    if table.empty or table.groupby("run").step.nunique().max() < 2:
        raise NotTested(f"health.csv has no {name} over time for {arm}")
    groups = table.groupby(["run", "layer"]).value
    growth = (groups.max() / groups.first()).groupby("run").max()
    return of_seeds(stats.mean(growth), growth.index)
