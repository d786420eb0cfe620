"""A mixture of experts in one pass, forward and backward, in C++ (`src/experts.cpp`); see `kernels`. Letters as there.

Experts that lie as decoding reads them go through `grouped_mm`.
"""

import torch
from torch import Tensor

from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import laid_out_for_decoding
from kernels.experts import sorted_experts


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu, keep):
        (T, k), (E, F, D) = expert_Tk.shape, down_EFD.shape
        ctx.sizes = (T, k, E, D, F, int(glu))
        y_TD, inner_SU = torch.empty_like(x_TD), x_TD.new_empty(T * k, up_EDU.shape[-1]) if keep else None
        tensors = (x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk)
        ctx.name = f"{SUFFIX[x_TD.dtype]}_{SUFFIX[up_EDU.dtype]}"
        call(f"experts_{ctx.name}", *tensors, *ctx.sizes, y_TD, inner_SU, work=T // 64)
        ctx.save_for_backward(*tensors, inner_SU)
        return y_TD

    @staticmethod
    def backward(ctx, dy_TD):
        x_TD, up_EDU, down_EFD, _, weight_Tk, _ = ctx.saved_tensors
        grads = tuple(map(torch.empty_like, (x_TD, up_EDU, down_EFD, weight_Tk)))
        call(
            f"experts_backward_{ctx.name}", *ctx.saved_tensors, dy_TD.contiguous(), *ctx.sizes, *grads, work=ctx.sizes[0] // 64
        )
        dx_TD, d_up_EDU, d_down_EFD, d_weight_Tk = grads
        return dx_TD, d_up_EDU, d_down_EFD, None, d_weight_Tk, None, None


def experts(x_TD: Tensor, up_EDU: Tensor, down_EFD: Tensor, expert_Tk: Tensor, weight_Tk: Tensor, glu: bool) -> Tensor:
    learning = needs_grad(x_TD, up_EDU, down_EFD, weight_Tk)
    if not learning and laid_out_for_decoding(up_EDU) and laid_out_for_decoding(down_EFD):
        return sorted_experts(x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu)
    weights = (up_EDU, down_EFD)
    if learning or x_TD.dtype == torch.float32:
        weights = tuple(weight.float() for weight in weights)
    weights = tuple(weight.contiguous() for weight in weights)
    return _Experts.apply(x_TD.contiguous(), *weights, expert_Tk.contiguous(), weight_Tk.float().contiguous(), glu, learning)
