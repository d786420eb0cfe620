"""Value rows as bytes, mapped from a safetensors file or held in memory: floats as they are, or codes with one scale a row.

A row of codes is its float32 scale and then int8, or two 4-bit codes a byte (the low half first, each plus 8). A scale is the
largest magnitude of the row over 127 or 7, so no value is off by more than half a scale. A file of codes has one tensor a
table, "memories.0.table", whose records hold what one pick reads side by side, pre-values behind values; its header is filled
up so that records begin at the start of a page. Of a checkpoint, tensors of floats are mapped where they lie.

N table rows, R rows asked for, C values of a row, B bytes of a record.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST = {8: 127, 4: 7}
FLOATS = {32: torch.float32, 16: torch.bfloat16}
STORED = {"F32": 32, "BF16": 16}  # safetensors' words
PAGE = mmap.PAGESIZE


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a row of `width` values."""
    return width * bits // 8 if bits in FLOATS else 4 + -(-width * bits // 8)


def encode(values_NC: Tensor, bits: int) -> Tensor:
    """Rows as bytes (N, `row_bytes`)."""
    if bits in FLOATS:
        return values_NC.to(FLOATS[bits]).contiguous().view(torch.uint8)
    values_NC = values_NC.float()
    scale_N1 = values_NC.abs().amax(1, keepdim=True) / LARGEST[bits]
    code_NC = (values_NC / scale_N1.where(scale_N1 > 0, 1.0)).round().clamp(-LARGEST[bits], LARGEST[bits]).to(torch.int8)
    if bits == 8:
        code_NC = code_NC.view(torch.uint8)
    else:
        code_NC = torch.nn.functional.pad((code_NC + 8).view(torch.uint8), (0, code_NC.shape[1] % 2))
        code_NC = code_NC[:, ::2] | code_NC[:, 1::2] << 4
    return torch.cat([scale_N1.view(torch.uint8), code_NC], 1)


def decode(bytes_RB: Tensor, width: int, bits: int) -> Tensor:
    """Rows (R, `width`) of `encode`'s bytes; floats of theirs bit for bit, codes as float32."""
    if bits in FLOATS:
        return bytes_RB.contiguous().view(FLOATS[bits])
    scale_R1, code_RX = bytes_RB[:, :4].contiguous().view(torch.float32), bytes_RB[:, 4:]
    if bits == 8:
        return code_RX.contiguous().view(torch.int8) * scale_R1
    both_RX2 = torch.stack([code_RX & 15, code_RX >> 4], 2).flatten(1)[:, :width]
    return (both_RX2.to(torch.int8) - 8) * scale_R1


class RowFile:
    """A safetensors file, mapped: `tensors` by name (dtype, shape and first byte), and `bits` of packed rows, or None.

    Pages come into memory when they are read, one at a time (MADV_RANDOM), or when `ask` names them.

    Raises:
        ValueError: the file is missing, cut short or no safetensors file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: Any = json.loads(file.read(size)) if size < 1 << 30 else None
                self.map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            about = header.pop("__metadata__", {})
            self.tensors = {n: (t["dtype"], tuple(t["shape"]), 8 + size + t["data_offsets"][0]) for n, t in header.items()}
            end = 8 + size + max((t["data_offsets"][1] for t in header.values()), default=0)
            self.bits = int(about["bits"]) if about.get("format") == "rows" else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is missing or no safetensors file ({type(error).__name__}): write it again") from None
        if end > len(self.map):
            raise ValueError(f"{path} is cut short: {len(self.map)} of {end} bytes are there; write it again")
        self.bytes_X = torch.frombuffer(self.map, dtype=torch.uint8)
        self.map.madvise(mmap.MADV_RANDOM)

    def records(self, name: str, rows: int, size: int) -> tuple[Tensor, int]:
        """The bytes (rows, size) of a tensor, and where the first of them lies.

        Raises:
            ValueError: there is no such tensor, or it has another size.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path} holds no {name}: it is not of this model")
        dtype, shape, first = self.tensors[name]
        width = size * 8 // STORED[dtype] if dtype in STORED else size
        if shape != (rows, width) or (dtype not in STORED and dtype != "U8"):
            raise ValueError(f"{self.path}: {name} is {dtype} {shape}, not rows of {(rows, width)}: it is not of this model")
        return self.bytes_X[first : first + rows * size].view(rows, size), first

    def ask(self, first_R: Iterable[int], size: int) -> None:
        """Has the system begin to read `size` bytes from each of these on; waits for none of them."""
        pages = {page for first in first_R for page in range(first // PAGE, (first + size - 1) // PAGE + 1)}
        for page in sorted(pages):
            self.map.madvise(mmap.MADV_WILLNEED, page * PAGE, PAGE)


class Rows:
    """Rows that lie as bytes in `bytes_NB`, in each record from `place` on; of mapped ones their file, and `first` in it."""

    def __init__(self, bytes_NB: Tensor, place: int, width: int, bits: int, dtype: torch.dtype):
        self.bytes_NB, self.place, self.width, self.bits, self.dtype = bytes_NB, place, width, bits, dtype
        self.file: RowFile | None = None
        self.first = 0

    def __len__(self) -> int:
        return len(self.bytes_NB)

    def read(self, row_R: Tensor) -> Tensor:
        """(R, C) in the dtype of the table that these stand for."""
        # Whole records: of a slice of them torch would copy the table.
        record_RB = self.bytes_NB.index_select(0, row_R)
        end = self.place + row_bytes(self.width, self.bits)
        return decode(record_RB[:, self.place : end], self.width, self.bits).to(self.dtype)

    def ask(self, row_R: Tensor) -> None:
        """Begins to read records that are mapped."""
        if self.file is not None:
            size = self.bytes_NB.shape[1]
            self.file.ask((self.first + row_R * size).tolist(), size)


def write_rows(path: Path, bits: int, shapes: Mapping[str, tuple[int, int]], slices: Mapping[str, Iterable[Tensor]]) -> None:
    """A file of packed tables, whole or absent: records of `shapes` (N, B) by table, whose bytes come in slices."""
    header: dict[str, Any] = {"__metadata__": {"format": "rows", "bits": str(bits)}}
    end = 0
    for name, (rows, size) in shapes.items():
        header[name] = {"dtype": "U8", "shape": [rows, size], "data_offsets": [end, end := end + rows * size]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in shapes:
                for bytes_NB in slices[name]:
                    file.write(bytes_NB.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
