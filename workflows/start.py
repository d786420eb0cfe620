"""What `make` calls: snakemake with this project's manners. python -m workflows.start [snakemake arguments]

One start at a time in a folder. A workflow that was killed leaves snakemake's lock behind, which names no owner. It is
removed when no owner can be alive: our own lock is free, and no snakemake of this machine works in the folder. What is shown
meanwhile is `workflows.watch`'s.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from evals.records import errors
from evals.records.errors import UserError
from workflows.grid import environment
from workflows.locks import lock
from workflows.watch import watch

STATE = Path(".snakemake/start")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *args]


def running() -> int | None:
    """Process number of a snakemake that works in the current folder; processes that may not be looked at are passed over."""
    for process in psutil.process_iter():
        try:
            words = [Path(word).name for word in process.cmdline()[:4]]
            if "snakemake" in words and process.cwd() == str(Path.cwd()):
                return process.pid
        except psutil.Error:
            continue
    return None


def strays(args: list[str]) -> list[str]:
    """Arguments between `--config` (`-C`) and the next option that are no NAME=VALUE pairs."""
    found, inside = [], False
    for arg in args:
        if arg.startswith("-"):
            inside = arg in ("--config", "-C")
        elif inside and "=" not in arg:
            found.append(arg)
    return found


def main() -> int:
    """Exit code of snakemake.

    Raises:
        UserError: another start, or a snakemake started without us, is at work in this folder; or a target stands among the
            values of `--config`, where snakemake takes it for one of them.
    """
    if stray := strays(sys.argv[1:]):
        raise UserError(f"after --config come NAME=VALUE pairs, but {stray[0]!r} is none; write targets before --config")
    with lock(STATE):
        if any(Path(".snakemake/locks").glob("*")):
            if owner := running():
                raise UserError(
                    f"snakemake runs here already, as process {owner}; wait for it or stop it (kill -INT {owner}), "
                    "then run the same command again"
                )
            print("removing the lock of a workflow that was killed", file=sys.stderr)
            # Before the words that were given: behind a `--` of theirs it would be a target.
            subprocess.call(command("--unlock", *sys.argv[1:]), env=environment())
        return watch(command(*sys.argv[1:]), environment(), STATE)


if __name__ == "__main__":
    errors.run(main)
