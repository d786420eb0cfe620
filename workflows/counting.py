"""What every part of a matched model counts, so that the report can count by any convention without a model.

Parts are those of `models.cost` by role, but for three: of a memory layer what chooses what is read (`addressing`: queries,
keys, cores; a mixture's is its `router`) stands apart from the maps around its values (`projection`), and what the papers'
definition leaves out has parts of its own. The embedding counts as a product with a one-hot vector, as does Chinchilla's
(2203.15556, appendix F); the head is tied to it and stores nothing more. Attention scores are those of a causal window of
the training length: on average (T + 1) / 2 positions, two products.
"""

from __future__ import annotations

from typing import Any

from models.cost import Part
from models.transformer import ModelConfig
from workflows.matched import Matched
from workflows.presets import Preset

ADDRESSING = ("query", "keys", "query conv", "query and key gains", "tucker cores")


def part_of(part: Part) -> str:
    """The name under which a part of a cost is counted."""
    if part.role == "memory":
        return "addressing" if part.name in ADDRESSING else "projection"
    return part.role


def parts(model: ModelConfig) -> dict[str, dict[str, int]]:
    """Part -> params, active_params and forward FLOPs per token of a model."""
    found: dict[str, dict[str, int]] = {}

    def add(name: str, params: int, active: int, flops: int) -> None:
        counts = found.setdefault(name, {"params": 0, "active_params": 0, "flops": 0})
        for key, value in zip(counts, (params, active, flops), strict=True):
            counts[key] += value

    head = model.vocab_size * model.d_model
    for part in model.cost().parts:
        if part.role == "embedding":
            add("embedding", head, head, 2 * head)
        else:
            add(part_of(part), part.params, part.active_params, 2 * part.reads * part.width)
    add("head", 0 if model.tie_embeddings else head, 0 if model.tie_embeddings else head, 2 * head)
    add("attention scores", 0, 0, 2 * model.d_model * (model.seq_len + 1) * model.n_layers)
    if selection := model.arch.selection_flops(model.d_model, model.n_layers):
        add("selection", 0, 0, selection)
    return found


def counting_rows(preset: Preset, matched: dict[str, Matched]) -> list[dict[str, Any]]:
    """Rows of `counting.csv`: every part of every model that is held against others."""
    return [
        {"preset": preset.name, "size": size, "arch": arch, "part": part} | counts
        for size, group in matched.items()
        for arch, model in group.compared(preset).items()
        for part, counts in parts(model).items()
    ]
