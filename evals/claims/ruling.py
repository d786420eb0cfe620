"""The verdict that evidence allows on a claim, and the sentence that says why.

`rule` compares the evidence with what the claim expects; what several readings, a confound or a missing result make of it
is up to `evals.claims.ledger`:

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
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evals.claims.claim import Claim
from evals.claims.evidence import Evidence

HELD = ("reproduced", "direction only")


@dataclass(frozen=True)
class Verdict:
    verdict: str
    reason: str
    n_needed: int | None = None


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
