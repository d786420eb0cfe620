"""How many bytes of weights one decoding step reads, declared by formula.

A step over a batch reads every dense matrix once and, of experts and value tables, the distinct records that its tokens
ask for. Three routings say how many those are: `worst` (no two tokens share a record), `uniform` (expected, records
equally likely), `zipf` (expected, record i asked for in proportion to i ** -exponent). The key-value cache is added or
left out. Models are the `models.cost` of our own configs, or the papers' sizes below, built from their numbers.

    python -m evals.access.declared --figure-1c      the four labels of P1 figure 1c
    python -m evals.access.declared --size 1.6B      rows and gigabytes by batch, routing and cache
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache as remember
from typing import NamedTuple

import numpy as np

from evals.records import options
from evals.records.errors import UserError, run
from models.cost import Cost, Part, dense

ROUTINGS = ("worst", "uniform", "zipf")
KV_HEADS = {"none": 0.0, "mha": 1.0, "gqa": 1 / 8}
BATCHES = tuple(4**i for i in range(6))
FEED_FORWARD = ("ffn", "router", "memory", "table")
ITEMSIZE = {"fp32": 4, "bf16": 2}
CONTEXT = 2048


class View(NamedTuple):
    """What of a decoding step is counted: the weights of `cost`, and `cache` bytes of keys and values per sequence."""

    part: str
    cost: Cost
    kv: str = "none"
    context: int = 0
    cache: float = 0.0


@dataclass(frozen=True)
class Model:
    """A published model, or one built to its published totals; attention is part of it, the embedding is not.

    Args:
        slots: cost of everything in the blocks but attention.
        shadow: whole blocks beside which a memory layer can run, j - i of its placement i:j.
        vocab_size: rows of the embedding, counted only where the whole model has to fit a memory.
    """

    arch: str
    size: str
    d_model: int
    n_layers: int
    slots: Cost
    shadow: int = 0
    vocab_size: int = 50_304

    def cost(self, kv: str = "mha") -> Cost:
        """Attention and slots. Fewer key-value heads also make their two projections narrower."""
        share = KV_HEADS[kv] or 1.0
        width = round((2 + 2 * share) * self.d_model**2)
        return Cost((dense("attention", "attention", width),)) * self.n_layers + self.slots

    @property
    def sparse_ratio(self) -> float:
        return self.cost().sparse_params / self.cost().active_params

    def views(self, context: int = CONTEXT, dtype: str = "bf16") -> list[View]:
        """Feed-forward and memory alone, and the whole model without cache and with each."""
        views = [View("ffn", self.slots)]
        for kv in KV_HEADS:
            cache = kv_bytes(self.d_model, self.n_layers, 1, context, kv, ITEMSIZE[dtype])
            views.append(View("model", self.cost(kv), kv, context if cache else 0, cache))
        return views


@dataclass(frozen=True)
class Size:
    """One size of P1: d_ff is 4 * d_model, no gated unit, memory width d_model / 2, 2 experts per token.

    Published: d_model, n_layers, n_experts. Inferred (spec D, E): d_expert and n_keys close the published totals;
    n_reads = 84 is the only count that gives figure 1c. GAP: the widths of queries and keys. `d_keys` sums a query over
    its heads; 512 at 1.6B makes a memory layer 7.9 M dense parameters, while the published 3.50 GFLOPs leave room for
    24 M (the roofline prints both). `shadow` is P1's placement: 3:5, 6:8 at 151M, 3:7, 8:12 ... at 1.6B; GAP at 680M.
    """

    d_model: int
    n_layers: int
    n_experts: int
    d_expert: int
    n_memories: int
    n_keys: int
    d_keys: int
    shadow: int
    n_reads: int = 84


P1_SIZES = {
    "151M": Size(1024, 12, 32, 2528, 3, 1100, 256, 2),
    "680M": Size(1536, 24, 33, 3584, 4, 1632, 384, 4),
    "1.6B": Size(2048, 32, 34, 4672, 6, 1789, 512, 4),
    "6.5B": Size(4096, 32, 0, 0, 0, 0, 0, 0),
}
TUCKER_RANK = N_CORES = 2
EXPANSION = 4


def p1(arch: str, size: str, memory_params: int | None = None, expansion: int = 1) -> Model:
    """A model of P1 table 1: arch is dense, moe2 or ultramem (6.5B is dense only).

    Args:
        memory_params: dense parameters of one memory layer, instead of queries, keys and projection at `d_keys`.
        expansion: counts IVE's keys and projections; 1 leaves them out, which the unknown widths of queries and keys
            outweigh.
    """
    if size not in P1_SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(P1_SIZES)}")
    s = P1_SIZES[size]
    ffn = Cost((dense("ffn", "ffn", 8 * s.d_model**2),)) * s.n_layers
    if arch == "dense":
        return Model(arch, size, s.d_model, s.n_layers, ffn)
    if not s.n_experts or arch not in ("moe2", "ultramem"):
        raise ValueError(f"P1 has no {arch} of size {size}")
    if arch == "moe2":
        experts = Part("experts", "table", s.n_experts, 2 * s.d_model * s.d_expert, 2)
        return Model(arch, size, s.d_model, s.n_layers, Cost((experts,)) * s.n_layers)
    d_value = s.d_model // 2
    queries, keys = 2 * s.d_model * s.d_keys, 2 * TUCKER_RANK * round(expansion**0.5 * s.n_keys) * s.d_keys
    projection = expansion * d_value * s.d_model
    retrieval = memory_params - projection if memory_params else queries + keys
    layer = Cost(
        (
            dense("memory", "memory", retrieval),
            dense("projection", "memory", projection),
            Part("values", "table", s.n_keys**2, d_value, s.n_reads),
        )
    )
    return Model(arch, size, s.d_model, s.n_layers, ffn + layer * s.n_memories, s.shadow)


def folded(model: Model) -> Model:
    """An UltraMem of P1 with IVE's projections multiplied into its tables (P1 eq. 13-15): EXPANSION times the records.

    A record is the product of a value with one projection. The N_CORES cores weight slices of the value, which the
    product mixes, so that it is kept and read once per core: N_CORES vectors of d_model.
    """
    parts = (
        replace(part, rows=EXPANSION * part.rows, width=N_CORES * model.d_model) if part.name == "values" else part
        for part in model.slots.parts
        if part.name != "projection"
    )
    return replace(model, slots=Cost(tuple(parts)))


def v2(arch: str = "ultramem_v2", active: float = 2.5e9, total: float = 120e9, top_m: int = 256) -> Model:
    """A model with the totals of P2's 2.5B/120B-top256 and an 8-expert MoE beside it; everything else is our choice.

    P2 discloses neither widths nor depth (GAP). Chosen: d_model 2560, 32 blocks, a memory in each, 17 % of feed-forward
    plus memory compute in the memory (P2's optimum), values of 3/16 and pre-values of 1/16 of d_model (P2's best 1:3 at
    its smaller sum). The feed-forward, the table and the number of experts are solved for the two totals.
    """
    d_model, n_layers = 2560, 32
    slot = round(active / n_layers) - 4 * d_model**2
    if arch == "moe8":
        expert = slot // 8
        experts = Part("experts", "table", round((total / n_layers - 4 * d_model**2) / expert), expert, 8)
        layer = Cost((experts,))
    elif arch == "ultramem_v2":
        record = d_model // 4
        memory = round(0.17 * (slot - top_m * record))
        ffn = slot - top_m * record - memory
        n_keys = round(((total / n_layers - 4 * d_model**2 - ffn - memory) / record) ** 0.5)
        table = Part("values", "table", n_keys**2, record, top_m)
        layer = Cost((dense("ffn", "ffn", ffn), dense("memory", "memory", memory), table))
    elif arch == "dense":
        layer = Cost((dense("ffn", "ffn", slot),))
    else:
        raise ValueError(f"arch {arch!r} is not one of dense, moe8, ultramem_v2")
    size = f"{active / 1e9:g}B" if arch == "dense" else f"{total / 1e9:g}B/{active / 1e9:g}B"
    return Model(arch, size, d_model, n_layers, layer * n_layers)


def published() -> list[Model]:
    """P1's three sizes, its 6.5B dense, and P2's 120B/2.5B beside a dense model and an MoE of its totals."""
    sparse = [p1(arch, size) for size in P1_SIZES if size != "6.5B" for arch in ("dense", "moe2", "ultramem")]
    return sparse + [p1("dense", "6.5B")] + [v2(arch) for arch in ("dense", "moe8", "ultramem_v2")]


@remember
def touched_zipf(rows: int, reads: float, n_tokens: int, exponent: float) -> float:
    """Expected distinct records when record i is read by a token with probability min(1, reads * p_i), p_i ~ i^-a."""
    weight = np.arange(1, rows + 1, dtype=float) ** -exponent
    hit = np.minimum(1.0, reads * weight / weight.sum())
    with np.errstate(divide="ignore"):
        return float(-np.expm1(n_tokens * np.log1p(-hit)).sum())


def rows_read(part: Part, batch: int, routing: str, exponent: float = 1.0) -> float:
    """Distinct records of `part` that a step over `batch` tokens reads."""
    if routing != "zipf":
        return part.rows_read(batch, routing)
    return touched_zipf(part.rows, part.reads, batch, exponent) if part.sparse else float(part.rows)


def kv_bytes(d_model: int, n_layers: int, batch: int, context: int, kv: str, itemsize: int) -> float:
    """Keys and values of `context` cached tokens in every layer of every sequence."""
    return 2 * context * d_model * KV_HEADS[kv] * n_layers * batch * itemsize


def resident(model: Model, batch: int, kv: str) -> float:
    """Bytes that weights (embedding included) and cache occupy in bf16."""
    weights = 2 * (model.cost(kv).params + model.vocab_size * model.d_model)
    return weights + kv_bytes(model.d_model, model.n_layers, batch, CONTEXT, kv, 2)


def weight_bytes(cost: Cost, batch: int, routing: str, itemsize: int, exponent: float = 1.0) -> float:
    return itemsize * sum(p.width * n for p, n in _distinct(cost, batch, routing, exponent))


def declared(
    run_id: str, arch: str, size: str, view: View, batches: Iterable[int] = BATCHES, dtype: str = "bf16"
) -> Iterator[dict]:
    """Rows of the `access` table, summed over the model: one per batch and routing.

    `run_id` is the run whose config it is, or the name of a paper's model. rows_read counts repeats (reads * batch),
    rows_unique does not; both over sparse parts only.
    """
    for batch in batches:
        for routing in ROUTINGS:
            parts = _distinct(view.cost, batch, routing, 1.0)
            sparse = [(p, n) for p, n in parts if p.sparse]
            yield {
                "run": run_id,
                "arch": arch,
                "size": size,
                "part": view.part,
                "kv": view.kv,
                "context": view.context,
                "dtype": dtype,
                "batch": batch,
                "routing": routing,
                "kind": "declared-worst" if routing == "worst" else "declared-expected",
                "rows_read": float(sum(p.reads * batch for p, _ in sparse)),
                "rows_unique": float(sum(n for _, n in sparse)),
                "bytes": float(ITEMSIZE[dtype] * sum(p.width * n for p, n in parts) + batch * view.cache),
            }


def _distinct(cost: Cost, batch: int, routing: str, exponent: float) -> list[tuple[Part, float]]:
    """Each part with the records of it that are read; equal parts are worked out once."""
    known = {part: rows_read(part, batch, routing, exponent) for part in set(cost.parts)}
    return [(part, known[part]) for part in cost.parts]


def figure_1c(batches: Iterable[int] = (16, 64, 256, 1024), size: str = "1.6B", routing: str = "worst") -> list[float]:
    """MoE over UltraMem in parameters read, as P1 figure 1c counts it.

    Worst case, feed-forward and value tables only: without attention, cache, keys or projections. No other reading
    within reach gives the printed 18.1, 18.8, 17.3, 13.0.
    """
    moe, memory = (p1(arch, size).slots.only("ffn", "table") for arch in ("moe2", "ultramem"))
    return [weight_bytes(moe, b, routing, 1) / weight_bytes(memory, b, routing, 1) for b in batches]


def _table(size: str, context: int) -> None:
    models = [p1(arch, size) for arch in (("dense",) if size == "6.5B" else ("dense", "moe2", "ultramem"))]
    print(f"P1 {size}, bf16, one decoding step, context {context}; rows are distinct experts or values over all layers")
    print(f"{'arch':9s} {'batch':>6s} {'routing':8s} {'rows':>12s} {'ffn GB':>8s}", end="")
    print("".join(f"{'model, KV ' + kv:>16s}" for kv in KV_HEADS))
    for model in models:
        for ffn, *whole in zip(*(declared(size, model.arch, size, view) for view in model.views(context)), strict=True):
            print(f"{model.arch:9s} {ffn['batch']:6d} {ffn['routing']:8s} {ffn['rows_unique']:12.0f}", end="")
            print(f" {ffn['bytes'] / 1e9:8.2f}" + "".join(f"{row['bytes'] / 1e9:16.2f}" for row in whole))


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--figure-1c", action="store_true", help="the four ratios printed in P1 figure 1c")
    parser.add_argument("--size", help=f"a size of P1: {', '.join(P1_SIZES)}")
    parser.add_argument("--context", type=int, default=CONTEXT, help="cached tokens per sequence")
    args = parser.parse_args(arguments)
    if args.figure_1c:
        print(*(f"{ratio:.1f}" for ratio in figure_1c()))
    elif args.size in P1_SIZES:
        _table(args.size, args.context)
    else:
        raise UserError(f"say --figure-1c, or --size with one of {', '.join(P1_SIZES)}")


if __name__ == "__main__":
    run(main)
