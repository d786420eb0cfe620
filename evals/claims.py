"""A verdict on every claim of the two papers and of what is said about them, from the results at hand.

`claims.yaml` holds the claims; each names a metric of `evals.evidence` and its arguments. `rule` then compares the
evidence with what the claim expects:

    below, above     the effect lies on one side of `neutral`; `published` weakened by `tolerance` is its size
    within           the effect lies inside `band`

    reproduced       the whole interval is on the claimed side and the value reaches the size; or is inside the band
    direction only   the whole interval is on the claimed side, the value falls short of the size
    not reproduced   the whole interval is on the other side, outside the band, or short of the size around `neutral`
    inconclusive     anything else
    not tested       no metric, no such results here, or a scale below the smallest that could test it

One seed carries no interval over seeds. The value is then held against a stated noise floor (a score against the error
over its items), and the verdict is at most "direction only" (for a band: "inconclusive"). A modelled value, an analogue
or another scale than the paper's is at most `best`. Every verdict speaks of the scale in its last column and no other.

    python -m evals.claims --results results/cpu --out results/cpu/claims.csv
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from evals import schema
from evals.evidence import METRICS, Evidence, NotTested, Results
from workflows.errors import UserError, run

CLAIMS = Path(__file__).with_name("claims.yaml")
VERDICTS = ("reproduced", "direction only", "not reproduced", "inconclusive", "not tested")
DIRECTIONS = ("below", "above", "within")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One entry of claims.yaml; `scale` is a name in its `scales`, `noise` one in its `noise_floor`."""

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
    noise: str = "loss"
    best: str = "reproduced"
    why: str = ""

    def __post_init__(self):
        problem = None
        if self.metric is None:
            problem = None if self.why else "has neither a metric nor a reason why it cannot be tested"
        elif self.metric not in METRICS:
            problem = f"names metric {self.metric!r}, which is not one of {', '.join(METRICS)}"
        elif self.direction not in DIRECTIONS:
            problem = f"has direction {self.direction!r}, which is not one of {', '.join(DIRECTIONS)}"
        elif (self.direction == "within") != (self.band is not None):
            problem = "needs a band if its direction is within, and only then"
        elif misfit := self._misfit():
            problem = f"does not fit its metric: {misfit}"
        elif self.tolerance is not None and self.published is None:
            problem = "has a tolerance about no published value"
        if problem:
            raise UserError(f"claim {self.id} {problem}")

    def _misfit(self) -> str:
        try:
            inspect.signature(METRICS[self.metric]).bind(None, **self.args)
        except TypeError as error:
            return str(error)
        return ""

    @property
    def bound(self) -> float:
        """The size the effect has to reach: the published value weakened by the tolerance, never beyond `neutral`."""
        if self.tolerance is None:
            return self.neutral
        if self.direction == "above":
            return max(self.neutral, self.published - self.tolerance)
        return min(self.neutral, self.published + self.tolerance)


@dataclass(frozen=True)
class Ledger:
    claims: tuple[Claim, ...]
    noise_floor: dict[str, float]
    scales: dict[str, dict[str, float]]
    aliases: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Verdict:
    verdict: str
    reason: str


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
        ledger = Ledger(claims, data["noise_floor"], data["scales"], data.get("aliases") or {})
    except UserError:
        raise
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a claims ledger: {error!r}") from None
    if repeated := [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]:
        raise UserError(f"{path} has claim {', '.join(repeated)} more than once")
    for claim in claims:
        for name, known in ((claim.scale, ledger.scales), (claim.noise, ledger.noise_floor)):
            if name not in known:
                raise UserError(f"claim {claim.id} names {name!r}, which is not one of {', '.join(known)}")
    return ledger


def rule(claim: Claim, evidence: Evidence, noise_floor: float) -> Verdict:
    """The verdict that the evidence allows, and the sentence that says why."""
    one_seed = not evidence.bounded
    floor = noise_floor if one_seed else 0.0
    low, high = (evidence.value - floor, evidence.value + floor) if one_seed else (evidence.low, evidence.high)
    if claim.direction == "within":
        verdict, why = _inside(low, high, claim.band)
    else:
        verdict, why = _beyond(evidence.value, low, high, claim, one_seed)
    notes = [f"{evidence.value:.4g} [{low:.4g}, {high:.4g}] {why}"]
    if verdict == "reproduced" and (one_seed or evidence.kind == "items"):
        verdict = "inconclusive" if claim.band else "direction only"
    if one_seed:
        notes.append(f"one seed: no interval over seeds, ±{floor:g} is the stated noise floor")
    elif evidence.n is not None:
        what = {"seeds": "seeds", "items": "items", "timings": "timed steps, p20 to p80"}
        notes.append(f"{evidence.n} {what.get(evidence.kind, 'points')}")
    if evidence.kind == "modelled":
        notes.append("modelled, not measured")
    if verdict == "reproduced" and claim.best != "reproduced":
        verdict = claim.best
    notes += [text for text in (evidence.note, claim.why) if text]
    return Verdict(verdict, "; ".join(notes))


