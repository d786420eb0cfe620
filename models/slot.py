"""The contract between the Transformer and what fills its feed-forward slot.

A new architecture is one file with one subclass of `ArchConfig`, and its line in `models/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as remember
from typing import ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import nn

from models.cost import Cost


class Placed(NamedTuple):
    """A memory layer that reads block `read_at`'s normalised FFN input and is added after block `write_at` (0-based)."""

    read_at: int
    write_at: int
    module: nn.Module


@remember
def choices(cls: type) -> dict[str, tuple]:
    """Field name -> allowed values, of the fields that are named choices."""
    return {name: get_args(hint) for name, hint in get_type_hints(cls).items() if get_origin(hint) is Literal}


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """What fills the feed-forward slots of all blocks.

    Modules built here have `forward(x_BTD, cache=None) -> (y_BTD, aux)`, where `aux` is an already weighted scalar loss.
    They may have `refresh()` (called before each training step's forward), `health(x_BTD) -> dict[str, float]` and
    `value_names`, the names of parameters that are value tables and get their own learning rate; `width_free` names
    matrices neither of whose sides grows with d_model.

    The compute-matching solver turns three knobs: `width_knob` moves FLOPs, `size_knob` total parameters (None: dense),
    `share_knob` the width of the keys (None: no retrieval).

    Raises:
        ValueError: a choice that does not exist.
    """

    name: ClassVar[str]
    width_knob: ClassVar[str] = "d_ff"
    size_knob: ClassVar[str | None] = None
    share_knob: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for name, allowed in choices(type(self)).items():  # type: ignore[arg-type]  # mypy: the class has its instances' hash
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}")

    @property
    def smallest_size(self) -> int:
        """Least value of the size knob that makes sense."""
        return 1

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        """The FFN of block `layer`."""
        raise NotImplementedError

    def memories(self, d_model: int, n_layers: int) -> list[Placed]:
        """Memory layers beside the FFNs; none by default."""
        return []

    def selection_flops(self, d_model: int, n_layers: int) -> int:
        """Operations per token that choose what is read from its scores: not in `cost`, as in the papers' definition."""
        return 0

    def cost(self, d_model: int, n_layers: int) -> Cost:
        """Everything in the slots of all blocks, in closed form."""
        raise NotImplementedError
