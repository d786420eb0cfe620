"""The config that all memory layers share: sizes, the bag of tricks with neutral values, placement, cost.

P1 sections 3.1-3.2 (product-key memory and its bag of tricks), 3.3 (expansion); the layer itself is in memory.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import nn

from models.cost import Cost, Part, dense
from models.feed_forward import FeedForward, feed_forward_cost
from models.slot import ArchConfig, Placed

if TYPE_CHECKING:
    from typing import Any

    from models.value_table import Table


class Window(NamedTuple):
    """Rows of value table number `table` that a layer reaches: side**2 of its `rows`, from `offset` on, wrapping."""

    table: int
    rows: int
    side: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(ArchConfig):
    """An FFN in every block and memory layers beside some of them. Neutral values give the plain product-key memory.

    Args:
        d_ff, glu: the FFN that every block keeps (memory is added to it, P1 section 3.2); d_ff 0 leaves memory alone.
        placement: "i:j" reads block i's FFN input and writes after block j (0-based); "all", alone, is i:i in every
            block, "every 2" in every second.
        n_keys: keys per axis, so n_keys**2 values. d_key: width of one half-key.
        n_mem_heads, top_m: heads, and values that each reads.
        d_value: None means d_model, without output projection where expansion is 1.
        score_fn: "softmax" over a head's picks, or "none": raw scores weight the values.
        share_query: "heads": one query serves all heads (the released code's reading of P1's "two key sets"; GAP).
        qk_norm: of queries and keys over d_key, before ranks split them, with a gain and without bias (GAP).
        query_conv: taps of a causal depthwise convolution before the query; 1 is none.
        expansion: virtual values per stored one (IVE); keys per axis grow by its square root.
        init: "lample" (product keys), "ultramem" (P1 appendix A), "ultramem_v2" (P2 section 3.5), "code" (the release).
        value_lr_multiplier: of the value tables' learning rate; with schedule "decay" it goes linearly to 1 over the first
            `value_lr_decay_fraction` of training (0: stays) on top of the cosine, with "constant" it multiplies the peak
            learning rate throughout (Lample et al. and Memory+: 1e-3).
        placebo: control that computes what the layer computes and lacks one thing that memory is said to give. "one-row":
            every pick reads the table's only row. "frozen": values (and pre-values) keep their initialisation; "frozen-layer":
            so does everything but the output projection. "shuffled": which cell leads to which row is drawn anew in every
            run. "scattered": a cell leads to another row at each position of the context, so no content has a row of its own.

    Raises:
        ValueError: a choice that does not exist, or sizes that do not fit together.
    """

    size_knob: ClassVar[str] = "n_keys"
    share_knob: ClassVar[str] = "d_key"
    gain_power: ClassVar[float] = 0.33
    n_cores: ClassVar[int] = 1
    rank: ClassVar[int] = 1
    rank_query: ClassVar[str] = "split"
    projection: ClassVar[str] = "each"
    activation = "none"  # not annotated: it would take its place among the fields of those that have one

    d_ff: int
    glu: bool = True
    placement: tuple[str, ...]
    n_keys: int
    d_key: int
    n_mem_heads: int = 2
    top_m: int
    d_value: int | None = None
    score_fn: Literal["softmax", "none"] = "softmax"
    share_query: Literal["none", "heads"] = "none"
    qk_norm: Literal["none", "rms", "layer"] = "none"
    query_conv: int = 1
    expansion: int = 1
    init: Literal["lample", "ultramem", "ultramem_v2", "code"] = "lample"
    value_lr_multiplier: float = 1.0
    value_lr_decay_fraction: float = 0.0
    value_lr_schedule: Literal["decay", "constant"] = "decay"
    placebo: Literal["none", "one-row", "frozen", "frozen-layer", "shuffled", "scattered"] = "none"

    @property
    def smallest_size(self) -> int:
        return isqrt(self.top_m) + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_keys", "d_key", "n_mem_heads", "top_m", "query_conv", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        cells = self.expansion * self.n_keys**2
        if isqrt(cells) ** 2 != cells:
            raise ValueError(f"expansion {self.expansion} x n_keys {self.n_keys}^2 is not a square, so no key grid has it")
        if self.top_m > cells:
            raise ValueError(f"top_m {self.top_m} exceeds the {cells} cells of the key grid")
        if self.choice("rank_query") == "split" and self.d_key % self.rank:
            raise ValueError(f"d_key {self.d_key} is not divisible by the tucker_rank {self.rank} that splits it")
        if (self.d_value or 0) % self.n_cores:
            raise ValueError(f"d_value {self.d_value} is not divisible by n_cores {self.n_cores}")

    def choice(self, name: str) -> str:
        """A named choice; architectures with a `variant` resolve theirs here."""
        return getattr(self, name)

    def spans(self, n_layers: int) -> list[tuple[int, int]]:
        """(read_at, write_at) of every memory layer."""
        if self.placement == ("all",):
            return [(i, i) for i in range(n_layers)]
        if len(self.placement) == 1 and self.placement[0].startswith("every "):
            stride = int(self.placement[0].removeprefix("every "))
            return [(i, i) for i in range(stride - 1, n_layers, stride)]
        spans = []
        for entry in self.placement:
            read_at, colon, write_at = entry.partition(":")
            if not (colon and read_at.isdecimal() and write_at.isdecimal()):
                raise ValueError(f"placement {entry!r} must read i:j (read block i, write after block j), or all, alone")
            if not int(read_at) <= int(write_at) < n_layers:
                raise ValueError(f"placement {entry!r} must satisfy 0 <= i <= j < n_layers = {n_layers}")
            spans.append((int(read_at), int(write_at)))
        return spans

    def window(self, memory: int, n_memories: int) -> Window:
        """What memory layer number `memory` sees; by default a table of its own."""
        return Window(memory, self.n_keys**2, self.n_keys, 0)

    def reach(self, memory: int, n_memories: int) -> Window:
        """The window over the rows that are stored: its cells wrap around a placebo's one row."""
        window = self.window(memory, n_memories)
        return window._replace(rows=1) if self.placebo == "one-row" else window

    def axis(self, n_memories: int) -> int:
        """n', logical keys per axis."""
        return isqrt(self.expansion * self.window(0, n_memories).side ** 2)

    def value_width(self, d_model: int) -> int:
        return d_model if self.d_value is None else self.d_value

    @property
    def blocks(self) -> int:
        """Expansion blocks with an output projection of their own."""
        return self.expansion if self.projection == "each" else 1

    @property
    def key_groups(self) -> int:
        """Vectors of width d_key per key."""
        return 1 if self.choice("rank_query") == "split" else self.rank

    @property
    def query_groups(self) -> int:
        """Vectors of width d_key per query."""
        return self.rank if self.choice("rank_query") in ("own", "release") else 1

    @property
    def projects(self) -> bool:
        return self.d_value is not None or self.blocks > 1

    def pre_width(self, d_model: int) -> int:
        """Width of pre-values (PEER, P2 eq. 13-15); 0 is none."""
        return 0

    def layer(self, d_model: int, n_layers: int, memory: int, table: Table | None) -> nn.Module:
        """Memory layer number `memory`; makes its value table unless given one."""
        raise NotImplementedError

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        return FeedForward(d_model, self.d_ff, self.glu)

    def memories(self, d_model: int, n_layers: int) -> list[Placed]:
        if TYPE_CHECKING:
            tables: dict[int, Any]  # each the Table of the layer that made it
        placed, tables = [], {}
        spans = self.spans(n_layers)
        for memory, (read_at, write_at) in enumerate(spans):
            number = self.window(memory, len(spans)).table
            module = self.layer(d_model, n_layers, memory, tables.get(number))
            tables[number] = module.table
            placed.append(Placed(read_at, write_at, module))
        return placed

    def extra_parts(self, d_model: int) -> tuple[Part, ...]:
        """What a subclass computes densely beyond query, keys and output."""
        return ()

    def selection_flops(self, d_model: int, n_layers: int) -> int:
        """Projecting both axes on the filter's vectors, finding their m best (one comparison a key), scoring the m x m cross
        (per core m^2 products of r-vectors, and C on one side first), and finding its m best."""
        L, r, m = len(self.spans(n_layers)), self.rank, self.top_m
        axis = self.axis(L) if L else 0
        filtering = 2 * axis * (2 * r if r > 1 else 0) + 2 * axis
        cross = m * m * (2 * r * self.n_cores if r > 1 else 1) + (2 * m * r * r * self.n_cores if r > 1 else 0) + m * m
        return L * self.n_mem_heads * (filtering + cross)

    def cost(self, d_model: int, n_layers: int) -> Cost:
        L, H, Q = len(self.spans(n_layers)), self.n_mem_heads, self.d_key
        width, axis = self.value_width(d_model), self.axis(L) if L else 0
        queries = 1 if self.share_query == "heads" else H
        parts = [
            dense("query", "memory", d_model * queries * 2 * self.query_groups * Q),
            dense("keys", "memory", H * 2 * axis * self.key_groups * Q),
            dense("query conv", "memory", d_model * self.query_conv if self.query_conv > 1 else 0),
            dense("query and key gains", "memory", 0 if self.choice("qk_norm") == "none" else 2 * Q),
            dense("output", "memory", self.blocks * width * d_model if self.projects else 0),
            *self.extra_parts(d_model),
        ]
        windows = [self.reach(i, L) for i in range(L)]
        readers = Counter((w.table, w.rows) for w in windows)
        stored = [
            Part("values", "table", rows, width + self.pre_width(d_model), count * H * self.top_m)
            for (_, rows), count in readers.items()
        ]
        layer = Cost(tuple(part for part in parts if part.params))
        return feed_forward_cost(d_model, self.d_ff, self.glu) * n_layers + layer * L + Cost(tuple(stored))
