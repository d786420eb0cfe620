"""Losses and scores of the same models made on unequal hardware."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats as distributions

from evals import stats
from evals.agreement.findings import FINAL, Finding, finding, near, text
from evals.claims.evidence.scores import SCORES

MARGIN = 0.05  # nats/token: smaller differences take three seeds to rule on, so none of the suite's rulings turns on them
ITEM_MARGIN = 0.05  # of a share of items answered: five points
MEAN_MARGIN = 0.02  # of a mean of losses or bits, relative
LEVEL = 0.95


def equivalent_losses(pairs: list[tuple[dict, dict]], margin: float) -> Iterator[Finding]:
    """Final losses of the runs that both folders made, on unequal hardware; one comparison per model, over its seeds.

    What another machine does to a loss is noise of one size, supposed the same for all models: its deviation is taken
    within models (about each model's mean difference), or over the runs of the other models (about their mean), whichever
    has more degrees of freedom; so a model of one seed has an interval as soon as three models are compared. A lone pair
    has none: it differs beyond the margin and is undecided within it. Where every pair of a model is equal to TIGHT, as
    it would have to be on one machine, no interval is asked for.
    """
    for column in (column for column in FINAL if pairs and column in pairs[0][0]):
        frame = pd.DataFrame([(a["run"], a[column], b[column]) for a, b in pairs], columns=["run", "a", "b"])
        for run_id, x, y in frame[frame.a.isna() ^ frame.b.isna()].itertuples(index=False):
            yield finding("runs", run_id, column, x, y, "exact", False)
        frame = frame.dropna()
        frame["model"] = frame.run.str.replace(r"-s\d+$", "", regex=True)
        frame["gap"] = frame.a - frame.b
        for model, own in frame.groupby("model"):
            free, noise = _noise(frame, model)
            half = distributions.t.ppf(0.5 + LEVEL / 2, free) * noise / math.sqrt(len(own)) if free else math.nan
            gap = own.gap.mean()
            rule = f"equivalence within {margin:g} nats/token: {gap:+.4f} +- {half:.4f}, {len(own)} pairs"
            rule = rule if free else f"equivalence within {margin:g} nats/token: one pair, no interval"
            tight = all(map(near, own.a, own.b))
            status = "agree" if tight else _equivalence(gap, half, margin)
            yield Finding("runs", model, column, text(own.a.mean()), text(own.b.mean()), "tight" if tight else rule, status)


def _noise(frame: pd.DataFrame, model: str) -> tuple[int, float]:
    """(degrees of freedom, standard deviation) of one run's difference; (0, NaN) where nothing repeats."""
    within = frame.gap - frame.groupby("model").gap.transform("mean")
    others = frame.gap[frame.model != model]
    free = len(frame) - frame.model.nunique()
    if free >= len(others) - 1:
        return free, math.sqrt((within**2).sum() / free) if free else math.nan
    return len(others) - 1, others.std()


def equivalent_scores(pairs: list[tuple[dict, dict]]) -> Iterator[Finding]:
    """Scores of runs made on unequal hardware; one comparison per task and metric, over the runs.

    Both folders scored the same items, so their errors are far from independent, but evals.csv keeps n, value and
    standard error of a score and no items. What it has in pairs are the runs: the same model on the same items twice. The
    difference is taken run by run, in which the items' difficulty cancels, and the t interval over runs has to lie within
    ITEM_MARGIN (a share of items) or MEAN_MARGIN (relative). One run alone has its two standard errors taken as
    independent: shared items make the error of the difference smaller, so this is the widest it can be, and neither
    agreement nor difference is claimed too early. The same bound, widened to hold for all scores at once (Bonferroni),
    names a single run whose score is off.
    """
    bound = distributions.norm.ppf(1 - (1 - LEVEL) / 2 / max(len(pairs), 1))
    tasks = defaultdict(list)
    for a, b in pairs:
        tasks[a["task"], a["metric"], text(a["n_shot"])].append((a, b))
    for task, group in tasks.items():
        x, y = (np.array([row["value"] for row in side]) for side in zip(*group, strict=True))
        if all(map(near, x, y)) or not np.isfinite([x, y]).all():
            yield finding("evals", text(task), "value", x.mean(), y.mean(), "tight", all(map(near, x, y)))
            continue
        errors = [math.hypot(_error(a), _error(b)) for a, b in group]
        margin = ITEM_MARGIN if task[1] in SCORES else MEAN_MARGIN * float(np.abs([x, y]).mean())
        for (a, b), gap, error in zip(group, x - y, errors, strict=True):
            if abs(gap) - bound * error > margin:
                name = text((a["run"], *task))
                yield finding("evals", name, "value", a["value"], b["value"], f"items: {margin + bound * error:.2g}", False)
        gap = stats.mean(x - y, LEVEL)
        half = gap.high - gap.value if gap.bounded else distributions.norm.ppf(0.5 + LEVEL / 2) * errors[0]
        rule = f"equivalence within {margin:.2g}: {gap.value:+.2g} +- {half:.2g}, {len(group)} runs"
        status = _equivalence(gap.value, half, margin)
        yield Finding("evals", text(task), "value", text(x.mean()), text(y.mean()), rule, status)


def _error(row: dict) -> float:
    """Standard error of a score; of a share of items at least Agresti and Coull's, not 0 where none or all are right."""
    if row["metric"] not in SCORES:
        return row["stderr"]
    share = (row["value"] * row["n"] + 2) / (row["n"] + 4)
    return float(np.fmax(row["stderr"], math.sqrt(max(share * (1 - share), 0.0) / (row["n"] + 4))))


def _equivalence(gap: float, half: float, margin: float) -> str:
    """Inside the margin, outside it, or across its edge. Without an interval (NaN) nothing is shown to be inside."""
    if abs(gap) + half <= margin:
        return "agree"
    return "differ" if abs(gap) - (0.0 if math.isnan(half) else half) > margin else "undecided"
