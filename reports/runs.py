"""Every run in a section of its own: its curve, what made it, its config, and the command that trains it again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evals.records import schema
from evals.records.store import working_folder
from reports.folder import config_of
from reports.losses import thinned
from reports.page import Facts, Missing, Results, Table, Text, kinds
from reports.sketch import Line, sketch
from reports.style import Look, anchor, in_order, look

LISTED = ("run", "arch", "size", "seed", "tokens", "train_loss", "val_loss", "test_loss", "core_seconds", "tokens_per_s")
LISTED += ("precision", "status", "git_commit", "config_sha")
POINTS = 60


@dataclass(frozen=True)
class Run:
    """One run's section. `asked` says what it is part of, `facts` are cells of runs.csv, `curve` is an SVG or ""."""

    name: str
    id: str
    look: Look
    loss: str
    asked: str
    facts: list[tuple[str, str]]
    command: str
    config: str
    curve: str
    beside: str = ""


@dataclass(frozen=True)
class Runs:
    """The sections of some runs under one heading, folded up."""

    title: str
    runs: list[Run]
    block: str = "runs"


def runs(results: Results, other: Results | None = None) -> Iterator:
    """A list of the runs, what is the same for all, then a section for each with that of `other` beside it."""
    if "runs" not in results:
        yield results.missing("runs")
        return
    frame = results.runs
    yield Text(
        "Every run has a section below: its curve, all that is recorded of it, its config, and the command that trains it "
        "again, in a clone of this repository. A config is the same where its hash (config_sha) is."
    )
    header, rows = results.listing("runs", frame, LISTED)
    words = "One row a run, as the worker that trained it wrote it; the run leads to its section. Hashes are cut to ten digits."
    yield Table("runs.csv", words, "", header, rows, kinds(frame["device"]), searchable=True, tall=True, cards=True)
    known = {column.name: column for column in schema.columns("runs") if column.name != "run"}
    shown = {name: [results.cell(known[name], value).text for value in frame[name]] for name in known}
    common = {name: cells[0] for name, cells in shown.items() if len(set(cells)) == 1 and cells[0] != "–"}
    if len(frame) > 1 and common:
        yield Text("The same for all runs:")
        yield Facts(list(common.items()))
    own = [name for name in known if len(frame) == 1 or len(set(shown[name])) > 1]
    facts = {
        run: [(name, shown[name][place]) for name in own if shown[name][place] != "–"] for place, run in enumerate(frame["run"])
    }
    asked, curves = _asked(results), _curves(results)
    theirs = _curves(other) if other else {}
    for title, names in _groups(results):
        yield Runs(title, [_run(results, name, asked, facts[name], curves, other, theirs) for name in names])
    if not curves:
        yield results.missing("train")
    if not any(config_of(results.folder, name) for name in frame["run"]):
        yield Missing("Configs are not kept here: each is in runs/{run}/config.yaml of the folder that its preset works in.")


def _run(
    results: Results,
    name: str,
    asked: dict[str, list[str]],
    facts: list[tuple[str, str]],
    curves: dict[str, dict[str, pd.DataFrame]],
    other: Results | None,
    theirs: dict[str, dict[str, pd.DataFrame]],
) -> Run:
    row = results.runs.loc[name]
    loss = f"test loss {row['test_loss']:.3f}" if pd.notna(row["test_loss"]) else str(row["status"])
    beside = ""
    if other is not None and name in other.runs.index:
        there, change = other.runs.loc[name], other.runs.loc[name, "test_loss"] - row["test_loss"]
        loss_there = f"{there['test_loss']:.3f} ({change:+.3f})".replace("-", "−") if pd.notna(change) else there["status"]
        same = "the same config" if there["config_sha"] == row["config_sha"] else "another config"
        beside = f"{other.folder.name}: test loss {loss_there}, {same}, {there['device']}"
    lines = _lines(curves.get(name, {}), theirs.get(name, {}), look(row["arch"]), other)
    alt = f"Loss of {name} while it trains" + f", at the end {row['val_loss']:.3f} on validation" * pd.notna(row["val_loss"])
    curve = sketch(lines, "tokens", "nats/token", alt) if lines else ""
    config = config_of(results.folder, name)
    roles = "; ".join(asked.get(name, []))
    return Run(name, anchor(name), look(row["arch"]), loss, roles, facts, command(row), config, curve, beside)


