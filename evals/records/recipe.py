"""How a model is trained, and the ranges of what configs hold; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from evals.records.strict import Distinct, Range

# What no run of any preset exceeds: far above the papers, and far below what overflows.
Tokens = Annotated[int, Range(1, 10**14)]
Count = Annotated[int, Range(1, 10**9)]
CountOrNone = Annotated[int, Range(0, 10**12)]  # 0 has a meaning of its own
Share = Annotated[float, Range(0.0, 1.0)]
Positive = Annotated[float, Range(1e-12, 1e12)]
Beta = Annotated[float, Range(0.0, 1 - 1e-9)]
Names = Annotated[tuple[str, ...], Distinct()]
Seeds = Annotated[tuple[Annotated[int, Range(0, 10**9)], ...], Distinct()]


@dataclass(frozen=True, kw_only=True)
class Train:
    """The recipe.

    Args:
        tokens: training tokens; rounded up to whole steps.
        batch_size: sequences per step, over all workers.
        micro_batch: sequences that one worker's memory holds at a time; 0 is its whole share. Gradients add up, so the
            result does not depend on it but for rounding (with a balance loss each is then run forward twice).
        workers: data-parallel processes, started by torchrun; one GPU each.
        seq_len: tokens per sequence.
        lr: peak learning rate, reached after `warmup` (fraction of the steps), then a cosine to `lr * final_lr`.
        value_optimizer: "dense" updates every row of a value table each step (AdamW); "rows" only the rows that the step
            read (lazy AdamW: moments and decay of other rows stand still), for tables of which a step reads little.
        precision: "bf16" runs matrix products in bfloat16 under autocast, weights and optimizer stay float32.
        evaluate: points of the validation curve, the end included.
        validation_tokens: tokens of each corpus source that the losses of the finished model are taken on, on validation and
            on test; every point of the curve takes the first eighth of validation's.
        checkpoint_s: seconds between checkpoints.
        health_tokens: validation tokens on which a sparse layer's health is measured; 0 is never, and then reads of rows are
            not counted and losses of single tokens (`tokens.safetensors`) not kept either.
    """

    tokens: Tokens
    batch_size: Count
    seq_len: Count
    lr: Annotated[float, Range(1e-12, 1e3)]
    micro_batch: CountOrNone = 0
    workers: Count = 1
    final_lr: Share = 0.1
    warmup: Share = 0.01
    weight_decay: Annotated[float, Range(0.0, 1e3)] = 0.1
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: Positive = 1e-8
    grad_clip: Positive = 1.0
    value_optimizer: Literal["dense", "rows"] = "dense"
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: Count = 1
    evaluate: Count = 5
    validation_tokens: Count = 65536
    checkpoint_s: Annotated[float, Range(0.0, 1e9)] = 60.0
    health_tokens: CountOrNone = 2048

    def __post_init__(self) -> None:
        share = self.batch_size // self.workers
        if self.batch_size % self.workers or (self.micro_batch and share % self.micro_batch):
            raise ValueError(
                f"batch_size {self.batch_size} must split evenly over workers {self.workers} and micro_batch {self.micro_batch}"
            )

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.batch_size * self.seq_len))
