"""What `make` calls: snakemake with this project's manners. python -m workflows.start [snakemake arguments]

One start at a time in a folder. A workflow that was killed leaves snakemake's lock behind; since our own lock is free, no
other start is alive and the stale one is removed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workflows import errors
from workflows.checkpoint import lock
from workflows.grid import environment


def snakemake(*args: str) -> int:
    return subprocess.call([sys.executable, "-m", "snakemake", *args], env=environment())


def main() -> int:
    with lock(Path(".snakemake/start")):
        if any(Path(".snakemake/locks").glob("*")):
            print("removing the lock of a workflow that was killed", file=sys.stderr)
            snakemake(*sys.argv[1:], "--unlock")
        return snakemake(*sys.argv[1:])


if __name__ == "__main__":
    errors.run(main)
