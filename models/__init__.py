"""The architectures of the suite. A new one is a file here and a line in `ARCHS`; importing this imports no torch.

Config classes and the helpers of `models.insert` may be taken from here by their names: they are loaded when asked for.
"""

from importlib import import_module
from typing import Any

ARCHS = {
    "dense": "feed_forward:DenseConfig",
    "moe": "moe:MoEConfig",
    "pkm": "pkm:PKMConfig",
    "peer": "peer:PEERConfig",
    "memory_plus": "memory_plus:MemoryPlusConfig",
    "ultramem": "ultramem:UltraMemConfig",
    "ultramem_v2": "ultramem_v2:UltraMemV2Config",
    "hybrid": "hybrid:HybridConfig",
}
HELPERS = ("insert_memory", "memory_layer", "optimizer_groups", "auxiliary_loss", "traceable")


def _line(name: str | None) -> list[str]:
    if not isinstance(name, str) or name not in ARCHS:
        raise ValueError(f"architecture {name!r} is not one of {', '.join(ARCHS)}")
    return ARCHS[name].split(":")


def arch_module(name: str | None) -> str:
    """The module that defines architecture `name`.

    Raises:
        ValueError: no such architecture; lists those there are.
    """
    return f"models.{_line(name)[0]}"


def arch_config(name: str | None) -> type[Any]:
    """The config class of architecture `name`. Raises ValueError as `arch_module`."""
    return getattr(import_module(arch_module(name)), _line(name)[1])


def __getattr__(name: str) -> Any:
    """Config classes and helpers by their names."""
    module = next((line.split(":")[0] for line in ARCHS.values() if line.split(":")[1] == name), None)
    if name in HELPERS:
        module = "insert"
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"models.{module}"), name)
