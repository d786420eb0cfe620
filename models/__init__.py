"""The architectures of the suite. A new one is a file here and a line in `ARCHS`; importing this imports no torch."""

from importlib import import_module

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


def arch_module(name: str) -> str:
    """The module that defines architecture `name`.

    Raises:
        ValueError: no such architecture; lists those there are.
    """
    if name not in ARCHS:
        raise ValueError(f"architecture {name!r} is not one of {', '.join(ARCHS)}")
    return f"models.{ARCHS[name].split(':')[0]}"


def arch_config(name: str) -> type:
    """The config class of architecture `name`."""
    return getattr(import_module(arch_module(name)), ARCHS[name].split(":")[1])
