"""A mixture of experts in one pass, forward and backward, in C++ (`src/experts.cpp`); see `kernels`. Letters as there."""

import torch
from torch import Tensor

from kernels.cpu.call import SUFFIX, call


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu, keep):
        (T, k), (E, F, D) = expert_Tk.shape, down_EFD.shape
        ctx.sizes = (T, k, E, D, F, int(glu))
        y_TD, inner_SU = torch.empty_like(x_TD), x_TD.new_empty(T * k, up_EDU.shape[-1]) if keep else None
        tensors = (x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk)
        call(f"experts_{SUFFIX[x_TD.dtype]}", *tensors, *ctx.sizes, y_TD, inner_SU, work=T // 64)
        ctx.save_for_backward(*tensors, inner_SU)
        return y_TD

    @staticmethod
    def backward(ctx, dy_TD):
        x_TD, up_EDU, down_EFD, _, weight_Tk, _ = ctx.saved_tensors
        grads = tuple(map(torch.empty_like, (x_TD, up_EDU, down_EFD, weight_Tk)))
        name = f"experts_backward_{SUFFIX[x_TD.dtype]}"
        call(name, *ctx.saved_tensors, dy_TD.contiguous(), *ctx.sizes, *grads, work=ctx.sizes[0] // 64)
        dx_TD, d_up_EDU, d_down_EFD, d_weight_Tk = grads
        return dx_TD, d_up_EDU, d_down_EFD, None, d_weight_Tk, None, None


def experts(x_TD: Tensor, up_EDU: Tensor, down_EFD: Tensor, expert_Tk: Tensor, weight_Tk: Tensor, glu: bool) -> Tensor:
    weights = (weight.float().contiguous() for weight in (up_EDU, down_EFD))
    keep = torch.is_grad_enabled()
    return _Experts.apply(x_TD.contiguous(), *weights, expert_Tk.contiguous(), weight_Tk.float().contiguous(), glu, keep)
