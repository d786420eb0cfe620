"""PEER: a million tiny experts (He 2024, arXiv:2407.04153), which P2 ablates as a form of value (section 4.2.1, eq. 13).

The output is the sum over the picks of softmax(score) * gelu(<P[row], x>) * V[row], P and V both as wide as x: a memory whose
picks are one-neuron experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from models.memory import Memory
from models.memory_config import MemoryConfig
from models.pkm import ProductKeys

if TYPE_CHECKING:
    from models.value_table import Table


@dataclass(frozen=True, kw_only=True)
class PEERConfig(MemoryConfig):
    """PEER layers; d_ff 0 makes them replace the FFN, as in the original.

    Args:
        activation: of <P[row], x>.
    """

    name: ClassVar[str] = "peer"
    activation: Literal["none", "gelu"] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_value is not None:
            raise ValueError("PEER's values are as wide as the model: leave d_value out")

    def pre_width(self, d_model: int) -> int:
        return d_model

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        return Memory(self, ProductKeys(), d_model, n_layers, memory, table)
