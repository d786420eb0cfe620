"""How a part of `python -m evals.gpu` runs: item by item, within its time, kept after each item, and never measured twice.

A part's CSV holds the rows of every item that was measured; beside it `{part}.json` says by which code, on which device and
which items. With another code, device or shapes what is there does not count, and is measured again.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from evals.decode.timers import CpuTimer, Step, Timer, timer
from evals.records import schema
from evals.records.errors import UserError
from evals.records.files import whole
from evals.records.provenance import device_name, fingerprint

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """One thing that is measured: its name in the CSV, and what returns its rows."""

    name: str
    measure: Callable[[Bench], Rows]


@dataclass(frozen=True)
class Part:
    """Args:
    name: of the part and its CSV.
    table: of `evals.records.schema`, that the rows fit.
    about: what it measures, in words.
    seconds: that it may take on a device before it stops between two items.
    items: what is measured, most valuable first.
    """

    name: str
    table: str
    about: str
    seconds: float
    items: Callable[[Bench], Iterable[Item]]


class SmallTimer(CpuTimer):
    """A CPU's clock for numbers that nobody reads: a small cache, and a few calls of each yardstick."""

    def cache_bytes(self) -> int:
        return 1 << 20

    def median(self, step: Step) -> float:
        timed = self.prepare(step)
        return sorted(timed() for _ in range(3))[1]


@dataclass
class Bench:
    """Where and how items are measured.

    Args:
        device: "cpu" or "cuda".
        folder: that gets the CSVs.
        tiny: shapes that a CPU runs through in moments, for the same code.
        until: time (`time.monotonic`) at which the part has to end.
    """

    device: str
    folder: Path
    tiny: bool
    until: float = float("inf")
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    @property
    def clock(self) -> Timer:
        return SmallTimer(torch.device("cpu"), flush=True) if self.tiny else timer(self.device)

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.notes.append(text)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def driver(device: str) -> str:
    """Version of the device's driver as nvidia-smi has it; "none" on a CPU, "unknown" where nobody says."""
    if device == "cpu":
        return "none"
    smi = shutil.which("nvidia-smi")
    if not smi:
        return "unknown"
    done = subprocess.run([smi, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    return (done.stdout.split() or ["unknown"])[0]


def made_by(device: str) -> dict[str, str]:
    """Columns of every row: device, driver, versions, and the fingerprint of the code."""
    triton = version("triton")
    return {
        "device": device_name(device),
        "driver": driver(device),
        "cuda": torch.version.cuda or "none",
        "torch": version("torch"),
        "triton": triton if triton != "none" else version("pytorch-triton"),
        "python": platform.python_version(),
        "source": fingerprint("evals.gpu", "workflows.train"),  # which part 7 starts
    }


class Kept:
    """The rows of a part that are already measured, by item."""

    def __init__(self, part: Part, bench: Bench, identity: dict[str, Any]):
        self.part, self.identity, self.rows = part, identity, dict[str, Rows]()
        self.csv, self.note = (bench.folder / f"{part.name}.{kind}" for kind in ("csv", "json"))
        try:
            note = json.loads(self.note.read_text())
            frame = schema.read(self.csv, part.table)
        except (OSError, ValueError):
            return
        if note.get("made_by") != identity:
            bench.say(f"{part.name}: what {self.csv} holds is of other code, device or shapes, and is measured again")
            return
        for name in note["items"]:
            here = frame[frame["item"] == name].astype(object)
            self.rows[name] = here.where(here.notna(), None).to_dict("records")

    def add(self, name: str, rows: Rows) -> None:
        self.rows[name] = rows

    def write(self, state: str) -> None:
        """The CSV first: an item counts as measured once the note says so."""
        schema.write(self.csv, self.part.table, [row for rows in self.rows.values() for row in rows])
        with whole(self.note) as path:
            path.write_text(json.dumps({"made_by": self.identity, "state": state, "items": list(self.rows)}, indent=1) + "\n")


def run(part: Part, bench: Bench) -> str:
    """Measures what is missing of a part; "finished", or in words why it is not."""
    machine = made_by(bench.device)
    kept = Kept(part, bench, machine | {"tiny": bench.tiny})
    kept_before, failed, out_of_time = len(kept.rows), [], []
    for item in part.items(bench):
        if item.name in kept.rows:
            continue
        if bench.left <= 0:
            out_of_time.append(item.name)
            continue
        try:
            kept.add(item.name, [{"item": item.name} | row | machine for row in item.measure(bench)])
        except NotNow as why:
            bench.say(f"{part.name}: {item.name}: {why}")
            out_of_time.append(item.name)
            continue
        except UserError:
            raise
        except Exception as error:  # one item that fails, out of memory say, does not cost the others
            failed.append(item.name)
            traceback.print_exc()
            print(f"{part.name}: {item.name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if bench.device != "cpu":
                torch.cuda.empty_cache()
            continue
        kept.write("unfinished")
    wrong = [name for name, rows in kept.rows.items() if any(row.get("passed") is False for row in rows)]
    words = [f"failed: {', '.join(failed + wrong)}"] * bool(failed + wrong)
    words += [f"out of time before {', '.join(out_of_time)}; run the same command again"] * bool(out_of_time)
    state = "; ".join(words) or "finished"
    kept.write(state)
    again = f", {kept_before} of them measured before" if kept_before else ""
    bench.say(f"{part.name}: {state}; {len(kept.rows)} items{again}")
    return state


class NotNow(Exception):
    """An item that cannot be finished in the time that is left; the message says what is kept of it."""


def parts_of(chosen: Iterable[str], known: dict[str, Part]) -> Iterator[Part]:
    """The parts of these names, in the order of their value.

    Raises:
        UserError: no such part.
    """
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--parts: {', '.join(unknown)} is not one of {', '.join(known)}")
    return (part for name, part in known.items() if name in chosen)
