"""A mixture of experts in the feed-forward slot and memory layers beside it, with the stored parameters split between them.

Which split is best is what Engram (arXiv 2601.07372) asks of its own memory under a fixed budget of sparse parameters; here
memory may be any layer of the suite. The budget is that of `n_experts` experts in every block. `split` 0 is the plain
mixture of experts, bit for bit; at 1 memory stands beside a dense FFN as wide as the experts that a token uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import sqrt
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import nn

from models import arch_config
from models.cost import Cost
from models.feed_forward import DenseConfig
from models.memory_config import MemoryConfig
from models.moe import MoEConfig
from models.slot import ArchConfig, Placed

PROBE = 1 << 12  # keys an axis


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that a config holds is of a field's type; named choices check themselves."""
    if get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Literal:
        return True
    kinds = get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def spoken(kind: Any) -> str:
    """A field's type in a message."""
    if get_origin(kind) is tuple:
        return f"a list of {spoken(get_args(kind)[0])}"
    return " or ".join("None" if one is NoneType else one.__name__ for one in get_args(kind) or (kind,))


@dataclass(frozen=True, kw_only=True)
class HybridConfig(MoEConfig):
    """The fields of `MoEConfig`, and memory beside it.

    Args:
        n_experts: the budget, in experts for each block; (1 - split) of them are stored as such, rounded, and memory gets
            the rest. Where no more than `top_k` are left, nothing is routed and the FFN is dense.
        split: share of the stored sparse parameters that memory gets, from 0 to 1; met as nearly as experts and key grids
            allow (`cost` says what came out).
        memory: its architecture's `name` and fields, but `n_keys`, which follows from the budget, `d_key` and the FFN.
        d_key: width of one half-key of the memory layers.

    Raises:
        ValueError: split is no share, or memory is none of the suite's memory layers, has a field that it does not know, or
            one of another type.
    """

    name: ClassVar[str] = "hybrid"
    share_knob: ClassVar[str] = "d_key"
    split: float = 0.5
    d_key: int
    memory: dict[str, Any] = field(default_factory=lambda: {"name": "ultramem", "placement": ("every 2",), "top_m": 32})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.split <= 1:
            raise ValueError(f"split {self.split} must lie between 0 and 1: memory's share of the stored sparse parameters")
        cls = arch_config(self.memory.get("name"))
        if not issubclass(cls, MemoryConfig):
            raise ValueError(f"memory.name {cls.name!r} is no memory layer")
        free = {known.name for known in fields(cls)} - {"n_keys", "d_key", "d_ff", "glu"}
        if unknown := sorted(self.memory.keys() - free - {"name"}):
            raise ValueError(f"memory.{unknown[0]} is no field of {cls.name} that is free here: {', '.join(sorted(free))}")
        kinds = get_type_hints(cls)
        for name, value in self.memory.items():
            if name != "name" and not fits(value, kinds[name]):
                kind = spoken(kinds[name])
                raise ValueError(f"memory.{name}: expected {kind}, found {type(value).__name__} {value!r}")
        self.probe  # noqa: B018  its fields are checked

    def layers(self, n_keys: int) -> MemoryConfig:
        """The memory layers with so many keys an axis, without an FFN."""
        given = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.memory.items() if name != "name"
        }
        return arch_config(self.memory["name"])(n_keys=n_keys, d_key=self.d_key, d_ff=0, **given)

    @property
    def probe(self) -> MemoryConfig:
        """The memory layers at some size: of what does not depend on it."""
        return self.layers(PROBE)

    @property
    def stored_experts(self) -> int:
        """Experts that each block stores; 0 where the FFN is dense."""
        left = round((1 - self.split) * self.n_experts)
        return left if left > self.top_k else 0

    def beside(self, d_model: int, n_layers: int) -> MemoryConfig | None:
        """The memory layers that take what the experts leave of the budget; None where that is nothing."""
        if self.split == 0:
            return None
        an_expert = super().cost(d_model, n_layers).only("table").params // self.n_experts  # in every block
        spare = (self.n_experts - self.stored_experts) * an_expert
        a_cell = self.probe.cost(d_model, n_layers).only("table").params / PROBE**2
        return self.layers(max(self.probe.smallest_size, round(sqrt(spare / a_cell))))

    def slot(self) -> ArchConfig:
        """The mixture of experts of each block, or the FFN that stands in for experts where none is stored."""
        if not self.stored_experts:
            return DenseConfig(d_ff=self.top_k * self.d_expert + self.d_shared, glu=self.glu)
        own = {known.name: getattr(self, known.name) for known in fields(MoEConfig)}
        return MoEConfig(**own | {"n_experts": self.stored_experts})

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        return self.slot().feed_forward(d_model, layer, n_layers)

    def memories(self, d_model: int, n_layers: int) -> list[Placed]:
        memory = self.beside(d_model, n_layers)
        return memory.memories(d_model, n_layers) if memory else []

    def selection_flops(self, d_model: int, n_layers: int) -> int:
        chosen = filter(None, (self.slot(), self.beside(d_model, n_layers)))
        return sum(part.selection_flops(d_model, n_layers) for part in chosen)

    def cost(self, d_model: int, n_layers: int) -> Cost:
        memory = self.beside(d_model, n_layers)
        return self.slot().cost(d_model, n_layers) + (memory.cost(d_model, n_layers).without("ffn") if memory else Cost())

    @property
    def value_lr_multiplier(self) -> float:
        return self.probe.value_lr_multiplier

    @property
    def value_lr_decay_fraction(self) -> float:
        return self.probe.value_lr_decay_fraction

    @property
    def value_lr_schedule(self) -> str:
        return self.probe.value_lr_schedule

    def pre_width(self, d_model: int) -> int:
        """Width of pre-values, which lie beside the values."""
        return self.probe.pre_width(d_model)
