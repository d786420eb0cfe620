"""What a claim is, and the reading of claims.yaml."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evals import stats
from evals.claims.evidence import METRICS, Evidence
from evals.records import schema
from evals.records.errors import UserError

CLAIMS = Path(__file__).with_name("claims.yaml")
KINDS, VERDICTS = (
    next(column.choices for column in schema.columns("claims") if column.name == name) for name in ("kind", "verdict")
)
DIRECTIONS = ("below", "above", "within")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One entry of claims.yaml; `scale` is a name in its `scales`, `confounded` names in its `confounds`.

    `readings` maps what the words may mean to the arguments that differ under it.
    """

    id: str
    paper: str
    statement: str
    source: str
    scale: str
    published: float | None = None
    unit: str = ""
    metric: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    direction: str | None = None
    neutral: float = 0.0
    tolerance: float | None = None
    band: tuple[float, float] | None = None
    best: str = "reproduced"
    why: str = ""
    kind: str = "trained"
    test: str = ""
    ours: bool = False
    confounded: tuple[str, ...] = ()
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = None
        if self.kind not in KINDS:
            problem = f"has kind {self.kind!r}, which is not one of {', '.join(KINDS)}"
        elif self.metric is None:
            problem = None if self.why else "has neither a metric nor a reason why it cannot be tested"
        elif self.metric not in METRICS:
            problem = f"names metric {self.metric!r}, which is not one of {', '.join(METRICS)}"
        elif self.direction not in DIRECTIONS:
            problem = f"has direction {self.direction!r}, which is not one of {', '.join(DIRECTIONS)}"
        elif (self.direction == "within") != (self.band is not None):
            problem = "needs a band if its direction is within, and only then"
        elif misfit := self._misfit(METRICS[self.metric]):
            problem = f"does not fit its metric: {misfit}"
        elif self.tolerance is not None and self.published is None:
            problem = "has a tolerance about no published value"
        if problem:
            raise UserError(f"claim {self.id} {problem}")

    def _misfit(self, metric: Callable[..., Evidence]) -> str:
        try:
            for reading in ({}, *self.readings.values()):
                inspect.signature(metric).bind(None, **(self.args | reading))
        except TypeError as error:
            return str(error)
        return ""

    @property
    def bound(self) -> float:
        """The size the effect has to reach: the published value weakened by the tolerance, never beyond `neutral`."""
        if self.tolerance is None or self.published is None:
            return self.neutral
        if self.direction == "above":
            return max(self.neutral, self.published - self.tolerance)
        return min(self.neutral, self.published + self.tolerance)

    @property
    def effect(self) -> float:
        """What n_needed has to tell from nothing: the published distance from `neutral`, or from a band's middle to its
        nearer edge; NaN where the claim states none."""
        if self.band:
            inside = self.band[0] < self.neutral < self.band[1]
            middle = self.neutral if inside else sum(self.band) / 2
            return min(middle - self.band[0], self.band[1] - middle)
        return math.nan if self.published is None else abs(self.published - self.neutral)

    def needed(self, found: Evidence) -> int | None:
        """Seeds for `effect`; a band has two edges to stay inside of, so each may be missed half as often."""
        return stats.seeds_needed(self.effect, found.spread, found.freedom, 0.9 if self.band else 0.8)


@dataclass(frozen=True)
class Ledger:
    claims: tuple[Claim, ...]
    confounds: dict[str, dict[str, str]]
    scales: dict[str, dict[str, float]]
    aliases: dict[str, dict[str, str]]


def load(path: Path = CLAIMS) -> Ledger:
    """The ledger; UserError names the claim and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = data["claims"]
        for entry in entries:
            if unknown := set(entry) - set(Claim.__dataclass_fields__):
                allowed = ", ".join(Claim.__dataclass_fields__)
                raise UserError(f"claim {entry.get('id')} has {', '.join(sorted(unknown))}; allowed: {allowed}")
        claims = tuple(Claim(**entry) for entry in entries)
        ledger = Ledger(claims, data.get("confounds") or {}, data["scales"], data.get("aliases") or {})
    except UserError:
        raise
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a claims ledger: {error!r}") from None
    if repeated := [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]:
        raise UserError(f"{path} has claim {', '.join(repeated)} more than once")
    by_id = {claim.id: claim for claim in claims}
    for claim in claims:
        named: list[tuple[str, Any]] = [
            (claim.scale, ledger.scales),
            (claim.test or claim.id, by_id),
            *((c, ledger.confounds) for c in claim.confounded),
        ]
        for name, known in named:
            if name not in known:
                raise UserError(f"claim {claim.id} names {name!r}, which is not one of {', '.join(known)}")
        if by_id[claim.test or claim.id].metric != claim.metric:
            raise UserError(f"claim {claim.id} cannot share the test of {claim.test}, which has another metric")
    return ledger
