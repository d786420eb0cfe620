"""Committed runs trained again: does anyone who tries get the same numbers?

A run that is trained again by the same build (device, torch and source) has to give every loss of its curve to the last digit.
Elsewhere rounding differs, and training makes of that what it makes of another seed at most: the test loss may move as far as
two seeds of a model do (`evals.stats.noise`, over the committed runs), or where no seed repeats, by the MARGIN of a comparison.

Code that trains is edited without another number in mind. `vouch` trains committed runs again by the edited code; where every
loss is equal to the last digit, the committed runs stand for those of the new source as well.
"""

from __future__ import annotations

import csv
import io
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats as distributions

from evals import stats
from evals.agreement.equivalence import LEVEL, MARGIN
from evals.records import schema
from evals.records.errors import UserError
from evals.records.provenance import ROOT, training_source
from evals.records.shards import load_shards
from evals.records.store import SAME, Stored, first_source, row_of, same_sources, stored
from models import arch_module

BUILD = {"device": "device", "torch": "torch", "source": "source_sha"}
LOSSES = ("val_loss", "test_loss")
EQUAL, NEAR, DIFFERENT = "equal", "near", "different"


@dataclass(frozen=True)
class Verdict:
    """Of one run: `status` is equal, near or different; `losses` were found equal."""

    run: str
    status: str
    told: str
    losses: int = 0


def drawn(folder: Path, n: int, seed: int) -> list[Stored]:
    """`n` of the runs in `folder/runs`, each as likely as any other.

    Raises:
        UserError: there are fewer, or none is asked for.
    """
    runs = stored(folder / "runs")
    if not 1 <= n <= len(runs):
        raise UserError(f"--rerun {n}: {folder / 'runs'} holds {len(runs)} runs, so give a number from 1 to that")
    return random.Random(seed).sample(runs, n)


def tolerance(runs: list[Stored], n: int) -> tuple[float, str]:
    """How far a test loss may move on another build, and why; over `n` runs one of 20 tries is told apart by chance."""
    model = [re.sub(r"-s\d+$", "", run.run) for run in runs]
    frame = pd.DataFrame(
        {
            "config": model,
            "seed": [int(run.row["seed"]) for run in runs],
            "block": [f"{run.row['size']} {run.row['tokens']}" for run in runs],
            "value": [float(run.row["test_loss"]) for run in runs],
        }
    )
    noise = stats.noise(frame)
    if noise is None or not noise.variance > 0:
        return MARGIN, "no seed was repeated, so the margin of a comparison"
    quantile = float(distributions.t.ppf(1 - (1 - LEVEL) / 2 / n, noise.freedom))
    return quantile * math.sqrt(2 * noise.variance), f"what another seed does, {noise.freedom} degrees of freedom"


def ready(run: Stored) -> None:
    """UserError: the tokens that the run was trained on are not here."""
    data = Path(yaml.safe_load((run.folder / "config.yaml").read_text())["data"])
    make = f"make them: snakemake --cores all prepare --config preset={run.row['preset']}"
    if not (data / "meta.json").exists():
        raise UserError(f"{data} does not exist, which {run.run} was trained on; {make}")
    if (here := load_shards(data).meta["sha256"]["train.bin"][:12]) != run.hash("data"):
        raise UserError(
            f"{data} holds other tokens ({here}) than {run.run} was trained on ({run.hash('data')}); delete it and {make}"
        )


def train(folder: Path) -> None:
    """Trains the run whose config is in `folder`, in a process of its own.

    Raises:
        UserError: the trainer failed; its last line.
    """
    command, env = [sys.executable, "-m", "workflows.train", str(folder)], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{folder.name} could not be trained again: {last.removeprefix('error: ')}")


