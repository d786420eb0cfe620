"""Checkpoints of a spread run: torch's distributed checkpoint, in safetensors, each worker its parts; any number may go on.

A checkpoint is a folder checkpoint-<step> beside the run's config, which appears under that name when it is whole: tensors as
`HuggingFaceStorageWriter` lays them out (one file a worker, no pickle) and note.json. With `asynchronous`, workers copy their
parts aside and go on; a thread writes. The one before is removed when the next is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from evals.records.errors import UserError
from workflows.optim import Optimizers, RowAdamW
from workflows.parallel.spread import Spreading

NAME = "checkpoint-"
DAMAGE = (OSError, ValueError, KeyError, AssertionError, SafetensorError)  # what reading half a file ends in


def allocate(optimizers: Optimizers) -> None:
    """Makes the moments that the first step would make, so that a checkpoint can be read into them."""
    for optimizer in optimizers.parts:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            counted = len(parameter) if isinstance(optimizer, RowAdamW) else ()
            step = torch.zeros(counted, dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **moments}


def state(spreading: Spreading, optimizers: Optimizers) -> dict[str, Tensor]:
    """Everything that a run goes on from, under the names of `workflows.checkpoint`; shares memory with the run."""
    model, mesh, parts = spreading.model, spreading.mesh, spreading.parts
    names = {parameter: name for name, parameter in model.named_parameters()}

    def placed(tensor: Tensor, parameter: torch.nn.Parameter) -> Tensor:
        if parameter not in parts or isinstance(tensor, DTensor) or tensor.ndim == 0:
            return tensor
        if tensor.shape == parameter.shape:
            return parts[parameter].as_dtensor(tensor, mesh)
        return spreading.by_row(parameter, tensor)

    held = {name: parameter for parameter, name in names.items()}
    found = {f"model.{n}": placed(t.detach(), held[n]) if n in held else t for n, t in model.state_dict().items()}
    for parameter, moments in optimizers.state.items():
        found |= {f"optimizer.{names[parameter]}.{key}": placed(t, parameter) for key, t in moments.items()}
    for table, name in spreading.names.items():
        found[f"reads.{name}"] = spreading.by_row(table.values_NC, spreading.reads[name])
    return {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in found.items()}


class Store:
    """The checkpoints of one run folder. All methods are called by all workers together."""

    def __init__(self, folder: Path, asynchronous: bool):
        self.folder, self.asynchronous = Path(folder), asynchronous
        # The thread that writes exchanges plans with the others': beside the exchange of training, not within it.
        self.group = dist.new_group(backend="gloo")
        self.pending: tuple[Future | None, Path] | None = None  # what is awaited, and the checkpoint that it becomes

    def latest(self) -> Path | None:
        """The newest whole checkpoint that the first worker sees, or None."""
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            whole = [path for path in self.folder.glob(f"{NAME}*") if path.name.removeprefix(NAME).isdigit()]
            found = [str(max(whole, key=lambda path: int(path.name.removeprefix(NAME))))] if whole else [None]
        dist.broadcast_object_list(found, 0, group=self.group)
        return Path(found[0]) if found[0] else None

    def save(self, step: int, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Begins a checkpoint, once the one before is whole.

        Raises:
            UserError: the disk is full, now or when the checkpoint before was written.
        """
        self.finish()
        target = self.folder / f"{NAME}{step}"
        part = self.part(target)
        if dist.get_rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (part / "note.json").write_text(json.dumps(note))
        dist.barrier(self.group)
        writer = dcp.HuggingFaceStorageWriter(str(part), save_distributed=True)
        save = dcp.async_save if self.asynchronous else dcp.save
        result = self.told(lambda: save(tensors, storage_writer=writer, process_group=self.group))
        self.pending = (result if self.asynchronous else None, target)
        if not self.asynchronous:
            self.finish()

    def part(self, target: Path) -> Path:
        """Where a checkpoint lies until it is whole."""
        return self.folder / f".{target.name}.part"

    def finish(self) -> None:
        """Waits until what was begun is whole and has its name."""
        if self.pending is None:
            return
        (writing, target), self.pending = self.pending, None
        if writing is not None:
            self.told(writing.result)
        dist.barrier(self.group)
        if dist.get_rank() == 0:
            before = [path for path in self.folder.glob(f"{NAME}*") if path != target]
            shutil.rmtree(target, ignore_errors=True)  # of the same step, by a run that was stopped right after it
            os.replace(self.part(target), target)
            for path in before:
                shutil.rmtree(path, ignore_errors=True)
        dist.barrier(self.group)

    def told(self, act: Any) -> Any:
        try:
            return act()
        except BaseException as error:
            if "No space left" in str(error):
                raise UserError(f"{self.folder}: the disk is full; the checkpoint before this one is intact") from error
            raise

    def restore(self, path: Path, tensors: dict[str, Tensor], identity: dict[str, str]) -> dict[str, Any]:
        """Reads a checkpoint into `tensors`, however many workers wrote it; returns its note.

        Raises:
            UserError: the checkpoint is damaged, or another config, code or data made it.
        """
        try:
            note = json.loads((path / "note.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}); delete it to start again") from error
        for what, value in identity.items():
            if note["identity"].get(what) != value:
                raise UserError(f"{path} was made by another {what}; delete it to train this run from the start")
        try:
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), process_group=self.group)
        except (*DAMAGE, CheckpointException) as error:
            if isinstance(error, CheckpointException) and not all(isinstance(e, DAMAGE) for e, _ in error.failures.values()):
                raise  # a worker was lost
            raise UserError(f"{path} is damaged ({type(error).__name__}); delete it to start again") from error
        return note

    def clear(self) -> None:
        """Removes all checkpoints of the run."""
        self.finish()
        if dist.get_rank() == 0:
            for path in (*self.folder.glob(f"{NAME}*"), *self.folder.glob(f".{NAME}*.part")):
                shutil.rmtree(path, ignore_errors=True)


def joined(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(spreading: Spreading) -> dict[str, Tensor]:
    """The model's state as one worker would write it, on the first worker; empty on the others."""
    held, found = dict(spreading.model.named_parameters()), {}
    for name, tensor in spreading.model.state_dict().items():
        part = spreading.parts.get(held[name]) if name in held else None
        if part is not None:
            tensor = part.as_dtensor(tensor.detach(), spreading.mesh)
        tensor = joined(tensor)
        if part is not None:
            tensor = tensor.reshape(part.flat)
        if spreading.rank == 0:
            found[name] = tensor.detach().cpu()
    return found


def whole_reads(spreading: Spreading) -> dict[str, Tensor]:
    """How often each row of each whole table was read in training, on every worker."""
    named = spreading.names.items()
    return {name: joined(spreading.by_row(table.values_NC, spreading.reads[name])).cpu() for table, name in named}
