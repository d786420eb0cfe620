"""Does a memory close its gap to the 8-expert mixture of experts with tokens?

The gap is test loss minus MoE-8's at the same number of tokens, seed by seed, and its slope that of a straight line on
log10(tokens), a contrast in the light of the pooled seed noise, as the ledger has it. Every budget was trained with a
schedule of its own. Architectures and tokens are those of `runs`, whatever the arms' labels say.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats as distributions

from evals import stats
from evals.claims.evidence.losses import term
from evals.claims.evidence.results import NotTested, Results
from evals.questions.answer import ANSWERED, UNDERPOWERED, Answer, not_tested, told

GAP, CHAIN, AGAINST, ARCHS = "gap", "scaling_tokens", "moe8", ("ultramem", "ultramem_v2")
BUDGETS = 3  # that a slope with a check of its straightness needs


class Gap:
    """The runs of an architecture and of MoE-8 at the budgets of tokens that both have, by seed."""

    def __init__(self, results: Results, arch: str):
        arms = results.table("arms")
        runs = results.runs[results.runs.run.isin(arms.run[arms.chain == CHAIN])].dropna(subset=["test_loss"])
        mine, theirs = (dict(list(runs[runs.arch == name].groupby("tokens"))) for name in (arch, AGAINST))
        self.tokens = sorted(mine.keys() & theirs.keys())
        if len(self.tokens) < BUDGETS:
            raise NotTested(
                f"{len(self.tokens)} budgets of tokens have {arch} and {AGAINST}, a slope needs {BUDGETS}: "
                f"snakemake ablation_{CHAIN}"
            )
        self.sides = [tuple(side[tokens].set_index("seed", drop=False) for tokens in self.tokens) for side in (mine, theirs)]
        self.runs = [run for side in self.sides for here in side for run in here.run]
        self.noise = results.noise()
        self.x = np.log10(np.array(self.tokens, float))

    def at(self, weights: np.ndarray) -> stats.Interval:
        """Weighted sum of the gaps at the budgets."""
        terms = [
            term(sign * weight, here)
            for sign, side in zip((1, -1), self.sides, strict=True)
            for weight, here in zip(weights, side, strict=True)
            if weight
        ]
        return stats.contrast(terms, self.noise)

    @property
    def slope_weights(self) -> np.ndarray:
        centred = self.x - self.x.mean()
        return centred / (centred**2).sum()

    def straightness(self) -> float:
        """p of an F test that a straight line leaves no more than the seeds' noise; NaN without noise."""
        k, w = len(self.x), self.slope_weights
        gaps = [self.at(np.eye(k)[i]) for i in range(k)]
        y = np.array([gap.value for gap in gaps])
        left = y - y.mean() - (w @ y) * (self.x - self.x.mean())
        noise = np.array([gap.spread**2 / gap.n for gap in gaps])
        freedom = gaps[0].freedom
        return float(distributions.f.sf((left**2 / noise).sum() / (k - 2), k - 2, freedom))

    def factor(self, slope: stats.Interval) -> float:
        """How many times the largest budget one more must have for the slope as it is to leave zero out, with these seeds."""
        k, centred = len(self.x), self.x - self.x.mean()
        squares = (centred**2).sum()
        half = (slope.high - slope.low) / 2
        short = squares * ((half / slope.value) ** 2 - 1) if slope.value else math.inf
        away = math.sqrt(short * (k + 1) / k) if short > 0 else 0.0
        exponent = self.x.mean() + away - self.x[-1]
        return 10**exponent if exponent < 300 else math.inf


def answers(results: Results) -> list[Answer]:
    """Of each memory: the gap at every budget, its slope, the crossing, and what would make sure."""
    rows: list[Answer] = []
    for arch in ARCHS:
        try:
            rows += _of(results, arch)
        except NotTested as missing:
            rows.append(not_tested(GAP, arch, "slope", str(missing)))
    return rows


def _of(results: Results, arch: str) -> list[Answer]:
    gap = Gap(results, arch)
    k, w = len(gap.x), gap.slope_weights
    base: dict[str, Any] = {"question": GAP, "arch": arch}
    nats: dict[str, Any] = {"unit": "nats/token"}
    tenfold: dict[str, Any] = {"unit": "nats/token for ten times the tokens"}
    rows = []
    for place, tokens in enumerate(gap.tokens):
        here = [run for side in gap.sides for run in side[place].run]
        rows.append(told(results, gap.at(np.eye(k)[place]), here, quantity="gap", at=float(tokens), **base, **nats))
    slope = gap.at(w)
    found = told(results, slope, gap.runs, quantity="slope", **base, **tenfold)
    if slope.bounded:
        p = gap.straightness()
        how = "fits" if p >= 0.05 else "does not fit"
        found = replace(found, reason="; ".join(filter(None, (found.reason, f"a straight line {how} (p = {p:.2g})"))))
    rows += [found, replace(_crossing(gap, slope, found), **base)]
    if found.state == UNDERPOWERED and slope.bounded:
        why = "times the largest budget, for one more budget with as many seeds, if the slope is what it seems"
        rows.append(Answer(quantity="factor of tokens", value=gap.factor(slope), unit="times", reason=why, **base))
    return rows


def _crossing(gap: Gap, slope: stats.Interval, about: Answer) -> Answer:
    """Tokens at which the line reaches zero, or in words why there are none."""
    k, centre = len(gap.x), gap.x.mean()
    level = gap.at(np.full(k, 1 / k))
    end = gap.at(1 / k + gap.slope_weights * (gap.x[-1] - centre))
    tokens, low, high = (_tokens(centre + u) for u in stats.zero_crossing(level, slope))
    row = replace(about, quantity="crossing", unit="tokens", value=None, ci_low=None, ci_high=None, n_needed=None)
    if not slope.bounded:
        return row
    if end.high < 0:
        return replace(row, state=ANSWERED, reason="already below")
    if slope.low > 0:
        return replace(row, state=ANSWERED, reason="none: the gap grows")
    if slope.high < 0:
        return replace(row, state=ANSWERED, value=tokens, ci_low=low, ci_high=high, reason=about.reason)
    return replace(row, state=UNDERPOWERED, value=tokens if slope.value < 0 else None, reason="the slope may be zero")


def _tokens(log: float) -> float:
    """10 ** log; NaN where that is no number of tokens that could be meant."""
    return 10**log if abs(log) < 300 else math.nan
