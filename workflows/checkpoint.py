"""Atomic checkpoints that continue bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evals.records.errors import UserError
from evals.records.tensors import read_tensors, write_tensors
from workflows.locks import lock as lock  # keeps two trainers out of one run folder


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