def again(run: Stored, folder: Path, allowed: float, trainer: Callable[[Path], None] = train) -> tuple[Verdict, dict[str, str]]:
    """Trains a stored run in `folder`, which is new, and compares; with the row that it gets."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes(run.content("config.yaml") or b"")
    trainer(folder)
    row = row_of(folder)
    return verdict(run, row, (folder / "train.csv").read_text(), allowed), row


def verdict(run: Stored, row: dict[str, str], curve: str, allowed: float) -> Verdict:
    """Of a stored run and the row and the curve (`train.csv`) of its repetition."""
    gap = float(row["test_loss"]) - float(run.row["test_loss"])
    moved = f"test loss {run.row['test_loss']} there, {row['test_loss']} here"
    if row["config_sha"] != run.row["config_sha"]:
        return Verdict(run.run, DIFFERENT, f"{moved}; the config reads as another one now ({row['config_sha']})")
    before = _curve((run.content("train.csv") or b"").decode())
    after = _curve(curve)
    same = before == after and all(row[column] == run.row[column] for column in LOSSES)
    if same:
        told = f"test loss {row['test_loss']} and all {len(after)} losses of the curve, to the last digit"
        return Verdict(run.run, EQUAL, told, len(after))
    near = abs(gap) <= allowed
    moved += f": {'within' if near else 'beyond'} {allowed:.3g}"
    if others := [what for what, column in BUILD.items() if row[column] != run.row[column]]:
        told = f"{moved}, on another {' and another '.join(others)}"
        return Verdict(run.run, NEAR if near else DIFFERENT, told)
    first = next((place for place, loss in before.items() if after.get(place) != loss), None)
    where = f"from step {first[0]} on" if first else "at the end"
    return Verdict(run.run, DIFFERENT, f"{moved}, but not equal {where}, though device, torch and source are the same")


def _curve(text: str) -> dict[tuple[str, str, str], str]:
    """Losses as they stand in `train.csv`, by step, split and source."""
    return {(row["step"], row["split"], row["source"]): row["loss"] for row in csv.DictReader(io.StringIO(text))}


def sentence(verdicts: list[Verdict]) -> str:
    """What it comes to, in one line."""
    count = {status: sum(v.status == status for v in verdicts) for status in (EQUAL, NEAR, DIFFERENT)}
    parts = [f"{count[EQUAL]} to the last digit"] * bool(count[EQUAL]) + [f"{count[NEAR]} within the noise"] * bool(count[NEAR])
    agree = f"{count[EQUAL] + count[NEAR]} of {len(verdicts)} runs agree" + (f" ({', '.join(parts)})" if parts else "")
    if not count[DIFFERENT]:
        return f"reproduced: {agree}"
    return f"not reproduced: {agree}; {', '.join(v.run for v in verdicts if v.status == DIFFERENT)} differ"


def rerun(folder: Path, n: int, seed: int | None) -> int:
    """Prints a line for each of `n` runs of `folder`, drawn at random, and the sentence; 0 where all agree, else 1.

    Raises:
        UserError: there are too few runs, the data is not here, or one cannot be trained.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    runs = drawn(folder, n, seed)
    print(f"drawn with --seed {seed}: {', '.join(run.run for run in runs)}")
    verdicts = [verdict for verdict, _ in trained_again(folder, runs)]
    print(sentence(verdicts))
    return int(any(v.status == DIFFERENT for v in verdicts))


def trained_again(folder: Path, runs: list[Stored]) -> list[tuple[Verdict, dict[str, str]]]:
    """Of each of `runs`, which lie in `folder/runs`, what it comes to and the row of its repetition; prints them as they end.

    Raises:
        UserError: the data is not here, or one cannot be trained.
    """
    allowed, why = tolerance(stored(folder / "runs"), len(runs))
    print(f"on another build a test loss may move by {allowed:.3g} nats/token: {why}", flush=True)
    for run in runs:
        ready(run)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for run in runs:
            verdict, row = again(run, Path(place) / run.run, allowed, train)
            print(f"{verdict.status}: {run.run}: {verdict.told}", flush=True)
            found.append((verdict, row))
    return found


def vouch(folder: Path, n: int, reason: str) -> int:
    """Trains `n` runs of every source in `folder` that is not known to train as the code here does; 0 where all are equal.

    The first ones by name, or as many as there are. A source of which all are equal is noted in `runs/same_source.csv`, with
    `reason`, which says what has changed.

    Raises:
        UserError: no run or no reason is asked for, the data is not here, or a run cannot be trained.
    """
    if n < 1 or not reason.strip():
        raise UserError(f"--rerun {n} --vouch {reason!r}: give at least one run of each source, and say what has changed")
    store = folder / "runs"
    same, waiting = same_sources(store), defaultdict(list)
    for run in stored(store):
        if first_source(run.hash("source"), same) != first_source(source_here(run), same):
            waiting[run.hash("source")].append(run)
    if not waiting:
        print(f"every run in {store} is of a source that trains as the code here does")
        return 0
    chosen = {source: runs[:n] for source, runs in waiting.items()}
    trained = trained_again(folder, [run for runs in chosen.values() for run in runs])
    ended = iter(trained)
    rows = schema.read(store / f"{SAME}.csv", SAME).to_dict("records") if same else []
    for source, runs in chosen.items():
        repeated = list(islice(ended, len(runs)))
        verdicts, row = [verdict for verdict, _ in repeated], repeated[0][1]
        if all(verdict.status == EQUAL for verdict in verdicts):
            rows.append(
                {
                    "source": first_source(row["source_sha"], same),
                    "same_as": first_source(source, same),
                    "runs": " ".join(verdict.run for verdict in verdicts),
                    "losses": sum(verdict.losses for verdict in verdicts),
                    "device": row["device"],
                    "torch": row["torch"],
                    "commit": row["git_commit"],
                    "date": f"{datetime.now(UTC):%Y-%m-%d}",
                    "reason": reason,
                }
            )
            same = {entry["source"]: entry["same_as"] for entry in rows}
    if rows:
        schema.write(store / f"{SAME}.csv", SAME, rows)
    print(sentence([verdict for verdict, _ in trained]))
    return int(any(verdict.status != EQUAL for verdict, _ in trained))


def source_here(run: Stored) -> str:
    """What the source of a run would be, were it trained here."""
    name = yaml.safe_load(run.content("config.yaml") or b"")["model"]["arch"]["name"]
    return training_source(arch_module(name))
