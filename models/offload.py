"""Decodes with value tables that need not fit into memory: rows mapped from a file, quantised if asked, and asked for ahead.

    pack(model, "rows.safetensors", bits=8)                       once: the tables of a trained model as int8, a scale a row
    offload(model, Offload(bits=8), "rows.safetensors")           the model reads its rows from there
    offload(model, Offload(bits=32), "run/model.safetensors")     or, as they were trained, from the checkpoint itself

Ahead: a layer of placement i:j knows its rows when block i has its FFN's input, and its output is needed after block j. So its
selection runs there, the system is told which pages will be read (MADV_WILLNEED returns at once, and the disk gets all of a
layer's pages as one queue), and rows are read and pooled where the output is needed, after the FFN of block i and the blocks
up to j. No thread is needed; one that touched rows would wait for one page at a time. Without it each row waits for its page.
Outputs are those of the plain path to the last bit but for quantisation.

T tokens, M picks per token, R rows that are touched, N table rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import kernels
from models.decode import DecodeState
from models.memory import Memory
from models.overlap import Finish
from models.rows import STORED, RowFile, Rows, encode, row_bytes, write_rows
from models.transformer import Transformer
from models.value_table import Table

Bits = Literal[32, 16, 8, 4]
SLICE = 1 << 16  # rows that are packed at a time


@dataclass(frozen=True, kw_only=True)
class Offload:
    """Where and how value rows are kept while a model decodes.

    Args:
        bits: of a value: 32 and 16 are floats (float32, bfloat16), 8 and 4 whole numbers with one float32 scale a row.
        mapped: rows stay in a file and come into the page cache as they are read; otherwise they are held in memory.
        ahead: mapped rows are asked for when their addresses are known (see the module).
    """

    bits: Bits = 16
    mapped: bool = True
    ahead: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (32, 16, 8, 4):
            raise ValueError(f"bits {self.bits} must be 32, 16, 8 or 4")


class OffloadedTable(nn.Module):
    """Stands for a `Table` when nothing is trained: `read` hands out the rows that are touched, as floats of its dtype."""

    def __init__(self, parts: dict[str, Rows]):
        super().__init__()
        self.value_names = tuple(parts)
        self.values_NC, self.pre_values_NP = parts["values_NC"], parts.get("pre_values_NP")

    def ask(self, row_TM: Tensor) -> None:
        """Begins to read rows that are mapped; waits for none."""
        row_R, seen = row_TM.unique(), set()
        for rows in (getattr(self, name) for name in self.value_names):
            if (rows.file, rows.first) not in seen:  # values and pre-values of one record come together
                rows.ask(row_R)
            seen.add((rows.file, rows.first))

    def read(self, name: str, row_TM: Tensor) -> tuple[Tensor, Tensor]:
        row_R, place_TM = row_TM.unique(return_inverse=True)
        return getattr(self, name).read(row_R), place_TM


class Ahead:
    """What `Transformer.overlap` takes for a model whose rows are asked for ahead: `Memory.forward` in two halves."""

    def start(self, memory: Memory, z_BTD: Tensor, cache: DecodeState | None) -> Finish:
        score_THmh, index_THm = memory.select(*memory.scores(z_BTD, cache))
        row_TM, block_TM = memory.address(index_THm.flatten(1), memory.jump(z_BTD, cache))
        table: Any = memory.table
        table.ask(row_TM)

        def finish() -> tuple[Tensor, Tensor]:
            x_TD = z_BTD.flatten(0, 1)
            weight_TMh = memory.gate(memory.weigh(score_THmh), row_TM, x_TD)
            values_RC, place_TM = table.read("values_NC", row_TM)
            pooled_TEC = kernels.weighted_lookup(values_RC, place_TM, weight_TMh, block_TM, memory.cfg.blocks)
            return memory.project(pooled_TEC.flatten(1), x_TD).view_as(z_BTD), z_BTD.new_zeros(())

        return finish


def tables_of(model: Transformer) -> dict[str, Table]:
    """The value tables of a model's memory layers by their names in a checkpoint; one that layers share is there once.

    Raises:
        ValueError: there are none, or they are folded or offloaded already.
    """
    found: dict[str, Table] = {}
    for number, memory in enumerate(model.memories):
        if not any(memory.table is table for table in found.values()):
            found[f"memories.{number}.table"] = memory.table
    if not found:
        raise ValueError(f"{model.cfg.arch.name} has no value tables to offload")
    if not all(isinstance(table, Table) and table.values_NC is not None for table in found.values()):
        raise ValueError(f"{model.cfg.arch.name}: the value tables of this model are folded or offloaded already")
    return found


def record_bytes(table: Table, bits: int) -> int:
    """Bytes of a packed record: values, and pre-values where there are any."""
    return sum(row_bytes(getattr(table, name).shape[1], bits) for name in table.value_names)


def encoded(table: Table, bits: int) -> Iterator[Tensor]:
    """The records of a table, `SLICE` rows at a time."""
    for first in range(0, len(table.values_NC), SLICE):
        parts = (getattr(table, name).detach()[first : first + SLICE] for name in table.value_names)
        yield torch.cat([encode(part, bits) for part in parts], 1)


@torch.no_grad()
def pack(model: Transformer, path: Path | str, bits: int) -> None:
    """Writes the tables of a model as a file of records that `offload` maps.

    Raises:
        ValueError: as `tables_of`.
    """
    tables = tables_of(model)
    shapes = {name: (len(table.values_NC), record_bytes(table, bits)) for name, table in tables.items()}
    write_rows(Path(path), bits, shapes, {name: encoded(table, bits) for name, table in tables.items()})


def packed_parts(table: Table, bits: int, bytes_NB: Tensor) -> dict[str, Rows]:
    """Values, and pre-values behind them, in packed records."""
    parts, place = {}, 0
    for name in table.value_names:
        values = getattr(table, name)
        parts[name] = Rows(bytes_NB, place, values.shape[1], bits, values.dtype)
        place += row_bytes(values.shape[1], bits)
    return parts


def mapped_parts(name: str, table: Table, bits: int, file: RowFile) -> dict[str, Rows]:
    """The rows of a table in a file of packed rows or in a checkpoint."""
    n_rows = len(table.values_NC)
    if file.bits is not None:
        bytes_NB, first = file.records(name, n_rows, record_bytes(table, bits))
        parts, firsts = packed_parts(table, bits, bytes_NB), dict.fromkeys(table.value_names, first)
    else:
        parts, firsts = {}, {}
        for value in table.value_names:
            width, dtype = getattr(table, value).shape[1], getattr(table, value).dtype
            bytes_NB, firsts[value] = file.records(f"{name}.{value}", n_rows, row_bytes(width, bits))
            parts[value] = Rows(bytes_NB, 0, width, bits, dtype)
    for value, rows in parts.items():
        rows.file, rows.first = file, firsts[value]
    return parts


@torch.no_grad()
def offload(model: Transformer, setting: Offload, path: Path | str | None = None) -> Transformer:
    """The same model, in eval mode, with the rows of its memory layers kept as `setting` says; its own tables go.

    Args:
        path: of mapped rows: what `pack` wrote, or a checkpoint of the model in safetensors whose floats have so many bits. Its
            content is not hashed: that would read the whole table.

    Raises:
        ValueError: as `tables_of`; the file is missing, damaged, of another model or of other bits.
    """
    tables = tables_of(model)
    if setting.mapped:
        if path is None:
            raise ValueError("mapped rows need a file: a checkpoint, or what models.offload.pack wrote")
        file = RowFile(Path(path))
        kinds = {STORED.get(dtype) for name, (dtype, *_) in file.tensors.items() if ".table." in name}
        found = {file.bits} if file.bits is not None else kinds or {setting.bits}
        if found != {setting.bits}:
            told = " and ".join(str(bits) for bits in sorted(map(str, found)))
            raise ValueError(f"{path} holds rows of {told} bits, not {setting.bits}: pack them with models.offload.pack")
        locate = partial(mapped_parts, bits=setting.bits, file=file)
        parts = {name: locate(name, table) for name, table in tables.items()}
    else:
        parts = {name: packed_parts(t, setting.bits, torch.cat([*encoded(t, setting.bits)])) for name, t in tables.items()}
    for name, table in tables.items():
        kept = OffloadedTable(parts[name])
        for memory in model.memories:
            if memory.table is table:
                if "table" in memory._modules:
                    memory.table = kept
                else:
                    object.__setattr__(memory, "table", kept)
    model.overlap = Ahead() if setting.mapped and setting.ahead else None  # type: ignore[assignment]  # it has its `start`
    return model.eval()
