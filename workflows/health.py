"""Health of sparse layers: each layer's own `health()` on the inputs it meets in the running model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def measure(model: nn.Module, tokens: np.ndarray, n_tokens: int, device: str) -> list[dict]:
    """Rows {layer, metric, value} of every slot module with `health(x_BTD)`, on the first `n_tokens` tokens.

    `layer` is the block whose input a module reads. Metrics of a memory beside experts of the same block begin "memory.".
    """
    seq_len = min(model.cfg.seq_len, n_tokens)
    count = max(1, min(n_tokens, len(tokens)) // seq_len)
    batch_BT = torch.from_numpy(tokens[: count * seq_len].astype(np.int64).reshape(count, seq_len)).to(device)
    slots = [(layer, block.ffn) for layer, block in enumerate(model.blocks)]
    slots += [(read_at, memory) for memory, (read_at, _) in zip(model.memories, model.placement, strict=True)]
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple) -> None:
        inputs[module] = args[0]

    slots = [(layer, module) for layer, module in slots if hasattr(module, "health")]
    handles = [module.register_forward_pre_hook(keep) for _, module in slots]
    model.hidden(batch_BT)
    for handle in handles:
        handle.remove()
    rows: dict[tuple[int, str], float] = {}
    for layer, module in slots:
        found = module.health(inputs[module])
        beside = "memory." if any((layer, metric) in rows for metric in found) else ""
        rows |= {(layer, beside + metric): value for metric, value in found.items()}
    return [{"layer": layer, "metric": metric, "value": value} for (layer, metric), value in rows.items()]
