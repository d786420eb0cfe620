"""Tensors and a note in one safetensors file that is either whole, what was written, or refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from evals.records.errors import UserError
from evals.records.files import whole


def _digest(tensors: dict[str, torch.Tensor], note: str) -> str:
    """sha256 of the note and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(note.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], note: dict[str, Any]) -> None:
    """Writes tensors, a JSON note and the sha256 of both as one safetensors file that is either whole or absent."""
    text = json.dumps(note)
    metadata = {"note": text, "sha256": _digest(tensors, text)}
    try:
        with whole(path) as part:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata=metadata)
    except BaseException as error:
        if "No space left" in str(error):
            raise UserError(f"{path.parent}: the disk is full; the checkpoint before this one is intact") from error
        raise


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        UserError: the file is missing, not a whole safetensors file, or not what was written.
    """
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata()
            note = json.loads(metadata["note"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a handle, not a dict
    except Exception as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}); delete it to start again") from error
    if metadata.get("sha256") != _digest(tensors, metadata["note"]):
        raise UserError(f"{path} is not what was written (another sha256); delete it to start again")
    return tensors, note
