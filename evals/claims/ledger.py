"""A verdict on every claim of the two papers and of what is said about them, from the results at hand.

`claims.yaml` holds the claims (`evals.claims.claim`); each names a metric of `evals.claims.evidence` and its arguments.
`evals.claims.ruling` then compares the evidence with what the claim expects.

Tests        claims that share one measurement name it (`test`), and `counts` gives the number of tests beside that of
             claims, by `kind`: arithmetic (follows from counts and formulas), trained, measured (times), modelled.

Every verdict speaks of the scale in its last column and no other.

    python -m evals.claims.ledger --results results/cpu --out results/cpu/claims.csv
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from evals.claims.claim import CLAIMS, KINDS, VERDICTS, Claim, Ledger, load
from evals.claims.evidence import METRICS, Evidence, NotTested, Results, losses
from evals.claims.ruling import Verdict, rule
from evals.records import options, schema
from evals.records.errors import run


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


def judge(ledger: Ledger, results: Results) -> list[dict]:
    """Rows of the `claims` table."""
    rows = []
    for claim in ledger.claims:
        found, verdict = None, None
        try:
            if claim.metric is None:
                raise NotTested(claim.why)
            _big_enough(ledger.scales[claim.scale], claim, results)
            found, verdict = _ruled(METRICS[claim.metric], claim, results)
            if why := [text for name in claim.confounded if (text := _confound(ledger.confounds[name], results))]:
                verdict = replace(verdict, verdict="confounded", reason=f"{'; '.join(why)}; {verdict.reason}")
        except NotTested as reason:
            verdict = Verdict("not tested", str(reason))
        rows.append(_row(claim, found, verdict, results))
    return rows


def _ruled(metric: Callable[..., Evidence], claim: Claim, results: Results) -> tuple[Evidence, Verdict]:
    """The evidence and verdict of a claim; of one with several readings, those of the first if all agree."""
    if not claim.readings:
        found = metric(results, **claim.args)
        return found, rule(claim, found)
    each = {}
    for words, differ in claim.readings.items():
        found = metric(results, **(claim.args | differ))
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
    row: dict[str, Any] = {
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
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, help="where to write claims.csv; printed only if left out")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="another ledger")
    args = parser.parse_args(arguments)
    ledger = load(args.claims)
    rows = judge(ledger, Results(args.results, ledger.aliases))
    for row in rows:
        print(f"{row['id']:>4s}  {row['verdict']:16s} {row['statement']} ({row['reason']})")
    for kind, verdict, claims, tests in counts(pd.DataFrame(rows)):
        print(f"{kind}: {claims} {verdict} ({tests} test{'s' * (tests != 1)})")
    if args.out:
        schema.write(args.out, "claims", rows)


if __name__ == "__main__":
    run(main)
