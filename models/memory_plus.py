"""Memory+ (Memory Layers at Scale, Berges et al. 2024), P2's baseline: product keys, an input gate, one table for all.

    o = W (pooled * silu(W_g x)),  softmax scores, values shared by all memory layers

P2's table 10 prints d_value 384, but the code asserts d_value = d_model and only that closes the counts (spec C.4). The
original's values learn at a constant 1e-3; `value_lr_multiplier` is that over the backbone's rate, 2.5 at P2's 4e-4.

T tokens, D d_model, C d_value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.cost import Part, dense
from models.linear import Linear
from models.memory import Memory
from models.memory_config import MemoryConfig, Window
from models.pkm import ProductKeys

if TYPE_CHECKING:
    from models.value_table import Table


@dataclass(frozen=True, kw_only=True)
class MemoryPlusConfig(MemoryConfig):
    """Memory+ layers.

    Args:
        share: "all": one value table serves every memory layer; "none": each has its own.
    """

    name: ClassVar[str] = "memory_plus"
    share: Literal["all", "none"] = "all"
    value_lr_multiplier: float = 2.5
    value_lr_schedule: Literal["decay", "constant"] = "constant"

    def window(self, memory: int, n_memories: int) -> Window:
        return super().window(0 if self.share == "all" else memory, n_memories)

    @property
    def projects(self) -> bool:
        return True

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        return MemoryPlus(self, ProductKeys(), d_model, n_layers, memory, table)

    def extra_parts(self, d_model: int) -> tuple[Part, ...]:
        return (dense("input gate", "memory", self.blocks * self.value_width(d_model) * d_model),)


class MemoryPlus(Memory):
    """A product-key memory behind a gate that its input opens."""

    if TYPE_CHECKING:
        output: Linear

    def add_parts(self, d_model: int) -> None:
        self.open = Linear(d_model, self.output.in_features)

    def extra_linears(self) -> tuple[nn.Linear, ...]:
        return (self.open,)

    def project(self, pooled_TX: Tensor, x_TD: Tensor) -> Tensor:
        return self.output(pooled_TX * F.silu(self.open(x_TD)))
