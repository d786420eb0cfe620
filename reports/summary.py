"""The first screen: the answer, the decision chart, the verdicts counted, and a picture of loss, latency and ablations."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.ledger import counts
from reports.ablations import waterfalls
from reports.answer import answer
from reports.claims import SIGNS
from reports.decision import chart
from reports.page import Missing, Picture, Results, Text, Verdicts, kinds
from reports.scaling import loss_against
from reports.timings import CSV, batch_panels, timings, typical

KINDS = {
    "trained": "Claims that training decides",
    "measured": "Claims of measured times and bytes",
    "modelled": "Claims of modelled hardware",
    "arithmetic": "Claims of arithmetic",
}


def summary(results: Results) -> Iterator:
    """The answer in words; the decision chart; verdicts by what could show them; loss, latency and waterfalls."""
    said = list(answer(results))
    if said:
        yield from (Text(sentence, "answer", topic) for topic, sentence in said)
    else:
        yield Missing("No answer from this run: it takes a memory layer and a mixture of experts at one size, or their times.")
    yield from chart(results)
    yield from _verdicts(results)
    yield from _picture(results)
    yield from (results.missing(table) for table in ("latency", "arms") if table not in results)


def _verdicts(results: Results) -> Iterator:
    """One row of counts for each kind of claim: an arithmetic one that holds is no evidence of what was trained."""
    if "claims" not in results:
        yield results.missing("claims")
        return
    frame = pd.DataFrame(counts(results["claims"]))
    for kind, title in KINDS.items():
        here = frame[frame["kind"] == kind].set_index("verdict")
        tiles = [
            (sign, word, int(here["claims"].get(word, 0)), int(here["tests"].get(word, 0))) for word, sign in SIGNS.items()
        ]
        tiles = [tile for tile in tiles if tile[2]]
        if tiles:
            total, tests = int(here["claims"].sum()), results["claims"].loc[results["claims"]["kind"] == kind, "test"].nunique()
            yield Verdicts(kind, f"{title}: {total}" + f", in {tests} unique tests" * (tests < total), tiles)


def _picture(results: Results) -> Iterator:
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
