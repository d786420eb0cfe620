"""A mixture of experts in one pass, forward and backward, in C++ (`src/experts.cpp`); see `kernels`. Letters as there.

Decoding reads experts that lie as nn.Linear's weights do: few rows go through `grouped_mm`, which streams them.
"""

import torch
from torch import Tensor

from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import laid_out_for_decoding
from kernels.experts import sorted_experts

# Mean rows of an expert up to which streaming its weights beats packing them for both products.
STREAM_ROWS = {torch.float32: 64, torch.bfloat16: 8 if torch.cpu._is_amx_tile_supported() else 64}


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu, keep):
        (T, k), (E, F, D), turned = expert_Tk.shape, down_EFD.shape, laid_out_for_decoding(up_EDU)
        ctx.sizes = (T, k, E, D, F, int(glu))
        y_TD, inner_SU = torch.empty_like(x_TD), x_TD.new_empty(T * k, up_EDU.shape[-1]) if keep else None
        tensors = (x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk)
        ctx.name = f"{SUFFIX[x_TD.dtype]}_{SUFFIX[up_EDU.dtype]}"
        call(f"experts_{ctx.name}", *tensors, *ctx.sizes, int(turned), y_TD, inner_SU, work=T // 64)
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
    turned = laid_out_for_decoding(up_EDU) and laid_out_for_decoding(down_EFD)
    if turned and not learning and expert_Tk.numel() <= STREAM_ROWS[x_TD.dtype] * len(up_EDU):
        return sorted_experts(x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu)
    weights = (up_EDU, down_EFD)
    if learning or x_TD.dtype == torch.float32:
        weights = tuple(weight.float() for weight in weights)
    if learning or not turned:
        weights = tuple(weight.contiguous() for weight in weights)
    return _Experts.apply(x_TD.contiguous(), *weights, expert_Tk.contiguous(), weight_Tk.float().contiguous(), glu, learning)
