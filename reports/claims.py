"""The ledger: every claim with its verdict, below what the placebos say of the memories that the claims are about."""

from collections.abc import Iterator

from evals.claims.decided import load
from reports.decided import decided
from reports.page import Cell, Results, Table, Text, kinds, number
from reports.placebos import sentences
from reports.style import interval

SIGNS = {"reproduced": "●", "direction only": "◐", "not reproduced": "○", "inconclusive": "◇", "underpowered": "△"}
SIGNS |= {"ambiguous": "≶", "confounded": "⊗", "modelled against": "◌", "not tested": "–"}


def claims(results: Results) -> Iterator:
    """When the rules were decided, placebos in words, then every claim."""
    if "claims" not in results:
        yield results.missing("claims")
        return
    when, table = decided(results, load())
    yield when
    yield from map(Text, sentences(results))
    rows = []
    for row in results["claims"].itertuples():
        runs = tuple((run, results.href(run)) for run in row.runs.split() if results.href(run))
        rows.append(
            [
                Cell(row.id, id=f"claim-{row.id}"),
                Cell(f"{SIGNS[row.verdict]} {row.verdict}", row.verdict, kind=row.verdict.replace(" ", "-")),
                Cell(row.statement, title=row.metric, kind="prose"),
                Cell(row.reason, kind="prose"),
                Cell(row.published or "–", kind="brief"),
                number(row.value, ".4g"),
                Cell(interval(row.ci_low, row.ci_high, ".3g")),
                number(row.n, "d"),
                number(row.n_needed, "d"),
                Cell(row.kind),
                Cell("own" if row.test == row.id else f"as {row.test}", row.test),
                Cell("" if runs else "–", more=runs),
                Cell(row.scale or "–", kind="brief"),
                Cell(f"{row.paper}, {row.source}", kind="brief"),
            ]
        )
    header = ["id", "verdict", "claim", "reason", "published", "ours", "95 % interval", "n", "n needed", "kind", "test"]
    yield Table(
        "claims.csv",
        "The claims of both papers (P1 UltraMem, P2 UltraMemV2), of what is said about them (blog) and of other papers about "
        "memory layers. A verdict holds at the scale that was run and no further. Kind: what could show it; test: claims that "
        "share one measurement are one test; n needed: seeds that would show the claimed effect. Hover over a claim for its "
        "metric.",
        results.context(results.grid),
        [*header, "runs", "scale", "source"],
        rows,
        kinds(results.grid["device"]),
        filters=tuple(word for word in SIGNS if (results["claims"]["verdict"] == word).any()),
        searchable=True,
        tall=True,
        cards=True,
    )
    yield table
