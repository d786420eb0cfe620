"""Product-key memory, P1's baseline (Lample et al. 2019, arXiv:1907.05242; P1 section 3.1).

The score of cell (i, j) is S_row[i] + S_col[j]; the best m of all n^2 cells lie where the best m rows and columns cross,
so the search is exact. Weights are a softmax over a head's picks, heads share the values and are summed.

T tokens, H memory heads, n keys per axis, r rank (1 here), m top_m, h cores (1 here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

import kernels
from models.memory import Memory
from models.memory_config import MemoryConfig

if TYPE_CHECKING:
    from models.value_table import Table


class ProductKeys(nn.Module):
    """Selects by the sum of row and column score."""

    degree = 1  # scores scale with the query's gain

    def initialise(self) -> None:
        pass

    def forward(self, row_THnr: Tensor, col_THnr: Tensor, m: int) -> tuple[Tensor, Tensor]:
        score_THm, index_THm = kernels.product_topm(row_THnr.squeeze(-1), col_THnr.squeeze(-1), m)
        return score_THm.unsqueeze(-1), index_THm

    def penalty(self) -> float:
        return 0.0

    def filter_scores(self, row_THnr: Tensor, col_THnr: Tensor) -> tuple[Tensor, Tensor]:
        return row_THnr.squeeze(-1), col_THnr.squeeze(-1)

    def grid(self, row_THnr: Tensor, col_THnr: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all cells (T, H, n, n), and which of them the search covers: all."""
        score_THnn = row_THnr + col_THnr.transpose(-1, -2)
        return score_THnn, torch.ones_like(score_THnn, dtype=torch.bool)

    def spectrum(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class PKMConfig(MemoryConfig):
    """P1's baseline "PKM-151M-x10": one large layer beside the FFN. Every item of the bag of tricks is a field.

    Values learn at a constant 1e-3 (P1 section 3.2), 5/3 of P1's peak learning rate at that size.
    """

    name: ClassVar[str] = "pkm"
    value_lr_multiplier: float = 5 / 3
    value_lr_schedule: Literal["decay", "constant"] = "constant"

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        return Memory(self, ProductKeys(), d_model, n_layers, memory, table)
