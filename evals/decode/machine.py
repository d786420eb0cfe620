"""What the machine at hand can do, in one dtype: measured by `evals.decode.timers`, written as the table `machine`.

A `Machine` is what the roofline of a timed step asks for (evals/decode/roofline.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from evals.decode.timers import Timer
from models.transformer import ModelConfig


@dataclass(frozen=True)
class Machine:
    """Bytes/s read in order and gathered, by bytes of a record; FLOPs/s by rows of the left side; `roofline.Speeds`."""

    read: float
    gather: dict[int, float]
    matmul: dict[int, float]
    launch_s: float

    def gathered(self, record: int) -> float:
        return self.gather[record]

    def rate(self, rows: float) -> float:
        """FLOPs/s of a product with so many rows, between those that were measured."""
        known = sorted(self.matmul)
        return math.exp(np.interp(math.log(max(rows, 1)), np.log(known), np.log([self.matmul[k] for k in known])))


def measure(clock: Timer, dtype: torch.dtype, d_model: int, record_bytes: set[int], most_rows: int) -> Machine:
    """Its speeds with records of these sizes, and with products of up to `most_rows` rows."""
    sides = sorted({min(4**i, most_rows) for i in range(math.ceil(math.log(most_rows, 4)) + 1)})
    return Machine(
        read=clock.read_bandwidth(dtype),
        gather={size: clock.gather_bandwidth(dtype, size) for size in sorted(record_bytes)},
        matmul={n: clock.matmul_rate(dtype, n, d_model, 2 * d_model) for n in sides},
        launch_s=clock.overhead(),
    )


def rows(machine: Machine, dtype: str, device: str, threads: int | None) -> Iterator[dict]:
    """Rows of the table `machine`."""
    same = {"device": device, "dtype": dtype, "threads": threads}
    yield same | {"quantity": "read", "value": machine.read, "unit": "bytes/s"}
    for size, value in machine.gather.items():
        yield same | {"quantity": "gather", "rows": size, "value": value, "unit": "bytes/s"}
    for rows, value in machine.matmul.items():
        yield same | {"quantity": "matmul", "rows": rows, "value": value, "unit": "FLOPs/s"}
    yield same | {"quantity": "launch", "value": machine.launch_s, "unit": "s"}


def records(cfg: ModelConfig, itemsize: int) -> set[int]:
    """Bytes of one record of each value table, pre-values apart."""
    arch, tables = cfg.arch, [part for part in cfg.cost().only("table").parts if part.name != "experts"]
    pre = arch.pre_width(cfg.d_model) if tables and hasattr(arch, "pre_width") else 0
    widths = {part.width - pre for part in tables} | ({pre} if pre else set())
    return {itemsize * width for width in widths}
