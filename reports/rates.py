"""Whether tuned learning rates are still the best with all tokens, of which tuning spent fewer."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from evals.stats import Interval, difference
from evals.stats.seeds import TIE
from reports.page import Cell, Results, Table, arch_cell, kinds, number
from reports.style import in_order, interval, look

CHAIN = "rates"


@dataclass(frozen=True)
class Tried:
    """One architecture at one rate: its runs, and its validation loss minus that at the tuned rate where this is another."""

    arch: str
    lr: float
    runs: pd.DataFrame
    change: Interval | None

    @property
    def mean(self) -> float:
        return self.runs["val_loss"].mean()

    @property
    def better(self) -> bool:
        """Lower by more than tuning's tie: then the recipe is to be replaced."""
        return self.change is not None and self.change.value < -TIE


def tried(results: Results) -> list[Tried]:
    """Every architecture at its tuned rate, then at each other one, of those that have a loss at the tuned rate."""
    if "arms" not in results:
        return []
    arms = results["arms"][results["arms"]["chain"] == CHAIN].merge(results.runs[["run", "arch", "seed", "val_loss"]], on="run")
    arms, found = arms[arms["val_loss"].notna()], []
    for arch in in_order(arms["arch"]):
        here = arms[arms["arch"] == arch]
        tuned = here[here["set"] == "{}"]
        if tuned.empty:
            continue
        losses = dict(zip(tuned["seed"], tuned["val_loss"], strict=True))
        found.append(Tried(arch, tuned["lr"].iloc[0], tuned, None))
        for lr, runs in here[here["set"] != "{}"].groupby("lr"):
            change = difference(dict(zip(runs["seed"], runs["val_loss"], strict=True)), losses)
            found.append(Tried(arch, lr, runs, change))
    return found


def rates(results: Results) -> Iterator:
    """One table: each architecture at its tuned rate and at those beside it; nothing where they were not run."""
    found, rows = tried(results), []
    if not any(one.change for one in found):
        return
    done = results.runs[results.runs["run"].isin([run for one in found for run in one.runs["run"]])]
    for one in found:
        href = results.href(one.runs["run"].iloc[0])
        row = [arch_cell(one.arch), number(one.lr, ".3g"), number(one.mean, ".3f", href)]
        if (change := one.change) is None:
            row += [Cell("–"), Cell("–"), number(len(one.runs), "d"), Cell("the tuned rate", kind="prose")]
        else:
            row += [number(change.value, "+.3f"), Cell(interval(change.low, change.high, "+.3f")), number(change.n, "d")]
            row.append(Cell("better" if one.better else "no better", kind="opposite" if one.better else "good"))
        rows.append(row)
    moved = [look(arch).label for arch in in_order({one.arch for one in found if one.better})]
    words = (
        "Tuned rates with all tokens: validation loss at each rate, and its change against the tuned one, paired by seed. "
        f"Better is lower by more than tuning's tie of {TIE} nats: "
    )
    words += f"the recipe of {', '.join(moved)} is to be replaced." if moved else "no recipe is to be replaced."
    header = ["architecture", "rate", "validation loss", "change", "95 % interval", "seeds", "against the tuned rate"]
    yield Table("arms.csv + runs.csv", words, results.context(done), header, rows, kinds(done["device"]))
