"""UltraMem (P1, arXiv 2411.12364, section 3): product-key memory rebuilt from raw scores, TDQKR, IVE and MCS.

Each change to product-key memory is a field: score_fn, d_value with projection, share_query, several small layers with
skip placement, qk_norm, expansion (IVE, eq. 13-15), retrieval "tucker" (TDQKR, eq. 4-12), n_cores (MCS, eq. 16-17), init
(appendix A), the value learning rate, query_conv. With all of them neutral it is PKM bit for bit (a test holds it to that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from models.cost import Part, dense
from models.memory import Memory
from models.memory_config import MemoryConfig
from models.pkm import ProductKeys
from models.tucker import Tucker

if TYPE_CHECKING:
    from models.value_table import Table


@dataclass(frozen=True, kw_only=True)
class UltraMemConfig(MemoryConfig):
    """P1 table 5 and its bag of tricks by default.

    Args:
        variant: where paper and released code differ, "variant" in the fields below means this one.
            paper: qk_norm layer, init ultramem, rank_query split; code: qk_norm rms, init code, rank_query shared. The
            code also has no query convolution, applies no Tucker penalty, and multiplies the value learning rate by 4.
        retrieval: "product" (row + column, exact) or "tucker".
        tucker_rank, n_cores: r, and cores, each weighting its own slice of the value.
        rank_query: "split": d_key is cut into r groups, no extra parameters (P1); "shared": one query of d_key meets r
            keys of d_key (the release); "own": every rank has its own query and key of d_key (P2); "release": what the
            released V2 computes with per-rank queries on, for parity.
        tucker_penalty, tucker_threshold: alpha and tau of the penalty on singular values (eq. 11-12); 0 is none.
        query_conv: 3 taps; P1's parameter count allows 3 or 4 (GAP).
        value_lr_multiplier: 10 falling to 1; over how long P1 does not say (GAP: the whole run).
    """

    name: ClassVar[str] = "ultramem"
    variants: ClassVar[dict] = {
        "paper": {"qk_norm": "layer", "init": "ultramem", "rank_query": "split"},
        "code": {"qk_norm": "rms", "init": "code", "rank_query": "shared"},
    }

    variant: Literal["paper", "code"] = "paper"
    retrieval: Literal["product", "tucker"] = "tucker"
    tucker_rank: int = 2
    n_cores: int = 2
    rank_query: Literal["variant", "split", "shared", "own", "release"] = "variant"
    tucker_penalty: float = 0.001
    tucker_threshold: float = 0.15
    score_fn: Literal["softmax", "none"] = "none"
    share_query: Literal["none", "heads"] = "heads"
    qk_norm: Literal["variant", "none", "rms", "layer"] = "variant"
    query_conv: int = 3
    expansion: int = 4
    init: Literal["variant", "lample", "ultramem", "ultramem_v2", "code"] = "variant"
    value_lr_multiplier: float = 10.0
    value_lr_decay_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retrieval == "product" and self.n_cores > 1:
            raise ValueError(f"n_cores {self.n_cores} needs retrieval tucker: product scores have no cores")
        if self.tucker_rank < 1 or self.n_cores < 1:
            raise ValueError(f"tucker_rank {self.tucker_rank} and n_cores {self.n_cores} must be at least 1")
        if self.choice("rank_query") == "release" and self.rank < 2:
            raise ValueError("rank_query release needs tucker_rank 2 or more")

    def choice(self, name: str) -> str:
        value = getattr(self, name)
        return self.variants[self.variant][name] if value == "variant" else value

    @property
    def rank(self) -> int:
        return self.tucker_rank if self.retrieval == "tucker" else 1

    def selector(self) -> ProductKeys | Tucker:
        if self.retrieval == "product":
            return ProductKeys()
        return Tucker(self.n_mem_heads, self.n_cores, self.rank, self.tucker_penalty, self.tucker_threshold)

    def core_params(self) -> int:
        return self.n_cores * self.n_mem_heads * self.rank**2 if self.retrieval == "tucker" else 0

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        return Memory(self, self.selector(), d_model, n_layers, memory, table)

    def extra_parts(self, d_model: int) -> tuple[Part, ...]:
        return (dense("tucker cores", "memory", self.core_params()),)
