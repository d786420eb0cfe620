"""What the benchmark of tables larger than memory does, as presets state it; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from evals.records.recipe import Count, Positive
from evals.records.strict import Distinct, Range


@dataclass(frozen=True, kw_only=True)
class Offload:
    """The benchmark of value tables larger than memory (`evals.offload.measure`): the decode benchmark's model of one
    architecture, in bfloat16, whose tables are generated files, at addresses that a trained run of it reads.

    Args:
        arch: which of the decode benchmark's memory architectures.
        sizes_gb: of the tables at 16 bits a value, 1e9 bytes each; at 8 and 4 bits the same rows take a half and a quarter.
        bits: of a value, as `models.offload.Offload` has them.
        memory: share of the table's bytes at 16 bits that may be in memory, whatever the bits.
        context: tokens in the key-value cache.
        tokens: decoded in each cell.
        fill_s: most seconds that reading ahead of a warm cell may take.
        loss_tokens: of test text, from each source, for the loss of quantised tables.
        trace_tokens: of test text, whose addresses are taken.
        cache: folder for the generated files; each is deleted when it has been measured.
    """

    arch: str = "ultramem"
    sizes_gb: Annotated[tuple[Positive, ...], Distinct()] = (1.0, 4.0, 16.0)
    bits: Annotated[tuple[Literal[16, 8, 4], ...], Distinct()] = (16, 8, 4)
    memory: Annotated[float, Range(0.01, 1.0)] = 0.25
    context: Count = 128
    tokens: Annotated[int, Range(10, 10**6)] = 300
    fill_s: Positive = 60.0
    loss_tokens: Count = 16384
    trace_tokens: Count = 16384
    cache: str = ".cache/offload"
