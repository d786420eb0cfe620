"""UltraMemV2 (P2, arXiv 2508.18756, section 3): a memory layer in every block, one projector, PEER-style values.

    per-rank queries (3.2):        S_row[rank] = K_row[rank] q_row[rank], likewise for columns
    one projector (eq. 12):        o = W sum over picks of weight * V[row]
    PEER-style values (eq. 15):    weight = score * f(<P[row], W_pre x>), f the identity (P2) or GELU (PEER, eq. 13)

Value sharing (P2 4.2.8, the release): layers look at windows of one table of L n^2 rows ("ring": own rows and the next
layers', wrapping, as in the release; P2's table 7 starts one layer earlier), or groups of layers share one table ("block").
With "each" for `projection`, d_pre_value 0 and share "none" this is UltraMem bit for bit (a test holds it to that).

T tokens, D d_model, H memory heads, n keys per axis, r rank, m top_m, h cores, M = H m picks per token, P d_pre_value.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from models.balance import BatchShare
from models.cost import Part, dense
from models.linear import Linear
from models.memory import Memory
from models.memory_config import Window
from models.ultramem import UltraMemConfig

if TYPE_CHECKING:
    from typing import Any

    from models.value_table import Table


@dataclass(frozen=True, kw_only=True)
class UltraMemV2Config(UltraMemConfig):
    """P2's choices by default: one head, per-rank queries, Dp = Dv, no sharing, no penalty.

    Args:
        variant: paper: qk_norm rms, init ultramem_v2, rank_query own; code: init code, rank_query release (which leaves
            half of the query map without gradient; with per-rank queries off the released layer does not run).
        projection: "one" for all expansion blocks (P2) or "each" its own (P1).
        d_pre_value: width of pre-values; None means d_value, 0 plain values. activation: of <P, W_pre x>.
        share: "none", "ring" or "block", over `share_ratio` of the memory layers.
        balance_loss: weight of n' sum_i f_i p_i per axis (P2 4.2.7; not used there), f the picks' share of a key, p its
            mean softmax probability in the filter.
        memory_share: what the matching solver lets queries, keys and projections take of memory plus FFN compute (P2
            4.2.4: 17 % is best).
        expansion: logical keys per stored value.
        value_lr_multiplier: 4 falling to 1 over the first quarter (P2 4.2.9).
    """

    name: ClassVar[str] = "ultramem_v2"
    gain_power: ClassVar[float] = 0.4
    variants: ClassVar[dict] = {
        "paper": {"qk_norm": "rms", "init": "ultramem_v2", "rank_query": "own"},
        "code": {"qk_norm": "rms", "init": "code", "rank_query": "release"},
    }

    placement: tuple[str, ...] = ("all",)
    n_mem_heads: int = 1
    query_conv: int = 1
    expansion: int = 1
    tucker_penalty: float = 0.0
    value_lr_multiplier: float = 4.0
    value_lr_decay_fraction: float = 0.25
    projection: Literal["each", "one"] = "one"
    d_pre_value: int | None = None
    activation: Literal["none", "gelu"] = "none"
    share: Literal["none", "ring", "block"] = "none"
    share_ratio: float = 1.0
    balance_loss: float = 0.0
    memory_share: float | None = 0.17

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share_ratio <= 1:
            raise ValueError(f"share_ratio {self.share_ratio} must lie in (0, 1]: the share of the layers' rows seen by one")
        if self.share == "none" and self.share_ratio != 1:
            raise ValueError(f"share_ratio {self.share_ratio} needs share ring or block")

    def window(self, memory: int, n_memories: int) -> Window:
        own = self.n_keys**2
        if self.share == "none":
            return Window(memory, own, self.n_keys, 0)
        seen = round(self.share_ratio * n_memories * own)
        if self.share == "ring":
            return Window(0, n_memories * own, isqrt(seen), memory * own)
        group = max(1, round(self.share_ratio * n_memories))
        if n_memories % group:
            raise ValueError(f"share block: {n_memories} memory layers do not split into blocks of {group} (share_ratio)")
        return Window(memory // group, group * own, isqrt(group * own), 0)

    def pre_width(self, d_model: int) -> int:
        return self.value_width(d_model) if self.d_pre_value is None else self.d_pre_value

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        return UltraMemV2(self, self.selector(), d_model, n_layers, memory, table)

    def extra_parts(self, d_model: int) -> tuple[Part, ...]:
        pre = dense("pre-value projection", "memory", d_model * self.pre_width(d_model))
        return (*super().extra_parts(d_model), pre)


class UltraMemV2(Memory):
    """Projects what meets the pre-values, and can balance the use of keys."""

    if TYPE_CHECKING:
        cfg: UltraMemV2Config
        batch_share: Any  # a BatchShare where there is a balance loss, or None
        pre_project: Any  # a Linear where there are pre-values, or None

    def add_parts(self, d_model: int) -> None:
        P = self.cfg.pre_width(d_model)
        self.pre_project = Linear(d_model, P) if P else None
        self.batch_share = BatchShare() if self.cfg.balance_loss else None

    def extra_linears(self) -> tuple[nn.Linear | None, ...]:
        return (self.pre_project,)

    def before_pre_values(self, x_TD: Tensor) -> Tensor:
        return self.pre_project(x_TD)

    def loss(self, row_THnr: Tensor, col_THnr: Tensor, index_THm: Tensor) -> Tensor | float:
        loss = super().loss(row_THnr, col_THnr, index_THm)
        if not self.cfg.balance_loss:
            return loss
        use_cHn, probability_cHn = [], []
        for side_THn, key_THm in zip(
            self.selector.filter_scores(row_THnr, col_THnr), (index_THm // self.axis, index_THm % self.axis), strict=True
        ):
            use_Hn = side_THn.new_zeros(side_THn.shape[1:])
            use_Hn.scatter_add_(1, key_THm.transpose(0, 1).flatten(1), side_THn.new_ones(key_THm.numel()).view(len(use_Hn), -1))
            use_cHn.append(use_Hn)
            probability_cHn.append(side_THn.softmax(-1).mean(0))
        share_cHn = self.batch_share(torch.stack(use_cHn))
        balance_c = (share_cHn * torch.stack(probability_cHn)).sum(-1).mean(-1)
        return loss + self.cfg.balance_loss * self.axis * balance_c.sum()
