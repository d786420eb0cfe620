"""Atomic checkpoints that continue bit for bit, and the lock that keeps two trainers out of one run folder."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evals.records.errors import UserError
from evals.records.tensors import read_tensors, write_tensors


@contextmanager
def lock(folder: Path, patience_s: float = 0.0):
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


def save(path: Path, model: nn.Module, optimizers: Any, reads: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Model, optimizer state, how often rows were read, and `note` (step, rows logged so far, what may continue it)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for parameter, state in optimizers.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    write_tensors(path, tensors | {f"reads.{name}": count_N for name, count_N in reads.items()}, note)


def restore(
    path: Path, model: nn.Module, optimizers: Any, reads: dict[str, Tensor], device: str, identity: dict[str, str]
) -> dict[str, Any]:
    """Loads what `save` wrote into `model`, `optimizers` and `reads`; returns the note.

    Raises:
        UserError: the checkpoint is damaged, or another config, code or data made it.
    """
    tensors, note = read_tensors(path, device)
    for what, value in identity.items():
        if note["identity"].get(what) != value:
            raise UserError(f"{path} was made by another {what}; delete it to train this run from the start")
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for name, count_N in reads.items():
        count_N.copy_(tensors[f"reads.{name}"])
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            parameter, key = parameters[name.removeprefix("optimizer.").rsplit(".", 1)[0]], name.rsplit(".", 1)[1]
            optimizers.owner(parameter).state[parameter][key] = tensor
    return note
