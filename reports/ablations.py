"""The ablation chains: each beside the paper's numbers, as a table, a waterfall and the change of every step."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.diagnosis import PREFIX as DIAGNOSIS
from reports import figures, published
from reports.contrast import by_seed, contrast, runs_of
from reports.equivalents import of_chain
from reports.page import Cell, Missing, Picture, Results, Table, kinds, number
from reports.rates import CHAIN as RATES
from reports.style import WIDE, Panel, interval

CONTROLS = "controls"
ELSEWHERE = (CONTROLS, RATES, "placebos")  # and the chains of diagnosis: each has a section of its own


def ablations(results: Results) -> Iterator:
    """Each chain, then what P2 publishes in other units than loss."""
    if "arms" not in results:
        yield results.missing("arms")
        return
    for place, name in enumerate(dict.fromkeys(results["arms"]["chain"])):
        if name not in ELSEWHERE and not name.startswith(DIAGNOSIS):
            yield from _one(results, place, name)
    rows = [
        [
            Cell(row.row),
            Cell(row.condition or "–", kind="prose"),
            Cell(row.metric),
            Cell(row.value),
            Cell(row.unit),
            Cell(row.source),
        ]
        for row in published.table("ultramem_v2_ablations").itertuples()
    ]
    words = (
        "What P2 publishes of each change, most of it in points of its own benchmarks, which no run here can be held against."
    )
    header = ["change", "at", "metric", "published", "unit", "source"]
    yield Table("evals/claims/reference/ultramem_v2_ablations.csv", words, "", header, rows, ("published",), tall=True)


def chain(results: Results, name: str) -> pd.DataFrame:
    """One chain, one row a step: mean losses over its seeds, `runs`, `n` seeds, and the change that the step makes.

    `delta` with its interval `low`, `high` is against the previous step, or against the base where arms do not add up.
    """
    arms, rows = results["arms"][results["arms"]["chain"] == name].sort_values("order", kind="stable"), []
    for _, here in arms.groupby("step", sort=False):
        row, runs = here.iloc[0].to_dict(), runs_of(results, here["run"])
        before = (rows[-1] if row["kind"] == "cumulative" else rows[0])["runs"] if rows else ()
        change = contrast(results, runs, runs_of(results, before))
        means = {column: runs[column].mean() for column in ("train_loss", "test_loss")}
        change = (change.value, change.low, change.high) if change else (float("nan"),) * 3
        row |= means | dict(zip(("delta", "low", "high"), change, strict=True))
        rows.append(row | {"runs": tuple(here["run"]), "n": len(by_seed(runs))})
    return pd.DataFrame(rows)


def waterfalls(results: Results, prefix: str) -> Iterator[Panel]:
    """The cumulative chains of which at least two rows have a loss."""
    for name in dict.fromkeys(results["arms"]["chain"]) if "arms" in results else ():
        rows = chain(results, name)
        if rows["kind"].iloc[-1] == "cumulative" and rows["test_loss"].notna().sum() > 1:
            yield _waterfall(f"{prefix}-{name}", name, rows)


def _one(results: Results, place: int, title: str) -> Iterator:
    arms = chain(results, title)
    kind = arms["kind"].iloc[-1]
    done = runs_of(results, arms["runs"].explode())
    published_here = bool(arms[["paper_train_loss", "paper_val_loss", "paper_delta_val"]].notna().any(axis=None))
    context, badges = results.context(done), (*kinds(done["device"]), *["published"] * published_here)
    against = "the previous row" if kind == "cumulative" else "the base"
    rows = []
    for row in arms.itertuples():
        links = tuple((str(place), href) for place, run in enumerate(row.runs) if (href := results.href(run)))
        href = links[0][1] if links else None
        ours = [number(row.train_loss, ".3f", href), number(row.test_loss, ".3f", href), number(row.delta, "+.3f", href)]
        ours += [
            Cell(interval(row.low, row.high, "+.3f")),
            Cell(str(row.n), row.n, number=True, more=links if row.n > 1 else ()),
        ]
        paper = [number(row.paper_train_loss, ".3f"), number(row.paper_val_loss, ".3f")]
        paper += [number(row.paper_delta_val, "+.3f"), _agreement(row.delta, row.paper_delta_val)]
        rows.append([number(row.order, "d"), Cell(row.label, title=row.set), *ours, *(paper if published_here else [])])
    beside = " beside the paper's, whose scale and data are other: signs and order compare, sizes do not"
    header = ["#", "step", "train loss", "test loss", "change", "95 % interval", "seeds"]
    header += ["paper train", "paper val", "paper change", "sign"] if published_here else []
    yield Table(
        "arms.csv + runs.csv",
        f"{title} ({kind}): our losses{beside if published_here else ', of which no paper publishes a number'}. Change is "
        f"against {against}, paired by seed; with one seed the interval is that of the pooled seed noise, if any. "
        "A step's config: hover over it, or follow its loss to the run.",
        context,
        header,
        rows,
        badges,
    )
    if not arms["test_loss"].notna().any():
        yield Missing(f"Not measured in this run: no run of the chain {title} has a test loss.")
        return
    panels = [_waterfall(f"chain-{place}", title, arms)] if kind == "cumulative" else []
    steps = arms[arms["delta"].notna() | arms["paper_delta_val"].notna()]
    if len(steps):
        columns = (list(results.linked(steps)[name]) for name in ("label", "delta", "paper_delta_val", "run"))
        shape = {"title": "Change by step", "width": WIDE, "height": 1.0 + 0.26 * len(steps)}
        shape["spread"] = list(zip(steps["low"], steps["high"], strict=True))
        panels.append(figures.changes(f"change-{place}", *columns, **shape))
    if panels:
        words = "Loss after each step and the change each step makes" if kind == "cumulative" else "The change each arm makes"
        yield Picture(
            "arms.csv + runs.csv",
            f"{title}: {words[0].lower()}{words[1:]}. Bars are ours, blue where the loss falls and orange where it "
            f"rises, with their 95 % interval{'; diamonds are the paper’s' if published_here else ''}.",
            context,
            panels,
            badges=badges,
        )
    yield from of_chain(results, title)


def _agreement(ours: float, paper: float) -> Cell:
    """Whether the signs of two changes agree; nothing where one is missing or zero."""
    if pd.isna(ours) or pd.isna(paper) or not ours * paper:
        return Cell("–")
    word = "same" if ours * paper > 0 else "opposite"
    return Cell(word, kind=word)


def _waterfall(name: str, title: str, arms: pd.DataFrame) -> Panel:
    arms = arms[arms["test_loss"].notna()]
    rows = (list(arms["label"]), list(arms["test_loss"]), list(arms["run"]))
    return figures.waterfall(name, *rows, title=title, width=WIDE, height=1.0 + 0.26 * len(arms))
