"""Shares of a batch that comes in pieces: a balance loss must not depend on workers or on micro-batches.

A balance loss is n * sum_i f_i p_i: f_i the share of choices that fell on i (no gradient), p_i a mean probability. It is
linear in p, so pieces add up once all of them use the f of the global batch, which is what the sources mean by a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator


class BatchShare(nn.Module):
    """Turns one piece's counts (..., n) into shares of the global batch; holds no parameters.

    Workers add their counts up in the forward pass. Micro-batches cannot know those to come, so the trainer runs them once
    without gradients first, inside `counting`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counting, self.total = False, None

    if TYPE_CHECKING:
        total: Tensor | None

    def forward(self, counts: Tensor) -> Tensor:
        counts = counts.float()
        if self.counting:
            self.total = counts if self.total is None else self.total + counts
        elif self.total is not None:
            counts = self.total
        else:
            counts = summed(counts)
        return counts / counts.sum(-1, keepdim=True)


def summed(counts: Tensor) -> Tensor:
    """The sum over all workers; `counts` itself where there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


@contextmanager
def whole_batch(model: nn.Module, pieces: Iterable, forward: Callable[[object], object]) -> Iterator[None]:
    """Inside, every balance loss of `model` uses the counts of all `pieces` (and workers) together.

    Costs one forward pass without gradients a piece where a balance loss is in use and there is more than one piece.
    """
    pieces = list(pieces)
    shares = [module for module in model.modules() if isinstance(module, BatchShare)]
    if shares and len(pieces) > 1:
        for share in shares:
            share.counting, share.total = True, None
        with torch.no_grad():
            for piece in pieces:
                forward(piece)
        for share in shares:
            share.counting = False
            share.total = None if share.total is None else summed(share.total)
    try:
        yield
    finally:
        for share in shares:
            share.total = None
