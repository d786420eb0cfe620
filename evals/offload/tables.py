"""Files of random value rows, as large as asked for: written in slices, after a look at the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from evals.records.errors import UserError
from models.offload import record_bytes, tables_of
from models.rows import FLOATS, encode, write_rows
from models.transformer import Transformer

SLICE_BYTES = 1 << 26
SPARE = 1 << 30  # bytes that a disk keeps free


def needs(model: Transformer, bits: int) -> int:
    """Bytes of a model's tables in a file."""
    return sum(len(table.values_NC) * record_bytes(table, bits) for table in tables_of(model).values())


def check_disk(folder: Path, n_bytes: int) -> None:
    """UserError: `folder` has no room for a file of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free and a table of {n_bytes / 1e9:.1f} GB and 1 GB to spare are needed: make "
            "room, or name another cache or smaller sizes under measure.offload"
        )


def random_records(rows: int, widths: list[int], bits: int, seed: int) -> Iterator[Tensor]:
    """Records of normal values, about `SLICE_BYTES` at a time; slices repeat, for drawing all takes longer than writing."""
    size = sum(width * (bits if bits in FLOATS else 32) // 8 for width in widths)
    most = min(rows, max(1, SLICE_BYTES // size))
    generator = torch.Generator().manual_seed(seed)
    drawn = [encode(0.02 * torch.randn(most, width, generator=generator), bits) for width in widths]
    slice_NB = torch.cat(drawn, 1)
    for first in range(0, rows, most):
        yield slice_NB[: rows - first]


def generate(model: Transformer, path: Path, bits: int) -> None:
    """Writes random rows for all tables of a model, which may be a model without memory of its own (on `meta`).

    Raises:
        UserError: the disk has no room.
    """
    check_disk(path.parent, needs(model, bits))
    shapes, slices = {}, {}
    for seed, (name, table) in enumerate(tables_of(model).items()):
        widths = [getattr(table, value).shape[1] for value in table.value_names]
        shapes[name] = (len(table.values_NC), record_bytes(table, bits))
        slices[name] = random_records(shapes[name][0], widths, bits, seed)
    write_rows(path, bits, shapes, slices)
