"""The feed-forward network that fills the slot by default: SwiGLU, or the plain GELU MLP of P1.

B batch, T time, D d_model, F d_ff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from models.cost import Cost, dense
from models.decode import DecodeState
from models.linear import Linear
from models.slot import ArchConfig


def feed_forward_cost(d_model: int, d_ff: int, glu: bool) -> Cost:
    return Cost((dense("ffn", "ffn", (3 if glu else 2) * d_model * d_ff),))


class FeedForward(nn.Module):
    """y = W_down(silu(W_gate x) * W_up x) with `glu`, W_down gelu(W_up x) without. No biases."""

    def __init__(self, d_model: int, d_ff: int, glu: bool):
        super().__init__()
        self.glu = glu
        self.up = Linear(d_model, 2 * d_ff if glu else d_ff)
        self.down = Linear(d_ff, d_model)

    def init_weights(self, std: float, out_std: float) -> None:
        nn.init.normal_(self.up.weight, std=std)
        nn.init.normal_(self.down.weight, std=out_std)

    def forward(self, x_BTD: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        h = self.up(x_BTD)
        h_BTF = kernels.swiglu(h) if self.glu else F.gelu(h)
        return self.down(h_BTF), x_BTD.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class DenseConfig(ArchConfig):
    """A feed-forward network in every block and nothing else.

    Args:
        d_ff: inner width.
        glu: SwiGLU (P2's backbone) or the two-matrix GELU MLP (P1's).
    """

    name: ClassVar[str] = "dense"
    d_ff: int
    glu: bool = True

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        return FeedForward(d_model, self.d_ff, self.glu)

    def cost(self, d_model: int, n_layers: int) -> Cost:
        return feed_forward_cost(d_model, self.d_ff, self.glu) * n_layers
