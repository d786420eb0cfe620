"""Every memory against its placebos: tables that cannot hold what training puts there, or cannot be found again."""

from collections.abc import Iterator

import pandas as pd

from evals.stats import Interval
from reports import figures
from reports.contrast import by_seed, contrast, runs_of
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import WIDE, in_order, interval, look

CHAIN = "placebos"
WORDS = {
    "one-row": "every pick reads the table's only row",
    "frozen": "values keep their initialisation",
    "frozen-layer": "everything but the output projection keeps its initialisation",
    "shuffled": "which cell leads to which row is drawn anew in every run (nothing learnt is lost: a tie is expected)",
    "scattered": "a cell leads to another row at each position, so no content has a row of its own",
}


def compared(results: Results) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame, Interval]]:
    """(architecture, placebo, plain runs, placebo runs, plain minus placebo) of every pair with a loss on both sides."""
    if "arms" not in results:
        return []
    arms, found = results["arms"][results["arms"]["chain"] == CHAIN], []
    for arch in in_order(step for step in arms["step"] if "-" not in step):
        plain = runs_of(results, arms.loc[arms["step"] == arch, "run"])
        for step in dict.fromkeys(arms.loc[arms["step"].str.startswith(f"{arch}-"), "step"]):
            runs = runs_of(results, arms.loc[arms["step"] == step, "run"])
            if change := contrast(results, plain, runs):
                found.append((arch, step.removeprefix(f"{arch}-"), plain, runs, change))
    return found


def says(change: Interval) -> str:
    """What an interval of plain minus placebo says."""
    if not change.bounded:
        return "one seed: undecided"
    return "beats it" if change.high < 0 else "does worse" if change.low > 0 else "does not beat it"


def sentences(results: Results) -> list[str]:
    """One sentence for each memory that does not beat all of its placebos, or one that says that all do."""
    found, said, undecided = compared(results), [], []
    for arch in in_order(arch for arch, *_ in found):
        lost = [(placebo, change) for name, placebo, _, _, change in found if name == arch and says(change) != "beats it"]
        sure = [f"{placebo} ({_signed(change)})" for placebo, change in lost if change.bounded]
        if sure:
            few = "placebo" if len(sure) == 1 else "placebos"
            harmless = {placebo for placebo, change in lost if change.bounded} == {"shuffled"}
            end = "where a row lies does not matter, as expected" if harmless else "its loss is no evidence of memory"
            said.append(f"{look(arch).label} does not beat its {few} {', '.join(sure)}: {end}.")
        elif lost:
            undecided.append(look(arch).label)
    if undecided:
        said.append(f"Placebos of {', '.join(undecided)}: one seed and no spread over seeds, so nothing is decided.")
    if found and not said:
        names = ", ".join(look(arch).label for arch in in_order(arch for arch, *_ in found))
        said = [f"Every memory beats each of its placebos ({names})."]
    return said


def placebos(results: Results) -> Iterator:
    """Plain minus placebo, memory by memory, and in words who does not beat what."""
    if "arms" not in results or not (results["arms"]["chain"] == CHAIN).any():
        yield Missing(f"Not measured in this run: arms.csv has no chain {CHAIN} (“snakemake ablation_{CHAIN}” writes it).")
        return
    found = compared(results)
    if not found:
        yield Missing(f"Not measured in this run: no memory of the chain {CHAIN} has a test loss beside its placebo's.")
        return
    yield Text(
        "A placebo has the shape, the compute and the parameters of a memory and lacks what makes it one. A memory that is no "
        "better than its placebo owes its loss to something else: more width, more gates, another learning rate."
    )
    yield from map(Text, sentences(results))
    rows = []
    for arch, placebo, plain, other, change in found:
        cells = [results.mean(runs[runs["test_loss"].notna()], "test_loss") for runs in (plain, other)]
        seeds = len(by_seed(plain).keys() & by_seed(other).keys()) or change.n
        word, how = says(change), Cell(change.method, kind="brief")
        cells += [number(change.value, "+.3f"), Cell(interval(change.low, change.high, "+.3f")), number(seeds, "d"), how]
        kind = {"beats it": "good", "one seed: undecided": "not-tested"}.get(word, "opposite")
        rows.append([arch_cell(arch), Cell(placebo, title=WORDS.get(placebo, "")), *cells, Cell(word, kind=kind)])
    runs = pd.concat([part for _, _, plain, other, _ in found for part in (plain, other)]).drop_duplicates("run")
    context, badges = results.context(runs), kinds(runs["device"])
    words = "Test loss of each memory and of its placebos. Memory minus placebo, paired by seed: below 0 the memory is better. "
    meant = "; ".join(f"{name}: {WORDS[name]}" for name in dict.fromkeys(pair[1] for pair in found) if name in WORDS)
    header = ["architecture", "placebo", "memory", "placebo loss", "memory − placebo", "95 % interval", "seeds", "by", "memory"]
    yield Table("arms.csv + runs.csv", f"{words}{meant}.", context, header, rows, badges)
    labels = [f"{look(arch).label}, {placebo}" for arch, placebo, *_ in found]
    values, spread = [change.value for *_, change in found], [(change.low, change.high) for *_, change in found]
    shape = {"width": WIDE, "height": 1.0 + 0.26 * len(found)}
    first = [plain["run"].iloc[0] for _, _, plain, _, _ in found]
    unpublished = [float("nan")] * len(found)
    drawn = figures.changes(CHAIN, labels, values, unpublished, first, title="Memory minus placebo", spread=spread, **shape)
    words = "Memory minus placebo with its 95 % interval: left of 0 (blue) the memory is better."
    yield Picture("arms.csv + runs.csv", words, context, [drawn], badges=badges)


def _signed(change: Interval) -> str:
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]".replace("-", "−")
