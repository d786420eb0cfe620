"""temporary"""
from dataclasses import dataclass
from typing import Literal
@dataclass(frozen=True, kw_only=True)
class Parallel:
    nodes: int = 1
    engine: Literal["replicated", "sharded"] = "replicated"
    values: Literal["number", "dimension"] = "number"
    recompute: bool = False
    gather: Literal["fp32", "bf16"] = "fp32"
    timeout_s: float = 600.0
    restarts: int = 0
    async_save: bool = True
