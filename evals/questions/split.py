"""What share of the stored sparse parameters should be memory, beside a mixture of experts?

The arms of chain `split` are one budget at several shares (`split` in their config), from a mixture of experts alone (0) to
memory beside a dense FFN (1). The best share is tested against both ends at a level that allows for having been chosen among
the others on the same seeds (Bonferroni).
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from evals import stats
from evals.claims.evidence.losses import by_seed, term
from evals.claims.evidence.results import NotTested, Results
from evals.questions.answer import UNDERPOWERED, Answer, not_tested, told

SPLIT, CHAIN, ARCH = "split", "split", "hybrid"
ENDS = {0.0: "experts alone", 1.0: "memory alone"}


def shares(results: Results) -> dict[float, pd.DataFrame]:
    """Runs of the chain by memory's share, each by seed; NotTested with fewer than three shares."""
    arms = results.table("arms")
    arms = arms[arms.chain == CHAIN]
    found: dict[float, pd.DataFrame] = {}
    for setting, here in arms.groupby("set"):
        runs = results.runs[results.runs.run.isin(here.run)].dropna(subset=["test_loss"])
        if len(runs):
            found[float(json.loads(setting)["split"])] = runs.set_index("seed", drop=False)
    if len(found) < 3:
        raise NotTested(f"{len(found)} shares of chain {CHAIN} were run, an optimum needs 3: snakemake ablation_{CHAIN}")
    return dict(sorted(found.items()))


def answers(results: Results) -> list[Answer]:
    """Loss of every share against experts alone, the best share, a parabola's minimum, and the best against both ends."""
    try:
        found = shares(results)
        best, parabola = stats.optimum(list(found), [by_seed(runs) for runs in found.values()])
    except (NotTested, ValueError) as missing:
        return [not_tested(SPLIT, ARCH, "best share", str(missing))]
    everything = [run for runs in found.values() for run in runs.run]
    base: dict[str, Any] = {"question": SPLIT, "arch": ARCH}
    rows, noise, first = [], results.noise(), min(found)
    for share, runs in found.items():
        if share > first:
            change = stats.contrast([term(1, runs), term(-1, found[first])], noise)
            names = [*runs.run, *found[first].run]
            rows.append(told(results, change, names, quantity="loss against the first", at=share, unit="nats/token", **base))
    whole: dict[str, Any] = {"n": best.n, "runs": " ".join(everything), "scale": results.scale(everything), "unit": "fraction"}
    whole |= {} if best.bounded else {"state": UNDERPOWERED, "reason": "no seed was repeated"}
    rows.append(Answer(quantity="best share", value=best.value, ci_low=best.low, ci_high=best.high, **whole, **base))
    if parabola:
        ends: dict[str, Any] = {"ci_low": parabola.low, "ci_high": parabola.high}
        rows.append(Answer(quantity="minimum of a parabola", value=parabola.value, **ends, **whole, **base))
    for share, name in ENDS.items():
        if share in found and share != best.value:
            level = 1 - 0.05 / (len(found) - 1)
            change = stats.contrast([term(1, found[best.value]), term(-1, found[share])], noise, level)
            names = [*found[best.value].run, *found[share].run]
            given: dict[str, Any] = {"quantity": f"best against {name}", "at": share, "unit": "nats/token", "level": level}
            rows.append(told(results, change, names, **given, **base))
    return rows