def command(row: pd.Series) -> str:
    """What trains a run of `runs.csv` again, in a clone: its commit, and its own target of its preset."""
    folder, lines = working_folder(Path("results"), row["preset"]), []
    if row["git_commit"]:
        dirty = "  # with changes that were not committed" if row["git_dirty"] is True else ""
        lines = [f"git checkout {row['git_commit']}{dirty}", "make env"]
    target = f"{folder}/runs/{row['run']}/runs.csv"
    return "\n".join([*lines, f".venv/bin/snakemake --cores all {target} --config preset={row['preset']} adopt=false"])


def _asked(results: Results) -> dict[str, list[str]]:
    """What each run is part of, in words."""
    found: dict[str, list[str]] = {run: ["the comparison"] for run in results.grid["run"]}
    if "arms" in results:
        for arm in results["arms"].itertuples():
            found.setdefault(arm.run, []).append(f"ablation_{arm.chain}, {arm.label}")
    if "tuning" in results:
        for tried in results["tuning"].itertuples():
            found.setdefault(tried.run, []).append(f"tuning, {tried.setting}" + " (chosen)" * bool(tried.chosen))
    return found


def _groups(results: Results) -> Iterator[tuple[str, list[str]]]:
    """(title, runs): the comparison by size, each chain, tuning, the rest; a run is in the first that has it."""
    groups = []
    for size in results.sizes:
        grid = results.grid[results.grid["size"] == size]
        order = {arch: place for place, arch in enumerate(in_order(grid["arch"]))}
        grid = grid.assign(place=grid["arch"].map(order)).sort_values(["place", "seed"])
        groups.append((f"The comparison, {size}", list(grid["run"])))
    if "arms" in results:
        groups += [(f"Chain {chain}", list(arms["run"])) for chain, arms in results["arms"].groupby("chain", sort=False)]
    if "tuning" in results:
        groups.append(("Tuning", list(results["tuning"]["run"])))
    groups.append(("Others", list(results.runs["run"])))
    left = dict.fromkeys(results.runs["run"])
    for title, names in groups:
        here = [name for name in dict.fromkeys(names) if name in left]
        for name in here:
            del left[name]
        if here:
            yield title, here


def _curves(results: Results) -> dict[str, dict[str, pd.DataFrame]]:
    """By run its rows of `train` that are drawn, by split."""
    if "train" not in results:
        return {}
    frame = results["train"]
    frame = frame[(frame["tokens"] > 0) & frame["loss"].notna() & frame["run"].isin(results.runs.index)]
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for split, source in (("train", ""), ("validation", "all")):
        here = frame[(frame["split"] == split) & (frame["source"] == source)]
        for run, line in here.groupby("run"):
            found.setdefault(str(run), {})[split] = thinned(line, POINTS)
    return found


def _lines(ours: dict[str, pd.DataFrame], theirs: dict[str, pd.DataFrame], this: Look, other: Results | None) -> list[Line]:
    lines = []
    if "train" in ours:
        lines.append(Line("train", _points(ours["train"]), "muted"))
    if "validation" in theirs and other:
        lines.append(Line(f"validation, {other.folder.name}", _points(theirs["validation"]), "ink", dashed=True))
    if "validation" in ours:
        lines.append(Line("validation", _points(ours["validation"]), this.name, dots=True))
    return lines


def _points(frame: pd.DataFrame) -> list[tuple[float, float]]:
    return list(zip(frame["tokens"].astype(float), frame["loss"].astype(float), strict=True))
