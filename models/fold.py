"""Folds the output projector of memory layers into explicit value tables, for inference (P1 section 3.4).

    o = W [sum over picks of block e of w V[row]]_e = sum over picks of w (W_e V[row])           one table W_e V per block e
    with cores:    o = sum over picks and cores of w_c (W_ec V[row, slice c])                    one per block and core

A pick then reads rows of d_model and nothing is projected. Storage is E h d_model / d_value times the plain table's and the
bytes of values read h d_model / d_value times: each core weighs its slice of the value before the projector mixes them, so h
cores cannot share a row (P1's "E times" is one core and d_value = d_model). The h rows of a pick lie side by side.
Layers that look at windows of one shared table have projectors of their own and therefore tables of their own.

T tokens, M picks per token, h cores, E expansion blocks, V rows that one layer reaches, C d_value, D d_model.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from models.cost import Cost, Part
from models.memory import Memory
from models.memory_config import MemoryConfig
from models.slot import ArchConfig, Placed
from models.transformer import Transformer


class FoldedTable(nn.Module):
    """The rows W_ec V[row, slice c] of one memory layer: row (e V + row) h + c.

    Raises:
        ValueError: the layer has no projector, or something between pooling and projector (Memory+'s gate).
    """

    value_names = ("values_ND",)

    def __init__(self, layer: Memory):
        super().__init__()
        if layer.output is None or type(layer).project is not Memory.project:
            raise ValueError(f"{layer.cfg.name} has no output projector that is applied to the pooled values alone")
        E, h, self.window = layer.cfg.blocks, layer.cfg.n_cores, layer.window
        reached = (torch.arange(self.window.side**2) + self.window.offset) % self.window.rows
        values_VhC = layer.table.values_NC.detach()[reached].unflatten(1, (h, -1))
        weight_DEhC = layer.output.weight.detach().unflatten(1, (E, h, -1))
        folded_EVhD = values_VhC.new_empty(E, len(reached), h, len(weight_DEhC))
        for block in range(E):
            for core in range(h):
                torch.matmul(values_VhC[:, core], weight_DEhC[:, block, core].T, out=folded_EVhD[block, :, core])
        self.values_ND = nn.Parameter(folded_EVhD.flatten(0, 2), requires_grad=False)

    def forward(self, row_TM: Tensor, block_TM: Tensor | None, weight_TMh: Tensor) -> Tensor:
        h = weight_TMh.shape[-1]
        if self.window.offset:
            row_TM = (row_TM - self.window.offset) % self.window.rows
        if block_TM is not None:
            row_TM = row_TM + block_TM * self.window.side**2
        row_TMh = row_TM[..., None] * h + torch.arange(h, device=row_TM.device)
        return kernels.weighted_lookup(self.values_ND, row_TMh.flatten(1), weight_TMh.flatten(1)[..., None])[:, 0]


def fold_layers(layers: list[Any]) -> None:
    """Folds memory layers in place; their stored values, which several may share, go."""
    for layer in layers:
        layer.folded = FoldedTable(layer)
    for layer in layers:
        layer.output = layer.table.values_NC = None
        layer.table.value_names = ("pre_values_NP",) if layer.table.pre_values_NP is not None else ()


@dataclass(frozen=True, kw_only=True)
class FoldedConfig(ArchConfig):
    """Memory layers of `arch`, folded.

    Raises:
        ValueError: on building, as FoldedTable.
    """

    arch: MemoryConfig

    @property
    def name(self) -> str:  # type: ignore[override]  # a constant elsewhere
        return self.arch.name

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        return self.arch.feed_forward(d_model, layer, n_layers)

    def memories(self, d_model: int, n_layers: int) -> list[Placed]:
        placed = self.arch.memories(d_model, n_layers)
        fold_layers([memory.module for memory in placed])
        return placed

    def cost(self, d_model: int, n_layers: int) -> Cost:
        arch, L = self.arch, len(self.arch.spans(n_layers))
        reads, pre_width = arch.n_mem_heads * arch.top_m, arch.pre_width(d_model)
        parts = [part for part in arch.cost(d_model, n_layers).parts if part.name not in ("output", "values")]
        for side in (arch.window(memory, L).side for memory in range(L)):
            rows = arch.blocks * arch.n_cores * side**2
            parts.append(Part("values", "table", rows, d_model, arch.n_cores * reads))
        if pre_width:
            stored = (part for part in arch.cost(d_model, n_layers).parts if part.name == "values")
            parts += [Part("pre-values", "table", part.rows, pre_width, part.reads) for part in stored]
        return Cost(tuple(parts))


@torch.no_grad()
def fold(model: Transformer) -> Transformer:
    """A copy of `model`, in eval mode, whose memory layers are folded; its config says so, and what that costs.

    Raises:
        ValueError: it has no memory layers, or they cannot be folded (FoldedTable).
    """
    arch = model.cfg.arch
    if not model.memories:
        raise ValueError(f"{arch.name} has no memory layers to fold")
    if not isinstance(arch, MemoryConfig):
        raise ValueError(f"{arch.name} has more than memory layers in its slots; only those of a memory architecture fold")
    folded = deepcopy(model).eval()
    fold_layers(list(folded.memories))
    folded.cfg = replace(model.cfg, arch=FoldedConfig(arch=arch))
    return folded
