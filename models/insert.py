"""A memory layer of the suite in somebody else's model: beside the FFN of a decoder layer, or instead of it.

    layers = insert_memory(model, UltraMemV2Config(d_ff=0, n_keys=128, d_key=64, top_m=16, d_value=64, placement=("2:2",)))
    optimizer = torch.optim.AdamW(optimizer_groups(model, lr=3e-4))
    loss = model(**batch).loss + auxiliary_loss(model)

The model's own config knows nothing of it: to load a checkpoint, insert the same memory first, then `load_state_dict`.
A layer alone works under autocast, and under `torch.compile` with a graph break at every kernel (`fullgraph` does not work).
`torch.export` takes `traceable(layer)`, in plain torch only: set ULTRAMEM_KERNELS=reference.

B batch, T time, D d_model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.memory import Memory
from models.memory_config import MemoryConfig


class WithMemory(nn.Module):
    """y = ffn(x) + memory(x), or memory(x) where `ffn` is None; takes the place of an FFN. `aux` is the last auxiliary loss."""

    def __init__(self, ffn: nn.Module | None, memory: Memory):
        super().__init__()
        self.ffn, self.memory = ffn, memory
        self.aux: Tensor | float = 0.0

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.training:
            renew(self.memory)
        y_BTD, self.aux = self.memory(x_BTD)
        y_BTD = y_BTD.to(x_BTD.dtype)
        return y_BTD if self.ffn is None else self.ffn(x_BTD) + y_BTD


def renew(memory: nn.Module) -> None:
    """What layers derive from their weights, as `Transformer.refresh`."""
    for module in memory.modules():
        if hasattr(module, "refresh"):
            module.refresh()  # type: ignore[operator]  # as pyproject.toml says of hasattr


def memory_layer(config: MemoryConfig, d_model: int) -> Memory:
    """One layer alone: `layer(x_BTD)` gives (y_BTD, auxiliary loss). `placement` is left aside."""
    (placed,) = replace(config, placement=("0:0",)).memories(d_model, 1)
    return placed.module  # type: ignore[return-value]  # a Memory


def traceable(layer: Memory) -> Memory:
    """The layer, made to normalise its keys in every call: what else it keeps them by, an address, a traced tensor lacks."""
    layer.scored_keys = lambda: layer.by_rank(layer.key_norm(layer.keys_cHngQ)).transpose(3, 2)  # type: ignore[method-assign]
    return layer


def decoder_layers(model: nn.Module, ffn: str) -> nn.ModuleList:
    """The longest list of modules that all have an FFN of that name.

    Raises:
        ValueError: there is none.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and all(hasattr(one, ffn) for one in m)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers with an FFN named {ffn!r}: say its name with ffn=")
    return max(lists, key=len)


def insert_memory(
    model: nn.Module, config: MemoryConfig, instead: bool = False, ffn: str = "mlp", d_model: int | None = None
) -> list[WithMemory]:
    """Puts memory layers into a model, at the layers that `config.placement` names, and returns what now stands there.

    Beside an FFN they start silent: the model computes what it computed before, and learns from there.

    Args:
        config: of memory layers, whose own FFN (`d_ff`) is not built.
        instead: the FFN goes.
        ffn: the name of the FFN in a decoder layer; transformers' models say mlp, some feed_forward.
        d_model: None means the model's config.hidden_size.

    Raises:
        ValueError: no such FFN, a placement that reads at one layer and writes after another, or a layer that looks at other
            positions, which a cache of the model would not keep.
    """
    layers = decoder_layers(model, ffn)
    whose: Any = model
    width = whose.config.hidden_size if d_model is None else d_model
    if config.query_conv > 1 or config.placebo == "scattered":
        raise ValueError(f"query_conv {config.query_conv} looks at earlier positions, which the model's cache does not keep: 1")
    if skips := [f"{i}:{j}" for i, j in config.spans(len(layers)) if i != j]:
        raise ValueError(f"placement {skips[0]} skips layers, which only the suite's own Transformer does: write i:i")
    made = []
    for place, _, memory in config.memories(width, len(layers)):
        old = getattr(layers[place], ffn)
        like = next(old.parameters())
        if not instead:
            silence(memory)
        slot = WithMemory(None if instead else old, memory.to(like.device, like.dtype))  # type: ignore[arg-type]  # a Memory
        setattr(layers[place], ffn, slot.train(old.training))
        made.append(slot)
    return made


@torch.no_grad()
def silence(memory: Any) -> None:
    """What the output is a product with, the projection or the values, becomes zero; its gradient does not."""
    last = memory.table.values_NC if memory.output is None else memory.output.weight
    last.zero_()


def auxiliary_loss(model: nn.Module) -> Tensor | float:
    """Sum of the auxiliary losses of the last forward pass, of all layers that `insert_memory` made."""
    return sum((module.aux for module in model.modules() if isinstance(module, WithMemory)), 0.0)


def optimizer_groups(model: nn.Module, lr: float, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Groups for `torch.optim.AdamW`: value tables with their own learning rate, vectors without decay, the rest.

    Values learn with `value_lr_multiplier` times `lr` (P1 section 3.2, P2 4.2.9). In the papers the multiplier falls to 1 over
    the first `value_lr_decay_fraction` of training, which a schedule by group can do: the group's `name` is "values".
    """
    multipliers: dict[nn.Parameter, float] = {}
    for memory in (module for module in model.modules() if isinstance(module, Memory)):
        tables = [getattr(memory.table, name) for name in memory.table.value_names]
        multipliers |= dict.fromkeys(tables, memory.cfg.value_lr_multiplier)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "values" if parameter in multipliers else "matrices" if parameter.ndim >= 2 else "vectors"
            rate = lr * multipliers.get(parameter, 1.0)
            decay = 0.0 if name == "vectors" else weight_decay
            fresh = {"name": name, "params": [], "lr": rate, "weight_decay": decay}
            groups.setdefault((name, rate), fresh)["params"].append(parameter)
    return list(groups.values())
