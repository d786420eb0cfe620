"""Part 6: our layers against peers' on the device, of those peers that are importable here; nothing is installed.

The pairs are those of `evals.peers`: the same table, heads, picks and widths on both sides.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch

from evals.device.parts import Bench, Item, Part, Rows
from evals.device.speed import in_turns, rows_of
from evals.peers import EXPERTS, MEMORIES, Layer, expert_layers, memory_pair

Pairs = dict[str, tuple[str, Callable[[], dict[str, Layer]]]]


def pairs(d: int, n_keys: int) -> Pairs:
    """Layer -> the module that its peer comes in, and what makes both."""
    memories: Pairs = {name: (module, partial(memory_pair, name, d, n_keys)) for name, module in MEMORIES.items()}
    mixtures: Pairs = {
        name: ("transformers", partial(expert_layers, d, n, k, halves * d // 2, kind))
        for name, (n, k, halves, kind) in EXPERTS.items()
    }
    return memories | mixtures


def timed(name: str, make: Callable[[], dict[str, Layer]], d: int, n_tokens: int, bench: Bench) -> Rows:
    """Forward of all implementations in turns."""
    torch.manual_seed(0)
    layers = {impl: (module.to(bench.device).eval(), function) for impl, (module, function) in make().items()}
    x_BTD = torch.randn(1, n_tokens, d, device=bench.device)
    with torch.no_grad():
        seconds = in_turns(bench, {impl: partial(function, x_BTD) for impl, (_, function) in layers.items()})
    return list(rows_of(f"layer forward: {name}", f"T={n_tokens} D={d}", "fp32", seconds))


def items(bench: Bench) -> Iterator[Item]:
    d, n_keys = (64, 64) if bench.tiny else (512, 512)
    for name, (module, make) in pairs(d, n_keys).items():
        if importlib.util.find_spec(module) is None:
            bench.say(f"{name}: its peer {module} is not importable here and is left out")
            continue
        for n_tokens in (4,) if bench.tiny else (1, 2048):
            yield Item(f"{name}, {n_tokens} tokens", partial(timed, name, make, d, n_tokens))


LAYERS = Part("layers", "gpu_speed", "layers against the peers that are importable here", 30.0, items)
