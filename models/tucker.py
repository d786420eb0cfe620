"""TDQKR: Tucker-decomposed query-key retrieval, shared by UltraMem and UltraMemV2 (P1 eq. 4-12, P2 eq. 6-7).

The score of cell (i, j) is S_row[i]^T C S_col[j] with C = sum of the cores. Searching all n^2 cells is too dear, so
C ~ lambda_1 u t^T (SVD) gives a filter: the top-m rows by u.S_row and the top-m columns by t.S_col; the m x m cells where
they cross are scored exactly, and the best m of those are the picks. u and t are renewed once per step (`refresh`) and
carry no gradient. A cell whose two filter scores are both negative has a large score too but cannot be picked: recall over
the whole grid is about one half at initialisation, and near 1 in the quadrant that is searched (`Memory.health` gives both).

T tokens, H memory heads, n keys per axis, r tucker_rank, m top_m, h n_cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import kernels


class Tucker(nn.Module):
    """Cores, their rank-1 filter, and the penalty on all singular values but the first.

    u and t are valid from construction on and are stored with the weights, so evaluation needs no training step.

    Args:
        penalty, threshold: alpha and tau of P1 eq. 11-12. The mean is taken over heads, as in the release (GAP).
    """

    width_free = ("core_hHrr",)
    degree = 2  # scores scale with the square of the query's gain

    def __init__(self, n_heads: int, n_cores: int, rank: int, penalty: float, threshold: float):
        super().__init__()
        self.alpha, self.threshold = penalty, threshold
        self.core_hHrr = nn.Parameter(torch.empty(n_cores, n_heads, rank, rank))
        self.register_buffer("u_Hr", torch.ones(n_heads, rank))
        self.register_buffer("t_Hr", torch.ones(n_heads, rank))

    if TYPE_CHECKING:
        u_Hr: Tensor
        t_Hr: Tensor

    def initialise(self) -> None:
        """Cores U(0, 1), as in the release; the papers do not say (GAP)."""
        nn.init.uniform_(self.core_hHrr)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Leading singular vectors of the summed core, with the common sign that is nearer (L1) to the previous pair."""
        core_Hrr = self.core_hHrr.sum(0)
        u_Hrr, _, t_Hrr = torch.linalg.svd(core_Hrr if core_Hrr.dtype == torch.float64 else core_Hrr.float())
        pair_2Hr = torch.stack((u_Hrr[..., 0], t_Hrr[..., 0, :]))
        before_2Hr = torch.stack((self.u_Hr, self.t_Hr))
        kept_H, flipped_H = ((sign * pair_2Hr - before_2Hr).abs().sum((0, 2)) for sign in (1, -1))
        u_Hr, t_Hr = torch.where(flipped_H < kept_H, -1, 1)[:, None] * pair_2Hr
        self.u_Hr.copy_(u_Hr)
        self.t_Hr.copy_(t_Hr)

    def forward(self, row_THnr: Tensor, col_THnr: Tensor, m: int) -> tuple[Tensor, Tensor]:
        return kernels.tucker_topm(row_THnr, col_THnr, self.core_hHrr, self.u_Hr, self.t_Hr, m)

    def excess(self, dtype: torch.dtype | None = None) -> Tensor:
        """Mean over heads and i >= 2 of max(0, lambda_i - tau)^2, unweighted, computed in `dtype` (None: the cores')."""
        core_Hrr = self.core_hHrr.sum(0)
        if core_Hrr.shape[-1] == 1:
            return core_Hrr.new_zeros(())
        with torch.autocast(core_Hrr.device.type, enabled=False):
            values_Hr = torch.linalg.svd(core_Hrr.to(dtype))[1]
        return (values_Hr[:, 1:] - self.threshold).clamp(min=0).square().mean()

    def penalty(self) -> Tensor:
        return self.alpha * self.excess() if self.alpha else self.core_hHrr.new_zeros(())

    def filter_scores(self, row_THnr: Tensor, col_THnr: Tensor) -> tuple[Tensor, Tensor]:
        return (row_THnr * self.u_Hr[:, None]).sum(-1), (col_THnr * self.t_Hr[:, None]).sum(-1)

    def grid(self, row_THnr: Tensor, col_THnr: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all cells (T, H, n, n), and which of them lie in the quadrant that the filter searches."""
        score_THnn = torch.einsum("thar,hrs,thbs->thab", row_THnr, self.core_hHrr.sum(0), col_THnr)
        row_THn, col_THn = self.filter_scores(row_THnr, col_THnr)
        return score_THnn, (row_THn > 0)[..., :, None] & (col_THn > 0)[..., None, :]

    def spectrum(self) -> dict[str, float]:
        """Singular values of the summed core: the largest, and the second over the first, mean over heads."""
        values_Hr = torch.linalg.svdvals(self.core_hHrr.detach().sum(0).float())
        ratio_H = values_Hr[:, 1] / values_Hr[:, 0] if values_Hr.shape[1] > 1 else torch.zeros(1)
        return {"core_lambda1": values_Hr[:, 0].mean().item(), "core_lambda2_over_1": ratio_H.mean().item()}
