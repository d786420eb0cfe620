"""The sections of the report, first to last: each a function from `Results` to blocks.

No number is computed here beyond means, differences, ratios and sums of rows, and the fits of `evals.stats`. A section
whose CSV is absent says so.
"""

from collections.abc import Iterator

import pandas as pd

from reports.ablations import ablations, waterfalls
from reports.access import access
from reports.evaluation import evaluations
from reports.health import health
from reports.latency import CSV, batch_panels, latency, timings, typical
from reports.ledger import cost, data, provenance
from reports.losses import losses
from reports.matched import matched
from reports.page import Cell, Picture, Results, Table, Verdicts, kinds, number
from reports.scaling import loss_against, scaling
from reports.sensitivity import tuning
from reports.speed import speed

SIGNS = {"reproduced": "●", "direction only": "◐", "not reproduced": "○", "inconclusive": "◇", "not tested": "–"}


def summary(results: Results) -> Iterator:
    """The first screen: verdicts, loss at matched compute, latency against batch, the ablations' waterfalls."""
    if "claims" in results:
        counts = results["claims"]["verdict"].value_counts()
        yield Verdicts([(sign, word, int(counts.get(word, 0))) for word, sign in SIGNS.items()])
    else:
        yield results.missing("claims")
    panels, badges, sources = [], [], []
    if len(results.grid):
        labels = ("active_params", "activated parameters", "Loss at matched compute")
        panels.append(loss_against(results, "summary-loss", *labels))
        badges += kinds(results.grid["device"])
        sources.append("runs.csv")
    if "latency" in results:
        frame = timings(results)
        kind = min(frame["kind"])
        frame = typical(frame[(frame["kind"] == kind) & (frame["variant"] == "plain")])
        panels += list(batch_panels(frame[frame["device"] == frame["device"].min()], "summary"))[:1]
        badges += [*kinds(frame["device"]), kind]
        sources.append(CSV[kind])
    if drawn := list(waterfalls(results, "summary")):
        panels += drawn
        sources.append("arms.csv")
    if panels:
        yield Picture(
            " + ".join(sources),
            "Loss at matched compute, the time of one step against batch size, and the loss after each improvement of "
            "a paper, so far as they were measured. Each is explained in its section.",
            results.context(results.grid),
            panels,
            results.archs,
            tuple(dict.fromkeys(badges)),
        )
    yield from (results.missing(table) for table in ("latency", "arms") if table not in results)


def claims(results: Results) -> Iterator:
    """Every claim with its verdict."""
    if "claims" not in results:
        yield results.missing("claims")
        return
    rows = []
    for row in results["claims"].itertuples():
        runs = tuple((run, results.href(run)) for run in row.runs.split() if results.href(run))
        interval = "–" if pd.isna(row.ci_low) else f"{row.ci_low:.3g} … {row.ci_high:.3g}".replace("-", "−")
        rows.append(
            [
                Cell(row.id, id=f"claim-{row.id}"),
                Cell(f"{SIGNS[row.verdict]} {row.verdict}", row.verdict, kind=row.verdict.replace(" ", "-")),
                Cell(row.statement, title=row.metric, kind="prose"),
                Cell(row.reason, kind="prose"),
                Cell(row.published or "–", kind="brief"),
                number(row.value, ".4g"),
                Cell(interval),
                number(row.n, "d"),
                Cell("" if runs else "–", more=runs),
                Cell(row.scale or "–", kind="brief"),
                Cell(f"{row.paper}, {row.source}", kind="brief"),
            ]
        )
    yield Table(
        "claims.csv",
        "The claims of both papers (P1 UltraMem, P2 UltraMemV2) and of what is said about them (blog). A verdict holds "
        "at the scale that was run and no further. Hover over a claim for its metric.",
        results.context(results.grid),
        ["id", "verdict", "claim", "reason", "published", "ours", "95 % interval", "n", "runs", "scale", "source"],
        rows,
        kinds(results.grid["device"]),
        filters=tuple(SIGNS),
        searchable=True,
        tall=True,
        cards=True,
    )


SECTIONS = (
    ("summary", "At a glance", summary),
    ("claims", "Claims ledger", claims),
    ("losses", "Loss at matched compute", losses),
    ("scaling", "Loss against cost", scaling),
    ("ablations", "Ablations", ablations),
    ("evaluations", "Evaluation", evaluations),
    ("latency", "Latency", latency),
    ("access", "Memory access", access),
    ("matched", "Matched compute", matched),
    ("speed", "Training speed", speed),
    ("health", "Health of sparse layers", health),
    ("tuning", "Equal tuning", tuning),
    ("cost", "Cost ledger", cost),
    ("data", "Data", data),
    ("provenance", "Provenance", provenance),
)
