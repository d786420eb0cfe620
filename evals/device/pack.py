"""The folder that `python -m evals.gpu` runs from on a bare machine: the code, a prepared corpus and the runs of the grid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from evals.records.errors import UserError
from evals.records.provenance import PACKAGES, ROOT
from evals.records.shards import load_shards

MOST_BYTES = 60_000_000
PRESET = "carried"
CODE = (".py", ".yaml", ".csv", ".cpp", ".h")
README = """Run on a machine with one GPU: Python 3.12, torch 2.11 or newer, triton 3.6 or newer, numpy, pandas, safetensors,
tokenizers and yaml; no internet.

    python -m evals.gpu --out results

Each part keeps what it has measured: the same command goes on where it stopped. Bring the folder `results` back.
"""


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_code(target: Path) -> None:
    """The packages of the suite but for its tests and reports."""
    for package in (name for name in PACKAGES if name != "reports"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in CODE and "__pycache__" not in path.parts:
                place = target / path.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


def resolved(folder: Path) -> list[Path]:
    """Folders of the grid's runs of the preset `carried`, resolved below `folder`.

    Raises:
        UserError: the preset cannot be resolved.
    """
    command = [sys.executable, "-m", "workflows.resolve", "--preset", PRESET, "--results", str(folder), "--grid-only"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"preset {PRESET} cannot be resolved: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    grid = yaml.safe_load((folder / PRESET / "grid.json").read_text())["grid"]
    return [folder / PRESET / "runs" / run for run in grid]


def corpus_here() -> Path:
    """A corpus that was prepared here for the vocabulary of the preset.

    Raises:
        UserError: there is none.
    """
    found = sorted(Path("results/data").glob("pypi-4096-*/meta.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            "results/data holds no prepared corpus: make one with `snakemake --cores all prepare`, or name one with --corpus"
        )
    return found[-1].parent


def pack(target: Path, corpus: Path | None, runs: list[Path] | None = None) -> int:
    """Fills `target`, a new or empty folder; returns its bytes. `runs`: folders of runs instead of the preset's.

    Raises:
        UserError: the target holds something, there is no corpus, or it all takes more than `MOST_BYTES`.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; name a new folder")
    corpus = corpus or corpus_here()
    load_shards(corpus)
    with tempfile.TemporaryDirectory() as place:
        folders = runs if runs is not None else resolved(Path(place))
        copy_code(target)
        shutil.copytree(corpus, target / "carried/data")
        for run in folders:
            config = yaml.safe_load((run / "config.yaml").read_text()) | {"data": "carried/data"}
            folder = target / "carried/runs" / run.name
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (target / "README.txt").write_text(README)
    if (total := size_of(target)) > MOST_BYTES:
        raise UserError(f"{target} takes {total / 1e6:.0f} MB, {MOST_BYTES / 1e6:.0f} are allowed: carry a smaller corpus")
    return total
