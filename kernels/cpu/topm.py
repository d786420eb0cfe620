"""Exact top-m of a product or Tucker grid in C++ (`src/topm.cpp`); see `kernels`. Letters as in reference.py."""

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.call import call, needs_grad


def topm(score_Tn: Tensor, m: int) -> Tensor:
    if score_Tn.dtype != torch.float32:
        return reference.topm(score_Tn, m)
    (T, n), index_Tm = score_Tn.shape, torch.empty(len(score_Tn), m, dtype=torch.int64)
    call("topm", score_Tn.contiguous(), T, n, m, index_Tm, work=T // 64)
    return index_Tm


def _product_topm(row_THn, col_THn, m):
    row_THn, col_THn = (x if x.stride(-1) == 1 else x.contiguous() for x in (row_THn, col_THn))
    T, H, n = row_THn.shape
    score_THm = row_THn.new_empty(T, H, m)
    index_THm = torch.empty(T, H, m, dtype=torch.int64)
    sides = (row_THn, *row_THn.stride()[:2], col_THn, *col_THn.stride()[:2])
    call("product_topm", *sides, T, H, n, m, score_THm, index_THm, work=T * H)
    return score_THm, index_THm


class _ProductTopm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THn, col_THn, m):
        score_THm, index_THm = _product_topm(row_THn, col_THn, m)
        ctx.mark_non_differentiable(index_THm)
        ctx.save_for_backward(index_THm)
        ctx.n = row_THn.shape[-1]
        return score_THm, index_THm

    @staticmethod
    def backward(ctx, d_score_THm, _):
        (index_THm,) = ctx.saved_tensors
        T, H, m = index_THm.shape
        d_row_THn, d_col_THn = d_score_THm.new_zeros(2, T, H, ctx.n)
        picks = (d_score_THm.contiguous(), index_THm, T * H, ctx.n, m)
        call("product_topm_backward", *picks, d_row_THn, d_col_THn, work=T * H)
        return d_row_THn, d_col_THn, None


def product_topm(row_THn: Tensor, col_THn: Tensor, m: int) -> tuple[Tensor, Tensor]:
    row_THn, col_THn = reference.widen(row_THn), reference.widen(col_THn)
    if not row_THn.dtype == col_THn.dtype == torch.float32 or row_THn.shape[-1] >= 1 << 16:
        return reference.product_topm(row_THn, col_THn, m)
    run = _ProductTopm.apply if needs_grad(row_THn, col_THn) else _product_topm
    return run(row_THn, col_THn, m)


def _tucker_topm(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
    T, H, n, r = row_THnr.shape
    h = core_hHrr.shape[0]
    score_THmh = row_THnr.new_empty(T, H, m, h)
    index_THm = torch.empty(T, H, m, dtype=torch.int64)
    sides = (row_THnr, row_THnr.stride(), col_THnr, col_THnr.stride())
    call("tucker_topm", *sides, core_hHrr, u_Hr, t_Hr, T, H, n, r, h, m, score_THmh, index_THm, work=T * H)
    return score_THmh, index_THm


class _TuckerTopm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
        score_THmh, index_THm = _tucker_topm(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m)
        ctx.mark_non_differentiable(index_THm)
        ctx.save_for_backward(row_THnr, col_THnr, core_hHrr, index_THm)
        return score_THmh, index_THm

    @staticmethod
    def backward(ctx, d_score_THmh, _):
        row_THnr, col_THnr, core_hHrr, index_THm = ctx.saved_tensors
        (T, H, n, r), (h, m) = row_THnr.shape, (core_hHrr.shape[0], index_THm.shape[-1])
        d_row_THnr, d_col_THnr, d_core_hHrr = map(torch.zeros_like, (row_THnr, col_THnr, core_hHrr))
        sides = (row_THnr, row_THnr.stride(), col_THnr, col_THnr.stride(), core_hHrr)
        grads = (d_row_THnr, d_row_THnr.stride(), d_col_THnr, d_col_THnr.stride(), d_core_hHrr)
        call("tucker_topm_backward", *sides, d_score_THmh.contiguous(), index_THm, T, H, n, r, h, m, *grads, work=T * H)
        return d_row_THnr, d_col_THnr, d_core_hHrr, None, None, None


def tucker_topm(
    row_THnr: Tensor, col_THnr: Tensor, core_hHrr: Tensor, u_Hr: Tensor, t_Hr: Tensor, m: int
) -> tuple[Tensor, Tensor]:
    scores = tuple(map(reference.widen, (row_THnr, col_THnr, core_hHrr, u_Hr.detach(), t_Hr.detach())))
    if any(x.dtype != torch.float32 for x in scores) or row_THnr.shape[-2] >= 1 << 16:
        return reference.tucker_topm(*scores, m)  # type: ignore[call-arg, arg-type]  # scores are five
    row_THnr, col_THnr, *small = scores
    run = _TuckerTopm.apply if needs_grad(row_THnr, col_THnr, core_hHrr) else _tucker_topm
    return run(row_THnr, col_THnr, *(x.contiguous() for x in small), m)  # type: ignore[call-arg]  # small are three
