"""x W^T for few rows, and key scores, in C++ that reads weights as nn.Linear stores them (`src/linear.cpp`); see `kernels`.

Letters as in reference.py.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.build import multiplies_bf16
from kernels.cpu.call import SUFFIX, call, needs_grad

# Where the C++ product that streams nn.Linear's weights beats MKL (float32) and oneDNN (bfloat16): always with few rows,
# and with weights at least so wide, up to many rows. Matrix registers (AMX) leave it few rows of bfloat16.
STREAM_FEW_ROWS = {torch.float32: 16, torch.bfloat16: 16}
STREAM_WIDE = {torch.float32: 128, torch.bfloat16: 1024}
STREAM_MANY_ROWS = {torch.float32: 1 << 40, torch.bfloat16: 96}
if torch.cpu._is_amx_tile_supported():
    STREAM_FEW_ROWS[torch.bfloat16] = STREAM_MANY_ROWS[torch.bfloat16] = 8


def laid_out_for_decoding(weight_EDF: Tensor) -> bool:
    """Whether every output's weights lie together, as in nn.Linear."""
    return weight_EDF.mT.is_contiguous() and not weight_EDF.is_contiguous()


def streams(dtype: torch.dtype, rows: int, width: int) -> bool:
    """Whether the product of so many rows and weights so wide goes to the C++ that reads them as nn.Linear stores them."""
    if dtype not in SUFFIX:
        return False
    return rows <= STREAM_FEW_ROWS[dtype] or (width >= STREAM_WIDE[dtype] and rows <= STREAM_MANY_ROWS[dtype])


def linear(x_XD: Tensor, weight_FD: Tensor) -> Tensor:
    x_MD = x_XD.reshape(-1, x_XD.shape[-1])
    if x_XD.dtype != weight_FD.dtype or not (streams(x_MD.dtype, *x_MD.shape) and weight_FD.is_contiguous()):
        return torch.nn.functional.linear(x_XD, weight_FD)
    (M, D), F = x_MD.shape, len(weight_FD)
    y_MF = x_MD.new_empty(M, F)
    call(f"linear_{SUFFIX[x_MD.dtype]}", x_MD.contiguous(), weight_FD, torch.tensor([M]), 1, D, F, y_MF, work=F // 64)
    return y_MF.view(*x_XD.shape[:-1], F)


class _Widened(torch.autograd.Function):
    """What autocast to bfloat16 computes, by products of float32: operands and results are rounded as there."""

    @staticmethod
    def forward(ctx, x_XD, weight_FD):
        x_MD, weight_FD = (tensor.to(torch.bfloat16) for tensor in (x_XD.reshape(-1, x_XD.shape[-1]), weight_FD))
        ctx.save_for_backward(x_MD, weight_FD)
        ctx.about = x_XD.shape, x_XD.dtype
        return (x_MD.float() @ weight_FD.float().T).to(torch.bfloat16).view(*x_XD.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy_XF):
        x_MD, weight_FD = ctx.saved_tensors
        (shape, dtype), dy_MF = ctx.about, dy_XF.reshape(len(x_MD), -1).float()
        dx_XD = (dy_MF @ weight_FD.float()).to(torch.bfloat16).to(dtype).view(shape) if ctx.needs_input_grad[0] else None
        d_weight_FD = (dy_MF.T @ x_MD.float()).to(torch.bfloat16).float() if ctx.needs_input_grad[1] else None
        return dx_XD, d_weight_FD


def autocast_linear(x_XD: Tensor, weight_FD: Tensor) -> Tensor:
    if multiplies_bf16() or weight_FD.dtype != torch.float32:
        return torch.nn.functional.linear(x_XD, weight_FD)
    return _Widened.apply(x_XD, weight_FD)


def key_scores(query_THrK: Tensor, keys_HrnK: Tensor) -> Tensor:
    (T, H, _, K), (_, r, n, _), dtype = query_THrK.shape, keys_HrnK.shape, query_THrK.dtype
    # Nothing else multiplies bfloat16 into float32.
    served = streams(dtype, 1 if dtype == torch.bfloat16 else T, K)
    if needs_grad(query_THrK, keys_HrnK) or dtype != keys_HrnK.dtype or not served:
        return reference.key_scores(query_THrK, keys_HrnK)
    name = "scores_bf16" if dtype == torch.bfloat16 else "linear_f32"
    score_HrTn = torch.empty(H, r, T, n)
    query_HrTK = query_THrK.permute(1, 2, 0, 3).expand(-1, r, -1, -1).contiguous()
    call(name, query_HrTK, keys_HrnK.contiguous(), torch.full((H * r,), T), H * r, K, n, score_HrTn, work=n // 64)
    return score_HrTn.permute(2, 0, 3, 1)
