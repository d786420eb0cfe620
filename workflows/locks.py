"""Folders that one process has for itself, and loses however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evals.records.errors import UserError


@contextmanager
def lock(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Holds `folder` for this process, waiting up to `patience_s` seconds for another to let go.

    Raises:
        UserError: another process holds it; names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / ".lock", "a+")  # noqa: SIM115  held open for as long as the lock
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            raise UserError(f"{folder} is in use by process {owner}; wait for it or stop it (kill {owner})") from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    try:
        yield
    finally:
        handle.close()
