"""The feed-forward networks of a dropless mixture of experts, put together from `grouped_mm`; letters as in `kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from typing import Any


class Gather(torch.autograd.Function):
    """x[index] where every row of x is taken exactly `repeat` times, so that the gradient is a gather too.

    `inverse` (rows of x * repeat) lists, row by row, where each copy went.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, repeat: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.repeat = repeat
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        grad = grad.index_select(0, inverse)
        if ctx.repeat > 1:
            grad = grad.view(-1, ctx.repeat, grad.shape[-1]).sum(1)
        return grad, None, None, None


def sorted_experts(x_TD: Tensor, up_EDU: Tensor, down_EFD: Tensor, expert_Tk: Tensor, weight_Tk: Tensor, glu: bool) -> Tensor:
    """Sorts the routed tokens by expert, multiplies each group by its expert, and puts the results back in order."""
    from kernels import grouped_mm, swiglu

    k, expert_S = expert_Tk.shape[1], expert_Tk.flatten()
    order_S = expert_S.argsort(stable=True)
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    # Not bincount, which makes a GPU's host wait: a CUDA graph could not hold the step.
    counts_E = expert_S.new_zeros(len(up_EDU)).scatter_add_(0, expert_S, torch.ones_like(expert_S))
    h_SU = grouped_mm(Gather.apply(x_TD, order_S // k, place_S, k), up_EDU, counts_E)
    h_SF = swiglu(h_SU) if glu else F.gelu(h_SU)
    y_SD = Gather.apply(grouped_mm(h_SF, down_EFD, counts_E), place_S, order_S, 1)
    return torch.einsum("tkd,tk->td", y_SD.unflatten(0, (-1, k)), weight_Tk.to(y_SD.dtype))
