"""One row of the table `questions`, and how a value with its interval becomes one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from evals import stats
from evals.claims.evidence.results import Results

ANSWERED, UNDERPOWERED, NOT_TESTED = "answered", "underpowered", "not tested"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A quantity of a question, as the schema's table `questions` explains its fields."""

    question: str
    arch: str
    quantity: str
    unit: str = ""
    at: float | None = None
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    n_needed: int | None = None
    state: str = ANSWERED
    reason: str = ""
    scale: str = ""
    runs: str = ""

    def row(self) -> dict[str, Any]:
        row = asdict(self)
        return row | {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}


def not_tested(question: str, arch: str, quantity: str, why: str) -> Answer:
    return Answer(question=question, arch=arch, quantity=quantity, state=NOT_TESTED, reason=why)


def told(
    results: Results,
    found: stats.Interval,
    runs: Iterable[str],
    *,
    question: str,
    arch: str,
    quantity: str,
    level: float = 0.95,
    **more: Any,
) -> Answer:
    """A difference or a slope: answered if its interval, of two seeds or more, leaves zero out; else underpowered, with
    the seeds it would take."""
    runs = list(dict.fromkeys(runs))
    answer = Answer(question=question, arch=arch, quantity=quantity, value=found.value, n=found.n, runs=" ".join(runs))
    answer = replace(answer, ci_low=found.low, ci_high=found.high, scale=results.scale(runs), **more)
    if not found.bounded:
        return replace(answer, state=UNDERPOWERED, reason="no seed was repeated")
    if found.n > 1 and not found.low <= 0 <= found.high:
        return answer
    needed = stats.seeds_needed(found.value, found.spread, found.freedom, level=level)
    return replace(answer, state=UNDERPOWERED, n_needed=needed, reason="" if found.n > 1 else "one seed rules neither way")
