"""Where the repository lies, the floors that it is built of, and the environment of a command that runs elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("kernels", "models", "evals", "workflows", "reports")
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def modules() -> Iterator[str]:
    """The dotted name of every module of the floors."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def snakemake(folder: Path, *words: str | Path, root: Path = ROOT, env: dict = ENV) -> subprocess.CompletedProcess:
    """The workflow of the checkout `root`, run in `folder`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
