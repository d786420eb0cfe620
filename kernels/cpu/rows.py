"""RMS norm, SwiGLU and the preparation of attention's heads in one pass each, forward and backward, in C++ (`src/rows.cpp`).

See `kernels`; letters as in reference.py.
"""

import torch
from torch import Tensor

from kernels.cpu.call import SUFFIX, call


def _rows(x_XD):
    return x_XD.numel() // max(1, x_XD.shape[-1])


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_XD, weight_D, eps, dtype):
        ctx.save_for_backward(x_XD, weight_D)
        ctx.eps = eps
        y_XD = torch.empty(x_XD.shape, dtype=dtype)
        name = f"rms_norm_{SUFFIX[x_XD.dtype]}_{SUFFIX[dtype]}"
        call(name, x_XD, weight_D, _rows(x_XD), x_XD.shape[-1], eps, y_XD, work=_rows(x_XD) // 64)
        return y_XD

    @staticmethod
    def backward(ctx, dy_XD):
        (x_XD, weight_D), dy_XD = ctx.saved_tensors, dy_XD.contiguous()
        dx_XD, d_weight_D = torch.empty_like(x_XD), torch.zeros_like(weight_D)
        name = f"rms_norm_backward_{SUFFIX[x_XD.dtype]}_{SUFFIX[dy_XD.dtype]}"
        call(name, x_XD, weight_D, dy_XD, _rows(x_XD), x_XD.shape[-1], ctx.eps, dx_XD, d_weight_D, work=_rows(x_XD) // 64)
        return dx_XD, d_weight_D, None, None


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return _RMSNorm.apply(x_XD.contiguous(), weight_D.float().contiguous(), float(eps), dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_XG):
        ctx.save_for_backward(x_XG)
        F = x_XG.shape[-1] // 2
        y_XF = x_XG.new_empty(*x_XG.shape[:-1], F)
        call(f"swiglu_{SUFFIX[x_XG.dtype]}", x_XG, _rows(x_XG), F, y_XF, work=_rows(x_XG) // 64)
        return y_XF

    @staticmethod
    def backward(ctx, dy_XF):
        (x_XG,) = ctx.saved_tensors
        dx_XG = torch.empty_like(x_XG)
        name = f"swiglu_backward_{SUFFIX[x_XG.dtype]}"
        call(name, x_XG, dy_XF.contiguous(), _rows(x_XG), dy_XF.shape[-1], dx_XG, work=_rows(x_XG) // 64)
        return dx_XG


def swiglu(x_XG: Tensor) -> Tensor:
    return _SwiGLU.apply(x_XG.contiguous())


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_BTNK, q_weight_K, k_weight_K, cos_TK, sin_TK, n_heads, eps):
        B, T, N, K = qkv_BTNK.shape
        sizes = (B, T, n_heads, (N - n_heads) // 2, K, eps)
        ctx.save_for_backward(qkv_BTNK, q_weight_K, k_weight_K, cos_TK, sin_TK)
        ctx.sizes = sizes
        outputs = tuple(qkv_BTNK.new_empty(B, heads, T, K) for heads in (n_heads, sizes[3], sizes[3]))
        name = f"heads_{SUFFIX[qkv_BTNK.dtype]}"
        call(name, qkv_BTNK, q_weight_K, k_weight_K, cos_TK, sin_TK, *sizes, *outputs, work=B * T // 64)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        tensors, K = ctx.saved_tensors, ctx.sizes[4]
        d_qkv_BTNK, d_weight_2K = torch.empty_like(tensors[0]), torch.zeros(2, K)
        name = f"heads_backward_{SUFFIX[tensors[0].dtype]}"
        grads = (grad.contiguous() for grad in grads)
        call(name, *tensors, *ctx.sizes, *grads, d_qkv_BTNK, d_weight_2K, work=ctx.sizes[0] * ctx.sizes[1] // 64)
        q_grad, k_grad = (None if weight is None else grad for weight, grad in zip(tensors[1:3], d_weight_2K, strict=True))
        return d_qkv_BTNK, q_grad, k_grad, None, None, None, None


def heads(
    qkv_BTNK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    cos_TK: Tensor,
    sin_TK: Tensor,
    n_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (None if weight is None else weight.float().contiguous() for weight in (q_weight_K, k_weight_K))
    turns = (turn.float().contiguous() for turn in (cos_TK, sin_TK))
    return _Heads.apply(qkv_BTNK.contiguous(), *weights, *turns, n_heads, float(eps))
