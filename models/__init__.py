"""The architectures of the suite. A new one is a file here and a line in `ARCHS`; importing this imports no torch."""

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
