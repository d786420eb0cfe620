"""Whether recipes are still the best with all tokens, of which tuning spent fewer."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from evals.stats import Interval
from evals.stats.seeds import TIE
from reports.contrast import contrast
from reports.page import Cell, Results, Table, arch_cell, kinds, number
from reports.style import in_order, interval, look

CHAIN = "rates"


@dataclass(frozen=True)
class Tried:
    """One architecture with one recipe: its runs, and its validation loss minus that with the recipe in use."""

    arch: str
    label: str
    lr: float
    runs: pd.DataFrame
    change: Interval | None

    @property
    def better(self) -> bool:
        """Lower by more than tuning's tie: then the recipe is to be replaced."""
        return self.change is not None and self.change.value < -TIE


def tried(results: Results) -> list[Tried]:
    """Every architecture with the recipe in use, then with each other one, of those that have a loss with the first."""
    if "arms" not in results:
        return []
    arms = results["arms"][results["arms"]["chain"] == CHAIN].merge(results.runs[["run", "arch", "seed", "val_loss"]], on="run")
    arms, found = arms[arms["val_loss"].notna()], []
    for arch in in_order(arms["arch"]):
        here = arms[arms["arch"] == arch].sort_values("order", kind="stable")
        used = here[here["set"] == "{}"]
        if used.empty:
            continue
        found.append(Tried(arch, "in use", used["lr"].iloc[0], used, None))
        for label, runs in here[here["set"] != "{}"].groupby("label", sort=False):
            found.append(Tried(arch, label, runs["lr"].iloc[0], runs, contrast(results, runs, used, "val_loss")))
    return found


def rates(results: Results) -> Iterator:
    """One table: each architecture with its recipe and with others beside it; nothing where they were not run."""
    found, rows = tried(results), []
    if not any(one.change for one in found):
        return
    done = results.runs[results.runs["run"].isin([run for one in found for run in one.runs["run"]])]
    for one in found:
        href = results.href(one.runs["run"].iloc[0])
        row = [arch_cell(one.arch), Cell(one.label), number(one.lr, ".3g"), number(one.runs["val_loss"].mean(), ".3f", href)]
        if (change := one.change) is None:
            row += [Cell("–"), Cell("–"), number(len(one.runs), "d"), Cell("–")]
        else:
            row += [number(change.value, "+.3f"), Cell(interval(change.low, change.high, "+.3f")), number(change.n, "d")]
            row.append(Cell("better" if one.better else "no better", kind="opposite" if one.better else "good"))
        rows.append(row)
    moved = [look(arch).label for arch in in_order({one.arch for one in found if one.better})]
    words = (
        "Recipes with all tokens (tuning spent fewer): validation loss with each, and its change against the one in use, "
        f"paired by seed. Better is lower by more than tuning's tie of {TIE} nats: "
    )
    words += f"the recipe of {', '.join(moved)} is to be replaced." if moved else "no recipe is to be replaced."
    header = ["architecture", "recipe", "rate", "validation loss", "change", "95 % interval", "seeds", "against the one in use"]
    yield Table("arms.csv + runs.csv", words, results.context(done), header, rows, kinds(done["device"]))
