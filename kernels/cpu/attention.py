"""Causal attention of whole sequences in bfloat16, in C++ (`src/attention.cpp`); letters as there."""

import torch
from torch import Tensor

from kernels.cpu.call import call


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTK, k_BHTK, v_BHTK):
        B, H, T, K = q_BHTK.shape
        ctx.sizes = (B * H, T, K, K**-0.5)
        out_BHTK, lse_BHT = torch.empty_like(q_BHTK), torch.empty(B, H, T)
        call("attention_bf16", q_BHTK, k_BHTK, v_BHTK, *ctx.sizes, out_BHTK, lse_BHT, work=B * H)
        ctx.save_for_backward(q_BHTK, k_BHTK, v_BHTK, out_BHTK, lse_BHT)
        return out_BHTK

    @staticmethod
    def backward(ctx, d_out_BHTK):
        tensors = ctx.saved_tensors
        grads = tuple(map(torch.empty_like, tensors[:3]))
        call("attention_backward_bf16", *tensors, d_out_BHTK.contiguous(), *ctx.sizes, *grads, work=ctx.sizes[0])
        return grads


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    return _Attention.apply(*(x.contiguous() for x in (q_BHTK, k_BHTK, v_BHTK)))
