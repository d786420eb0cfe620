"""The ablation chains: each beside the paper's numbers, as a table, a waterfall and the change of every step."""

from collections.abc import Iterator

import pandas as pd

from reports import figures, published
from reports.page import Cell, Missing, Picture, Results, Table, kinds, number
from reports.style import WIDE, Panel

CONTROLS = "controls"


def ablations(results: Results) -> Iterator:
    """Each chain, then what P2 publishes in other units than loss."""
    if "arms" not in results:
        yield results.missing("arms")
        return
    for place, name in enumerate(dict.fromkeys(results["arms"]["chain"])):
        if name != CONTROLS:
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
    yield Table("evals/reference/ultramem_v2_ablations.csv", words, "", header, rows, ("published",), tall=True)


def chain(results: Results, name: str) -> pd.DataFrame:
    """One chain with the losses of its runs; `delta` against the previous row, or the base where arms do not add up."""
    arms = results["arms"][results["arms"]["chain"] == name].sort_values("order")
    arms = arms.merge(results.runs[["train_loss", "val_loss"]], left_on="run", right_index=True, how="left")
    cumulative = arms["kind"].iloc[-1] == "cumulative"
    before = arms["val_loss"].shift() if cumulative else arms["val_loss"].iloc[0]
    return arms.assign(delta=(arms["val_loss"] - before).where(arms["order"] != arms["order"].min()))


def waterfalls(results: Results, prefix: str) -> Iterator[Panel]:
    """The cumulative chains of which at least two rows have a loss."""
    for name in dict.fromkeys(results["arms"]["chain"]) if "arms" in results else ():
        rows = chain(results, name)
        if rows["kind"].iloc[-1] == "cumulative" and rows["val_loss"].notna().sum() > 1:
            yield _waterfall(f"{prefix}-{name}", name, rows)


def _one(results: Results, place: int, title: str) -> Iterator:
    arms = chain(results, title)
    kind = arms["kind"].iloc[-1]
    done = results.runs[results.runs["run"].isin(arms["run"])]
    published_here = bool(arms[["paper_train_loss", "paper_val_loss", "paper_delta_val"]].notna().any(axis=None))
    context, badges = results.context(done), (*kinds(done["device"]), *["published"] * published_here)
    against = "the previous row" if kind == "cumulative" else "the base"
    rows = []
    for row in arms.itertuples():
        href = results.href(row.run)
        ours = [number(row.train_loss, ".3f", href), number(row.val_loss, ".3f", href), number(row.delta, "+.3f", href)]
        paper = [number(row.paper_train_loss, ".3f"), number(row.paper_val_loss, ".3f")]
        paper += [number(row.paper_delta_val, "+.3f"), _agreement(row.delta, row.paper_delta_val)]
        rows.append([number(row.order, "d"), Cell(row.label, title=row.set), *ours, *(paper if published_here else [])])
    beside = " beside the paper's, whose scale and data are other: signs and order compare, sizes do not"
    header = ["#", "step", "train loss", "val loss", "change"]
    header += ["paper train", "paper val", "paper change", "sign"] if published_here else []
    yield Table(
        "arms.csv + runs.csv",
        f"{title} ({kind}): our losses{beside if published_here else ', of which no paper publishes a number'}. Change is "
        f"against {against}. Hover over a step for its config.",
        context,
        header,
        rows,
        badges,
    )
    if not arms["val_loss"].notna().any():
        yield Missing(f"Not measured in this run: no run of the chain {title} has a validation loss.")
        return
    panels = [_waterfall(f"chain-{place}", title, arms)] if kind == "cumulative" else []
    steps = arms[arms["delta"].notna() | arms["paper_delta_val"].notna()]
    if len(steps):
        columns = (list(results.linked(steps)[name]) for name in ("label", "delta", "paper_delta_val", "run"))
        shape = {"title": "Change by step", "width": WIDE, "height": 1.0 + 0.26 * len(steps)}
        panels.append(figures.changes(f"change-{place}", *columns, **shape))
    if panels:
        words = "Loss after each step and the change each step makes" if kind == "cumulative" else "The change each arm makes"
        yield Picture(
            "arms.csv + runs.csv",
            f"{title}: {words[0].lower()}{words[1:]}. Bars are ours, blue where the loss falls and orange where it "
            f"rises{'; diamonds are the paper’s' if published_here else ''}.",
            context,
            panels,
            badges=badges,
        )


def _agreement(ours: float, paper: float) -> Cell:
    """Whether the signs of two changes agree; nothing where one is missing or zero."""
    if pd.isna(ours) or pd.isna(paper) or not ours * paper:
        return Cell("–")
    word = "same" if ours * paper > 0 else "opposite"
    return Cell(word, kind=word)


def _waterfall(name: str, title: str, arms: pd.DataFrame) -> Panel:
    arms = arms[arms["val_loss"].notna()]
    rows = (list(arms["label"]), list(arms["val_loss"]), list(arms["run"]))
    return figures.waterfall(name, *rows, title=title, width=WIDE, height=1.0 + 0.26 * len(arms))
