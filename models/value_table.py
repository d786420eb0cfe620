"""The value table of a memory layer, and its gradient: dense, or sparse over the rows that a step reads.

T tokens, M picks per token, N table rows, R rows that are touched, C d_value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Any


class TouchedRows(torch.autograd.Function):
    """table[rows] whose gradient is sparse: no dense gradient of a table of which a step reads little."""

    @staticmethod
    def forward(ctx: Any, table_NC: Tensor, rows_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_R)
        ctx.shape = table_NC.shape
        return table_NC.index_select(0, rows_R)

    @staticmethod
    def backward(ctx: Any, grad_RC: Tensor) -> tuple[Tensor, None]:
        (rows_R,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows_R[None], grad_RC, ctx.shape, is_coalesced=True, check_invariants=False), None


class Table(nn.Module):
    """Value rows, and the pre-value rows of PEER-style values where there are any.

    `gradient` is "dense", or "rows" where the optimizer updates only rows that a step reads (workflows/optim.py).
    """

    gradient = "dense"

    def __init__(self, n_rows: int, d_value: int, d_pre_value: int):
        super().__init__()
        self.values_NC = nn.Parameter(torch.empty(n_rows, d_value))
        self.pre_values_NP = nn.Parameter(torch.empty(n_rows, d_pre_value)) if d_pre_value else None
        self.value_names = ("values_NC", "pre_values_NP") if d_pre_value else ("values_NC",)

    if TYPE_CHECKING:
        values_NC: Any  # a parameter; None once folded (fold.py)
        pre_values_NP: Any  # a parameter, or None
        value_names: tuple[str, ...]

    def read(self, name: str, row_TM: Tensor) -> tuple[Tensor, Tensor]:
        """A table to look rows up in, and the rows' places in it: the whole one, or the rows that are touched."""
        table_NC = getattr(self, name)
        if self.gradient == "dense" or not (torch.is_grad_enabled() and table_NC.requires_grad):
            return table_NC, row_TM
        rows_R, place_TM = row_TM.unique(return_inverse=True)
        return TouchedRows.apply(table_NC, rows_R), place_TM
