"""Linear maps and norms that `kernels` serves: the same in training, faster for the few rows of decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels

if TYPE_CHECKING:
    from typing import Any


class Linear(nn.Linear):
    """y = x W^T, no bias."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight)


class Norm(nn.Module):
    """Over the last dimension, with a gain and no bias: "rms", x / rms(x) * weight in float32, or "layer"; or "none"."""

    def __init__(self, width: int, kind: str = "rms", eps: float = 1e-5):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = None if kind == "none" else nn.Parameter(torch.ones(width))

    if TYPE_CHECKING:
        weight: Any  # a parameter; None where kind is "none"

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        if self.kind == "rms":
            return kernels.rms_norm(x, self.weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), None, self.eps)
