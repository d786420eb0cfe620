"""What workers send each other inside a layer, with gradients that take the way back.

Sums over workers are sums: who wants the mean over a batch that is spread over P workers divides by P.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_to_all(x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """The first send[0] rows of x go to worker 0, the next send[1] to worker 1; returns what all sent here, in their order."""
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(receive), list(send))
    return out


def all_gather(x: Tensor) -> Tensor:
    """Every worker's x, of the same shape, one after the other."""
    out = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
    dist.all_gather_single(out, x.contiguous())
    return out


def reduce_scatter(x: Tensor) -> Tensor:
    """This worker's part of the rows of the sum of every worker's x."""
    out = x.new_empty(len(x) // dist.get_world_size(), *x.shape[1:])
    dist.reduce_scatter_single(out, x.contiguous())
    return out


class Exchange(torch.autograd.Function):
    """there(x), whose gradient is back(grad)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None


def swapped(x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """`all_to_all`; gradients go back to who sent the rows."""
    there, back = partial(all_to_all, send=send, receive=receive), partial(all_to_all, send=receive, receive=send)
    return Exchange.apply(x, there, back)


def gathered(x: Tensor) -> Tensor:
    """`all_gather`; gradients are summed up where the rows came from."""
    return Exchange.apply(x, all_gather, reduce_scatter)


def summed(x: Tensor) -> Tensor:
    """`reduce_scatter`; every worker gets the gradient of every row."""
    return Exchange.apply(x, reduce_scatter, all_gather)


def narrowed(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x as it is sent; None sends it as it is."""
    return x if dtype is None else x.to(dtype)
