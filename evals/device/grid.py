"""Part 7: a grid at larger widths, trained on the corpus that the folder carries.

Its runs are resolved when the folder is packed (`python -m evals.gpu --pack`): `carried/runs/{run}/config.yaml`, trained as any
run is, one after the other, by `workflows.train` in a process of its own. A run that the part's time cuts off is told to stop,
saves, and goes on in the next call.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from evals.device.parts import Bench, Item, NotNow, Part, Rows
from evals.records import schema
from evals.records.provenance import ROOT
from evals.records.runs import load_run

CARRIED = ROOT / "carried"
TINY = "tiny"  # the size of the runs that a CPU trains
SHORTEST = 15.0  # seconds without which no trainer is started
PATIENCE = 60.0  # seconds that a stopped trainer has for its checkpoint


def train(folder: Path, bench: Bench) -> None:
    """Trains the run in `folder` until it is finished or the part's time ends.

    Raises:
        NotNow: it was told to stop and has saved; the message says after which step, if the trainer does.
        RuntimeError: the trainer failed; its last line.
    """
    command = [sys.executable, "-m", "workflows.train", str(folder.resolve()), "--device", bench.device]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stopped = False
    while True:
        try:
            limit = PATIENCE if stopped else min(1e6, max(0.1, bench.left))
            _, told = process.communicate(timeout=limit)
            break
        except subprocess.TimeoutExpired:
            process.kill() if stopped else process.terminate()
            stopped = True
    last = (told.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    if stopped and process.returncode:
        raise NotNow(last)
    if process.returncode:
        raise RuntimeError(last)


def trained(run: str, bench: Bench) -> Rows:
    """Its row of `runs.csv`, cut down to what `gpu_grid` asks for."""
    folder = bench.folder / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CARRIED / "runs" / run / "config.yaml", folder)
    if not (folder / "runs.csv").exists():
        if bench.left < SHORTEST and not bench.tiny:
            raise NotNow(f"{bench.left:.0f} seconds are left, which starting a trainer takes")
        since = time.perf_counter()
        train(folder, bench)
        (folder / "model.safetensors").unlink()  # nobody reads it, and what is brought back should be small
        bench.say(f"{run}: trained in {time.perf_counter() - since:.0f} seconds")
    (found,) = schema.read(folder / "runs.csv", "runs").astype(object).to_dict("records")
    asked = {column.name for column in schema.columns("gpu_grid")}
    ours = {"device", "torch", "python"}  # of this part's own columns
    return [{name: value for name, value in found.items() if name in asked - ours and value == value}]


def items(bench: Bench) -> Iterator[Item]:
    folders = sorted((CARRIED / "runs").glob("*/config.yaml"))
    if not folders:
        bench.say(f"grid: {CARRIED} holds no runs; make a folder that does: python -m evals.gpu --pack FOLDER")
    runs = [load_run(path.parent) for path in folders]
    chosen = [run for run in runs if (run.size == TINY) == bench.tiny]
    for run in sorted(chosen, key=lambda run: (run.model.d_model, run.seed, run.run)):
        yield Item(run.run, partial(trained, run.run))


GRID = Part("grid", "gpu_grid", "a grid at larger widths on the carried corpus", 120.0, items)