def _inside(low: float, high: float, band: tuple[float, float]) -> tuple[str, str]:
    text = f"[{band[0]:g}, {band[1]:g}]"
    if band[0] <= low and high <= band[1]:
        return "reproduced", f"lies inside {text}"
    if high < band[0] or low > band[1]:
        return "not reproduced", f"lies outside {text}"
    return "inconclusive", f"lies partly inside {text}"


def _beyond(value: float, low: float, high: float, claim: Claim, one_seed: bool) -> tuple[str, str]:
    neutral, bound = claim.neutral, claim.bound
    sign = 1 if claim.direction == "above" else -1
    worst, best = (low, high) if sign == 1 else (high, low)
    side = f"{claim.direction} {neutral:g}"
    if sign * (worst - neutral) > 0:
        if sign * (value - bound) >= 0:
            return "reproduced", f"lies {side}" + (f" and reaches {bound:g}" if bound != neutral else "")
        return "direction only", f"lies {side} and falls short of {bound:g}"
    if sign * (best - neutral) < 0:
        return "not reproduced", f"lies on the other side of {neutral:g}"
    if bound != neutral and sign * (best - bound) < 0 and not one_seed:
        return "not reproduced", f"includes {neutral:g} and excludes an effect of {bound:g}"
    return "inconclusive", f"includes {neutral:g}"


def measured_noise(results: Results) -> float:
    """Two-sided 95 % half-width of a difference of two single runs, from repeated seeds in the grid; NaN without any.

    Pooled within architecture and size. Seeds paired by data order differ by less, so this is on the safe side.
    """
    groups = results.runs.dropna(subset=["val_loss"]).groupby(["arch", "size"]).filter(lambda g: len(g) > 1)
    groups = groups[groups.run == groups.arch + "-" + groups["size"] + "-s" + groups.seed.astype(str)]
    spread = groups.groupby(["arch", "size"]).val_loss.agg(["var", "count"]).query("count > 1")
    if spread.empty:
        return math.nan
    freedom = spread["count"] - 1
    return 1.96 * math.sqrt(2 * float((spread["var"] * freedom).sum() / freedom.sum()))


def judge(ledger: Ledger, results: Results) -> list[dict]:
    """Rows of the `claims` table."""
    floors = dict(ledger.noise_floor)
    floors["loss"] = max(floors["loss"], np.nan_to_num(measured_noise(results)))
    rows = []
    for claim in ledger.claims:
        evidence, verdict = None, None
        try:
            if claim.metric is None:
                raise NotTested(claim.why)
            _big_enough(ledger.scales[claim.scale], claim, results)
            evidence = METRICS[claim.metric](results, **claim.args)
            verdict = rule(claim, evidence, floors[claim.noise])
        except NotTested as reason:
            verdict = Verdict("not tested", str(reason))
        rows.append(_row(claim, evidence, verdict, results))
    return rows


def _big_enough(needed: dict[str, float], claim: Claim, results: Results) -> None:
    if not any(needed.values()):
        return
    runs = results.runs[["active_params", "tokens"]].fillna(0)
    if not (runs >= pd.Series(needed)).all(axis=1).any():
        words = {"active_params": "activated parameters", "tokens": "tokens"}
        asked = " and ".join(f"{needed[name]:.2g} {word}" for name, word in words.items() if needed[name])
        found = " and ".join(f"{runs[name].max():.2g} {word}" for name, word in words.items() if needed[name])
        raise NotTested(f"needs {asked}; the largest run here has {found}" + (f"; {claim.why}" if claim.why else ""))


def _row(claim: Claim, evidence: Evidence | None, verdict: Verdict, results: Results) -> dict:
    published = "" if claim.published is None else f"{claim.published:g} {claim.unit}".strip()
    arguments = ", ".join(f"{key}={value}" for key, value in claim.args.items())
    row = {
        "id": claim.id,
        "paper": claim.paper,
        "statement": claim.statement,
        "source": claim.source,
        "published": published or claim.unit,
        "metric": f"{claim.metric}({arguments})" if claim.metric else "",
        "verdict": verdict.verdict,
        "reason": verdict.reason,
    }
    if evidence:
        row |= {"value": evidence.value, "n": evidence.n, "runs": " ".join(dict.fromkeys(evidence.runs))}
        row["scale"] = evidence.scale or results.scale(evidence.runs)
        row |= {"ci_low": evidence.low, "ci_high": evidence.high} if evidence.bounded else {}
    return row


def counts(frame: pd.DataFrame) -> list[dict]:
    """STAND-IN until h-rulings is merged."""
    groups = frame.groupby(["kind", "verdict"], sort=False)
    return [{"kind": k, "verdict": v, "claims": len(g), "tests": g["test"].nunique()} for (k, v), g in groups]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="rule on every claim of the ledger")
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, help="where to write claims.csv; printed only if left out")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="another ledger")
    options = parser.parse_args(arguments)
    ledger = load(options.claims)
    rows = judge(ledger, Results(options.results, ledger.aliases))
    for row in rows:
        print(f"{row['id']:>4s}  {row['verdict']:15s} {row['statement']} ({row['reason']})")
    counts = Counter(row["verdict"] for row in rows)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if options.out:
        schema.write(options.out, "claims", rows)


if __name__ == "__main__":
    run(main)
