"""A verdict on every claim of the two papers and of what is said about them, from the results at hand.

`claims.yaml` holds the claims; each names a metric of `evals.claims.evidence` and its arguments. `rule` then compares the
evidence with what the claim expects:

    below, above     the effect lies on one side of `neutral`; `published` weakened by `tolerance` is its size
    within           the effect lies inside `band`

    reproduced       the whole interval is on the claimed side and the value reaches the size; or is inside the band
    direction only   the whole interval is on the claimed side, the value falls short of the size; or it holds against our
                     MoE alone
    not reproduced   the whole interval is on the other side, outside the band, or short of the size around `neutral`
    inconclusive     anything else that the seeds at hand would have decided
    underpowered     one seed, or fewer seeds than `n_needed` and an interval that decides nothing
    ambiguous        the words have several `readings`, and they are ruled on differently
    confounded       it rests on a recipe or a base that is not equal to its counterpart
    modelled against a model of the hardware speaks against it, which refutes no measurement
    not tested       no metric, no such results here, or a scale below the smallest that could test it

Rules, each for support and refutation alike:

Intervals    come from repeated seeds and from nothing else. The noise of a loss is pooled over every config with two seeds
             or more; the standard error of a claim is that of its own coefficients (two runs, four, eight), runs paired by
             seed where the pairs exist, the t quantile that of the noise's degrees of freedom (`stats.noise`,
             `stats.contrast`). Where no seed was repeated there is no interval, and the reason says so.
One seed     rules neither way, however large the effect and even if the noise is known from other runs. An interval over
             the items of a task or the points of a law does not make up for it.
n_needed     is the number of seeds that tells the claimed effect (a band: the distance from its middle, or from `neutral`,
             to the nearer edge) from none in 80 % of all cases at the observed noise. Empty where the claim states no size
             or the noise is unknown.
Confounded   goes before every other verdict but "not tested": more seeds do not mend it. `confounds` names the conditions,
             each measured: the base of a chain differs from the grid's model by more than seed noise (or by anything, if
             the noise is unknown); or a recipe's learning rate is the lowest or highest that was tried.
Thresholds   of our own (`ours`) can be reached, but falling short of them refutes nothing: the verdict is then inconclusive.
Latency      is that of bf16 as in the papers, other dtypes beside it. A ratio over a MoE is told twice: as measured, and
             with the time that a perfect MoE would take on this machine (its roofline) over the measured time of the other.
             What holds even so holds; what holds only against our MoE is "direction only", and says so.
Caps         an analogue or a model of the hardware is at most `best`.
Tests        claims that share one measurement name it (`test`), and `counts` gives the number of tests beside that of
             claims, by `kind`: arithmetic (follows from counts and formulas), trained, measured (times), modelled.

Every verdict speaks of the scale in its last column and no other.

    python -m evals.claims.ledger --results results/cpu --out results/cpu/claims.csv
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from evals import stats
from evals.claims.evidence import METRICS, Evidence, NotTested, Results, losses
from evals.records import schema
from evals.records.errors import UserError, run

CLAIMS = Path(__file__).with_name("claims.yaml")
KINDS, VERDICTS = (
    next(column.choices for column in schema.columns("claims") if column.name == name) for name in ("kind", "verdict")
)
DIRECTIONS = ("below", "above", "within")
HELD = ("reproduced", "direction only")


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

    def __post_init__(self):
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
        elif misfit := self._misfit():
            problem = f"does not fit its metric: {misfit}"
        elif self.tolerance is not None and self.published is None:
            problem = "has a tolerance about no published value"
        if problem:
            raise UserError(f"claim {self.id} {problem}")

    def _misfit(self) -> str:
        try:
            for reading in ({}, *self.readings.values()):
                inspect.signature(METRICS[self.metric]).bind(None, **(self.args | reading))
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


@dataclass(frozen=True)
class Verdict:
    verdict: str
    reason: str
    n_needed: int | None = None


class Count(NamedTuple):
    """`claims` of one kind that have one verdict, and the `tests` (measurements) behind them."""

    kind: str
    verdict: str
    claims: int
    tests: int


def counts(frame: pd.DataFrame) -> list[Count]:
    """How many claims and tests of each kind have each verdict, from the `claims` table; those without any are left out.

    Two claims on one measurement may be ruled on differently (they ask different sizes of it): the test then counts under
    both verdicts, so tests add up to `frame.test.nunique()` or more.
    """
    groups = {key: here.test for key, here in frame.groupby(["kind", "verdict"])}
    keys = [(kind, verdict) for kind in KINDS for verdict in VERDICTS if (kind, verdict) in groups]
    return [Count(*key, len(groups[key]), groups[key].nunique()) for key in keys]


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
        named = [
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


def rule(claim: Claim, found: Evidence) -> Verdict:
    """The verdict that the evidence allows, and the sentence that says why."""
    needed = claim.needed(found)
    if found.seeds == 1:
        verdict, notes = "underpowered", _one_seed(claim, found, needed)
    else:
        verdict, why = _compared(claim, found)
        notes = [f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}] {why}"]
        if found.n is not None:
            what = {"seeds": "seeds", "items": "items", "timings": "timed steps, p20 to p80"}
            notes.append(f"{found.n} {what.get(found.kind, f'points, {found.seeds} seeds')}")
        if verdict == "inconclusive" and needed and found.seeds and needed > found.seeds:
            verdict = "underpowered"
            notes.append(f"{needed} seeds would show {claim.effect:.2g} at this noise")
    if found.conservative is not None:
        verdict, note = _against_perfect(claim, verdict, found.conservative)
        notes.append(note)
    if found.kind == "modelled":
        notes.append("modelled, not measured")
        if verdict == "not reproduced":
            verdict = "modelled against"
    if verdict == "not reproduced" and claim.ours:
        verdict = "inconclusive"
        notes.append("the threshold is ours, so falling short of it refutes nothing")
    if verdict == "reproduced" and claim.best != "reproduced":
        verdict = claim.best
    notes += [text for text in (found.note, claim.why) if text]
    return Verdict(verdict, "; ".join(notes), needed)


def _one_seed(claim: Claim, found: Evidence, needed: int | None) -> list[str]:
    interval = f" [{found.low:.4g}, {found.high:.4g}]" if found.bounded else ""
    what = {"items": f" over {found.n} items", "points": f" over {found.n} points"}.get(found.kind, "")
    notes = [f"{found.value:.4g}{interval}{what if interval else ''}", "one seed rules neither way"]
    if math.isfinite(found.spread):
        notes.append(f"the interval is by the noise of the seeds that were repeated, {found.freedom:g} degrees of freedom")
        if needed:
            notes.append(f"{needed} seeds would show {claim.effect:.2g} at this noise")
    else:
        notes.append("no seed was repeated for it, so there is no interval over seeds and how many it takes is unknown")
    return notes


def _compared(claim: Claim, found: Evidence) -> tuple[str, str]:
    if claim.band:
        return _inside(found.low, found.high, claim.band)
    return _beyond(found.value, found.low, found.high, claim)


def _against_perfect(claim: Claim, verdict: str, perfect: Evidence) -> tuple[str, str]:
    """The verdict on a ratio over a mixture of experts that may be slower than it has to be."""
    if not math.isfinite(perfect.value):
        return ("direction only" if verdict in HELD else verdict), "nothing says how fast a perfect MoE would be here"
    strict, why = _compared(claim, perfect)
    ratio = f"a perfect MoE on this machine gives {perfect.value:.4g} [{perfect.low:.4g}, {perfect.high:.4g}]"
    if strict in HELD:
        return strict, f"holds even against a perfect MoE: {ratio}, which {why}"
    if verdict in HELD:
        return "direction only", f"holds only against our MoE: {ratio}, which {why}"
    return verdict, ratio


def _inside(low: float, high: float, band: tuple[float, float]) -> tuple[str, str]:
    text = f"[{band[0]:g}, {band[1]:g}]"
    if band[0] <= low and high <= band[1]:
        return "reproduced", f"lies inside {text}"
    if high < band[0] or low > band[1]:
        return "not reproduced", f"lies outside {text}"
    return "inconclusive", f"lies partly inside {text}"


def _beyond(value: float, low: float, high: float, claim: Claim) -> tuple[str, str]:
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
    if bound != neutral and sign * (best - bound) < 0:
        return "not reproduced", f"includes {neutral:g} and excludes an effect of {bound:g}"
    return "inconclusive", f"includes {neutral:g}"


def judge(ledger: Ledger, results: Results) -> list[dict]:
    """Rows of the `claims` table."""
    rows = []
    for claim in ledger.claims:
        found, verdict = None, None
        try:
            if claim.metric is None:
                raise NotTested(claim.why)
            _big_enough(ledger.scales[claim.scale], claim, results)
            found, verdict = _ruled(claim, results)
            if why := [text for name in claim.confounded if (text := _confound(ledger.confounds[name], results))]:
                verdict = replace(verdict, verdict="confounded", reason=f"{'; '.join(why)}; {verdict.reason}")
        except NotTested as reason:
            verdict = Verdict("not tested", str(reason))
        rows.append(_row(claim, found, verdict, results))
    return rows


def _ruled(claim: Claim, results: Results) -> tuple[Evidence, Verdict]:
    """The evidence and verdict of a claim; of one with several readings, those of the first if all agree."""
    if not claim.readings:
        found = METRICS[claim.metric](results, **claim.args)
        return found, rule(claim, found)
    each = {}
    for words, differ in claim.readings.items():
        found = METRICS[claim.metric](results, **(claim.args | differ))
        each[words] = found, rule(replace(claim, why=""), found)
    found, verdict = next(iter(each.values()))
    name = verdict.verdict if len({one.verdict for _, one in each.values()}) == 1 else "ambiguous"
    reasons = [f"read as {words}, {one.verdict}: {one.reason}" for words, (_, one) in each.items()]
    return found, Verdict(name, "; ".join([*reasons, *filter(None, [claim.why])]), verdict.n_needed)


def _confound(condition: dict[str, str], results: Results) -> str:
    """The sentence of a condition of `confounds` that is met, or ""."""
    if "rate" in condition:
        return losses.edge_rate(results, condition["rate"])
    return losses.unequal_base(results, **condition)


def _big_enough(needed: dict[str, float], claim: Claim, results: Results) -> None:
    if not any(needed.values()):
        return
    runs = results.runs[["active_params", "tokens"]].fillna(0)
    if not (runs >= pd.Series(needed)).all(axis=1).any():
        words = {"active_params": "activated parameters", "tokens": "tokens"}
        asked = " and ".join(f"{needed[name]:.2g} {word}" for name, word in words.items() if needed[name])
        found = " and ".join(f"{runs[name].max():.2g} {word}" for name, word in words.items() if needed[name])
        raise NotTested(f"needs {asked}; the largest run here has {found}" + (f"; {claim.why}" if claim.why else ""))


def _row(claim: Claim, found: Evidence | None, verdict: Verdict, results: Results) -> dict:
    published = "" if claim.published is None else f"{claim.published:g} {claim.unit}".strip()
    arguments = ", ".join(f"{key}={value}" for key, value in claim.args.items())
    row = {
        "id": claim.id,
        "paper": claim.paper,
        "kind": claim.kind,
        "test": claim.test or claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "published": published or claim.unit,
        "metric": f"{claim.metric}({arguments})" if claim.metric else "",
        "verdict": verdict.verdict,
        "n_needed": verdict.n_needed,
        "reason": verdict.reason,
    }
    if found:
        row |= {"value": found.value, "n": found.n, "runs": " ".join(dict.fromkeys(found.runs))}
        row["scale"] = found.scale or results.scale(found.runs)
        row |= {"ci_low": found.low, "ci_high": found.high} if found.bounded else {}
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="rule on every claim of the ledger")
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, help="where to write claims.csv; printed only if left out")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="another ledger")
    options = parser.parse_args(arguments)
    ledger = load(options.claims)
    rows = judge(ledger, Results(options.results, ledger.aliases))
    for row in rows:
        print(f"{row['id']:>4s}  {row['verdict']:16s} {row['statement']} ({row['reason']})")
    for kind, verdict, claims, tests in counts(pd.DataFrame(rows)):
        print(f"{kind}: {claims} {verdict} ({tests} test{'s' * (tests != 1)})")
    if options.out:
        schema.write(options.out, "claims", rows)


if __name__ == "__main__":
    run(main)
