"""What a layer stores, uses and reads: parameters, FLOPs and bytes, in closed form and without allocating anything.

Every architecture describes itself as a list of `Part`s. A part is `rows` records of `width` parameters of which one
token reads `reads`: a dense matrix is one record read by every token, a bank of experts is `n_experts` records of which
`top_k` are read, a value table is `n_keys**2` records of which `n_heads * top_m` are read. All counts follow from that.
FLOPs are twice the activated non-embedding parameters per token, the definition of P1 (spec section E): the attention
scores, whose cost depends on the context and is the same in every architecture, are not in it. A record that one token
reads several times (the placebo's one row) is activated once and multiplied as often as it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ROLES = ("embedding", "attention", "norm", "ffn", "router", "memory", "table")


def touched(rows: float, reads: float, n_tokens: int) -> float:
    """Expected number of distinct records read when each of `n_tokens` draws `reads` distinct ones uniformly."""
    return rows * (1.0 - (1.0 - min(reads / rows, 1.0)) ** n_tokens)


@dataclass(frozen=True)
class Part:
    """`rows` records of `width` parameters, `reads` of which one token uses.

    Args:
        name: what it is, for tables.
        role: one of `ROLES`; "memory" is what a memory layer computes densely (queries, keys, projections),
            "table" what it or a mixture of experts reads sparsely.
        rows, width, reads: records, parameters per record, records per token.
    """

    name: str
    role: str
    rows: int
    width: int
    reads: int = 1

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"part {self.name}: role {self.role!r} is not one of {', '.join(ROLES)}")

    @property
    def params(self) -> int:
        return self.rows * self.width

    @property
    def active_params(self) -> int:
        return min(self.reads, self.rows) * self.width

    @property
    def sparse(self) -> bool:
        return self.reads < self.rows

    def rows_read(self, n_tokens: int, routing: str = "uniform") -> float:
        """Distinct records that a batch of `n_tokens` reads: expected under uniform routing, or the worst case."""
        if routing == "worst":
            return min(self.rows, self.reads * n_tokens)
        if routing == "uniform":
            return touched(self.rows, self.reads, n_tokens)
        raise ValueError(f"routing {routing!r} is not one of uniform, worst")


def dense(name: str, role: str, numel: int) -> Part:
    """A part that every token reads wholly."""
    return Part(name, role, 1, numel, 1)


@dataclass(frozen=True)
class Cost:
    """A list of parts; costs add."""

    parts: tuple[Part, ...] = field(default=())

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parts + other.parts)

    def __mul__(self, n: int) -> Cost:
        return Cost(self.parts * n)

    def only(self, *roles: str) -> Cost:
        return Cost(tuple(p for p in self.parts if p.role in roles))

    def without(self, *roles: str) -> Cost:
        return Cost(tuple(p for p in self.parts if p.role not in roles))

    @property
    def params(self) -> int:
        return sum(p.params for p in self.parts)

    @property
    def active_params(self) -> int:
        return sum(p.active_params for p in self.parts)

    @property
    def sparse_params(self) -> int:
        return sum(p.params for p in self.parts if p.sparse)

    @property
    def flops(self) -> int:
        """Forward FLOPs per token: 2 x what it multiplies, the activated non-embedding parameters once for every read."""
        return 2 * sum(p.reads * p.width for p in self.without("embedding").parts)

    def bytes(self, n_tokens: int, itemsize: int, routing: str = "uniform") -> float:
        """Bytes of parameters that one step over `n_tokens` tokens reads, each distinct record once."""
        return itemsize * sum(p.rows_read(n_tokens, routing) * p.width for p in self.parts)

    def share(self, *roles: str) -> float:
        """Of feed-forward plus memory compute, what these roles take."""
        slot = self.only("ffn", "router", "memory", "table").active_params
        return self.only(*roles).active_params / slot if slot else 0.0

    @property
    def memory_share(self) -> float:
        """What retrieval, projections and routing take."""
        return self.share("memory", "router")

    @property
    def retrieval_share(self) -> float:
        """What queries, keys and projections take."""
        return self.share("memory")
