"""What the decode benchmark times, as presets state it; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from evals.records.recipe import Count, Names, Positive
from evals.records.strict import Distinct, Range

GPUS = Path(__file__).with_name("gpus.yaml")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The decode-step benchmark (`evals.decode.latency`): untrained models of one size, matched as the trained ones are.

    Args:
        size: which of the preset's sizes; large enough that its tables dwarf the last-level cache.
        archs: which of the preset's architectures.
        match: fields of the preset's matching rule that are others here.
        context: tokens in each sequence's key-value cache.
        batches: sequences in flight.
        sparse_ratios: stored over activated parameters, for latency against sparsity at `sparsity_batches`.
        dtypes: fp32, bf16.
        threads: of a CPU measurement.
        rounds: interleaved rounds over all architectures; medians and percentiles are over rounds.
        budget_s: a batch takes no new round after this many seconds, but never fewer than three.
    """

    size: str
    archs: Names
    match: dict[str, Any] = field(default_factory=dict)
    context: Count = 256
    batches: Annotated[tuple[Count, ...], Distinct()] = (1, 4, 16, 64, 256, 1024)
    sparse_ratios: tuple[Annotated[float, Range(1.0, 1e6)], ...] = ()
    sparsity_batches: tuple[Count, ...] = (64,)
    dtypes: Annotated[tuple[Literal["fp32", "bf16"], ...], Distinct()] = ("fp32", "bf16")
    threads: Count = 1
    rounds: Annotated[int, Range(3, 10**6)] = 9
    budget_s: Positive = 6.0
