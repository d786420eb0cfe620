"""What workers send each other inside a layer, with gradients that take the way back.

Sums over workers are sums: who wants the mean over a batch that is spread over P workers divides by P.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class AllToAll(torch.autograd.Function):
    """`all_to_all`; gradients go back to who sent the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.send, ctx.receive = send, receive
        return all_to_all(x, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_to_all(grad, ctx.receive, ctx.send), None, None


class AllGather(torch.autograd.Function):
    """`all_gather`; gradients are summed up where the rows came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return reduce_scatter(grad)


class ReduceScatter(torch.autograd.Function):
    """`reduce_scatter`; every worker gets the gradient of every row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return reduce_scatter(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_gather(grad)
