"""Weighted sums of table rows, forward and backward, in C++ (`src/lookup.cpp`); see `kernels`. Letters as in reference.py."""

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.call import SUFFIX, checked, needs_grad


def _lookup(values_NC, row_TM, weight_TMh, group_TM, G):
    (N, C), (T, M), h = values_NC.shape, row_TM.shape, weight_TMh.shape[-1]
    out_TGC = values_NC.new_empty(T, G, C)
    name = f"lookup_{SUFFIX[values_NC.dtype]}"
    checked(name, values_NC, N, C, row_TM, T, M, weight_TMh, h, group_TM, G, out_TGC, work=T)
    return out_TGC


def _slice_dot(values_NC, row_TM, h, group_TM, grad_TGC):
    (N, C), (T, M), G = values_NC.shape, row_TM.shape, grad_TGC.shape[1]
    out_TMh = grad_TGC.new_empty(T, M, h)
    name = f"slice_dot_{SUFFIX[values_NC.dtype]}"
    checked(name, values_NC, N, C, row_TM, T, M, h, group_TM, G, grad_TGC, out_TMh, work=T)
    return out_TMh


def _lookup_backward(values_NC, row_TM, weight_TMh, group_TM, grad_TGC, need_values, need_weight):
    if not need_values:
        return None, _slice_dot(values_NC, row_TM, weight_TMh.shape[-1], group_TM, grad_TGC) if need_weight else None
    (N, C), (T, M), (h, G) = values_NC.shape, row_TM.shape, (weight_TMh.shape[-1], grad_TGC.shape[1])
    d_values_NC = torch.empty_like(values_NC)
    d_weight_TMh = torch.empty_like(weight_TMh) if need_weight else None
    picks = (row_TM, T, M, weight_TMh, h, group_TM, G, grad_TGC)
    name = f"lookup_backward_{SUFFIX[values_NC.dtype]}"
    checked(name, values_NC, N, C, *picks, d_values_NC, d_weight_TMh, work=N)
    return d_values_NC, d_weight_TMh


class _WeightedLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_NC, row_TM, weight_TMh, group_TM, G):
        ctx.save_for_backward(values_NC, row_TM, weight_TMh, group_TM)
        return _lookup(values_NC, row_TM, weight_TMh, group_TM, G)

    @staticmethod
    def backward(ctx, d_out_TGC):
        need_values, _, need_weight = ctx.needs_input_grad[:3]
        grad_TGC = d_out_TGC.float().contiguous()
        d_values_NC, d_weight_TMh = _lookup_backward(*ctx.saved_tensors, grad_TGC, need_values, need_weight)
        return d_values_NC, None, d_weight_TMh, None, None


def weighted_lookup(
    values_NC: Tensor, row_TM: Tensor, weight_TMh: Tensor, group_TM: Tensor | None = None, n_groups: int = 1
) -> Tensor:
    if values_NC.dtype not in SUFFIX or weight_TMh.dtype == torch.float64:
        return reference.weighted_lookup(values_NC, row_TM, weight_TMh, group_TM, n_groups)
    row_TM, group_TM = row_TM.long().contiguous(), None if group_TM is None else group_TM.long().contiguous()
    values_NC, weight_TMh = values_NC.contiguous(), weight_TMh.float().contiguous()
    run = _WeightedLookup.apply if needs_grad(values_NC, weight_TMh) else _lookup
    return run(values_NC, row_TM, weight_TMh, group_TM, n_groups)


class _RowDot(torch.autograd.Function):
    """The lookup's weight gradient seen from the other side: its own gradients are a lookup and a table gradient."""

    @staticmethod
    def forward(ctx, table_NP, row_TM, x_TP):
        ctx.save_for_backward(table_NP, row_TM, x_TP)
        return _slice_dot(table_NP, row_TM, 1, None, x_TP[:, None])[..., 0]

    @staticmethod
    def backward(ctx, d_out_TM):
        table_NP, row_TM, x_TP = ctx.saved_tensors
        need_table, _, need_x = ctx.needs_input_grad
        weight_TM1 = d_out_TM.float().contiguous()[..., None]
        d_table_NP, _ = _lookup_backward(table_NP, row_TM, weight_TM1, None, x_TP[:, None], need_table, False)
        d_x_TP = _lookup(table_NP, row_TM, weight_TM1, None, 1)[:, 0].float() if need_x else None
        return d_table_NP, None, d_x_TP


def row_dot(table_NP: Tensor, row_TM: Tensor, x_TP: Tensor) -> Tensor:
    if table_NP.dtype not in SUFFIX or x_TP.dtype == torch.float64:
        return reference.row_dot(table_NP, row_TM, x_TP)
    dtype = torch.promote_types(table_NP.dtype, x_TP.dtype)
    table_NP, row_TM, x_TP = table_NP.contiguous(), row_TM.long().contiguous(), x_TP.float().contiguous()
    if needs_grad(table_NP, x_TP):
        return _RowDot.apply(table_NP, row_TM, x_TP).to(dtype)
    return _slice_dot(table_NP, row_TM, 1, None, x_TP[:, None])[..., 0].to(dtype)
