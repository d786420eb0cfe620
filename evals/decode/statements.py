"""What the papers and their summaries state of latency, beside what the roofline gives for the papers' own sizes.

A statement holds if the model bears it out with the full key-value cache, "only with small KV traffic" if it does with
1/8 of the key-value heads or without a cache, else it is "modelled against": a model of bytes, products and launches
refutes no measurement. The criterion stands in code beside each. Nothing here was measured.
`python -m evals.decode.modelled --statements FILE.csv` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from evals.access.declared import EXPANSION, P1_SIZES, Model, folded, p1, resident, v2
from evals.decode.roofline import EXPERTS, VARIANTS, Device, decode, step
from evals.records import schema
from models.cost import Part

COLUMNS = tuple(column.name for column in schema.columns("statements"))
VERDICTS = schema.columns("statements")[COLUMNS.index("verdict")].choices
CACHES = {"mha": "full cache", "gqa": "1/8 of the key-value heads", "none": "no cache"}
BATCHES = tuple(2**i for i in range(11))
SIZE = "1.6B"


class Statement(NamedTuple):
    """`holds` says of a cache whether the model bears the statement out."""

    id: str
    statement: str
    published: str
    modelled: str
    holds: Callable[[str], bool]


@dataclass(frozen=True)
class Timed:
    """The roofline of one device."""

    device: Device
    launches: dict[str, int]

    def ms(self, model: Model, batch: int, kv: str = "mha", variant: str = "plain", **how: Any) -> float:
        return 1e3 * VARIANTS[variant](model, self.device, self.launches, batch, kv, **how).seconds

    def ratios(self, over: Model, under: Model, kv: str) -> dict[float, int]:
        """Ratio of times -> batch, over the published batches."""
        return {self.ms(over, batch, kv) / self.ms(under, batch, kv): batch for batch in BATCHES}


def statements(device: Device, launches: dict[str, int]) -> list[dict[str, str]]:
    """Rows of the table `statements`."""
    rows = []
    for make in STATEMENTS:
        *texts, holds = make(Timed(device, launches))
        caches = [kv for kv in CACHES if holds(kv)]
        verdict = VERDICTS[0 if "mha" in caches else 1 if caches else 2]
        rows.append(dict(zip(COLUMNS, (device.name, *texts, verdict), strict=True)))
    return rows


def published_memory(size: str = SIZE, gflops: float = 3.50) -> int:
    """Dense parameters of one memory layer that P1's published FLOPs leave room for."""
    spare = gflops * 1e9 / 2 - p1("dense", size).cost().params
    return round(spare / P1_SIZES[size].n_memories - P1_SIZES[size].n_reads * P1_SIZES[size].d_model / 2)


def scaled(model: Model, times: int) -> Model:
    """The model with more experts or values, of which a token reads as many as before."""
    parts = (replace(p, rows=times * p.rows) if p.sparse else p for p in model.slots.parts)
    return replace(model, slots=type(model.slots)(tuple(parts)))


def _by_cache(values: dict[str, str]) -> str:
    return ", ".join(f"{text} with {CACHES[kv]}" for kv, text in values.items())


def _span(values: Collection[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


DENSE, MOE, MEMORY = (p1(arch, SIZE) for arch in ("dense", "moe2", "ultramem"))


def batch_1(t: Timed) -> Statement:
    slow = {how: t.ms(MOE, 1, experts=how) for how in EXPERTS}
    eager = Timed(replace(t.device, launch_s=1e-5), t.launches).ms(MOE, 1, experts="loop")
    ratio = {kv: t.ms(MOE, 1, kv) / t.ms(MEMORY, 1, kv) for kv in CACHES}
    text = (
        f"{t.ms(MEMORY, 1):.2f} and {slow['grouped']:.2f} ms, {ratio['mha']:.2f}x: a top-2 MoE reads two experts a layer. A "
        f"loop over experts takes {slow['loop']:.1f} ms ({eager:.1f} with 10 us launches), reading all of them "
        f"{slow['all']:.1f} ms"
    )
    words = "at batch 1 UltraMem is 6 times as fast as MoE (within half of that)"
    return Statement("B1", words, "12 and 72 ms", text, lambda kv: ratio[kv] >= 3)


def speed_up(t: Timed) -> Statement:
    best = {kv: max(t.ratios(MOE, MEMORY, kv).items()) for kv in CACHES}
    text = "largest ratio " + _by_cache({kv: f"{ratio:.1f} at batch {batch}" for kv, (ratio, batch) in best.items()})
    words = "at its best batch UltraMem is 6 times as fast as MoE (5.5 or more)"
    return Statement("B2, claim 6", words, "2 to 6", text, lambda kv: best[kv][0] >= 5.5)


def moe_over_dense(t: Timed) -> Statement:
    ratios = {kv: t.ratios(MOE, DENSE, kv) for kv in CACHES}
    text = _by_cache({kv: _span(over) for kv, over in ratios.items()})
    words = "MoE takes 2 times as long as dense at every batch to 1000 and 6 times at its worst (1.8 and 5.5)"
    return Statement("claim 6", words, "2 to 6", text, lambda kv: min(ratios[kv]) >= 1.8 and max(ratios[kv]) >= 5.5)


def memory_over_dense(t: Timed) -> Statement:
    fat = p1("ultramem", SIZE, memory_params=published_memory())
    ratios = {kv: (t.ratios(MEMORY, DENSE, kv), t.ratios(fat, DENSE, kv)) for kv in CACHES}
    text = _by_cache({kv: f"{_span(thin)} ({_span(wide)})" for kv, (thin, wide) in ratios.items()})
    text += f"; in brackets with the {published_memory() / 1e6:.0f} M dense parameters a layer that the published FLOPs allow"
    words = "UltraMem takes about as long as dense (at most 1.25)"
    return Statement("claim 6", words, "about 1", text, lambda kv: max(map(max, ratios[kv])) <= 1.25)


def memory_bound(t: Timed) -> Statement:
    share = {kv: decode(MOE, t.device, t.launches, 16, kv).bytes_bound_share for kv in CACHES}
    text = _by_cache({kv: f"{100 * x:.0f} %" for kv, x in share.items()}) + ", at batch 16"
    return Statement("B3", "over 60 % of MoE's time is memory access", "60 %", text, lambda kv: share[kv] > 0.6)


def flat_in_sparsity(t: Timed) -> Statement:
    growth = {kv: [t.ms(scaled(m, 4), 512, kv) / t.ms(m, 512, kv) for m in (MEMORY, MOE)] for kv in CACHES}
    text = "with 4 times the sparse parameters UltraMem takes " + _by_cache(
        {kv: f"{ours:.2f} and MoE {theirs:.2f} times as long" for kv, (ours, theirs) in growth.items()}
    )
    words = "at batch 512 more sparse parameters leave UltraMem's time as it is (15 %) and lengthen MoE's"
    return Statement("claim 8, B9", words, "", text, lambda kv: growth[kv][0] <= 1.15 < growth[kv][1])


def v2_over_moe8(t: Timed) -> Statement:
    moe, memory = v2("moe8"), v2("ultramem_v2")
    moved = [step(m.slots.parts, t.device, t.launches, 64).bytes for m in (moe, memory)]
    text = f"{moved[0] / moved[1]:.1f} times fewer bytes in feed-forward and memory at batch 64, and " + _by_cache(
        {kv: f"{t.ms(moe, 64, kv) / t.ms(memory, 64, kv):.1f} times as fast" for kv in CACHES}
    )
    words = "UltraMemV2 (120B/2.5B) reads far less than an 8-expert MoE of its size (half)"
    return Statement("B13", words, "", text, lambda kv: moved[0] >= 2 * moved[1])


def capacity(t: Timed) -> Statement:
    sizes = [2**i for i in range(15)]
    most = {kv: max((b for b in sizes if resident(MOE, b, kv) < t.device.memory), default=0) for kv in ("mha", "gqa")}
    text = f"in {t.device.memory / 1e9:.0f} GB MoE fits a batch of " + _by_cache({kv: str(b) for kv, b in most.items()})
    words = "one device decodes batches to 1000 with 2048 cached tokens"
    return Statement("P1 figure 1b", words, "1000", text, lambda kv: most.get(kv, 0) >= 1000)


def overlap(t: Timed) -> Statement:
    saved = {b: {kv: 1 - t.ms(MEMORY, b, kv, "overlap") / t.ms(MEMORY, b, kv) for kv in CACHES} for b in (1, 64, 1024)}
    shares = (_by_cache({kv: f"{100 * x:.1f} %" for kv, x in by_kv.items()}) + f", at batch {b}" for b, by_kv in saved.items())
    words = "a lookup beside later blocks can hide what the memory layers cost (half of it)"
    cost = {kv: [1 - t.ms(_without_memory(), b, kv) / t.ms(MEMORY, b, kv) for b in saved] for kv in CACHES}
    text = f"it saves at most {'; '.join(shares)}; the layers cost " + _by_cache(
        {kv: f"{100 * min(x):.1f} to {100 * max(x):.1f} %" for kv, x in cost.items()}
    )
    hidden = {kv: min(saved[b][kv] / share for b, share in zip(saved, cost[kv], strict=True)) for kv in CACHES}
    return Statement("P1 3.2", words, "", text, lambda kv: hidden[kv] >= 0.5)


def _without_memory() -> Model:
    return replace(MEMORY, slots=MEMORY.slots.only("ffn"))


def folding(t: Timed) -> Statement:
    whole = p1("ultramem", SIZE, expansion=EXPANSION)
    saved = {b: 1 - t.ms(whole, b, variant="folded") / t.ms(whole, b) for b in (1, 16, 64, 256)}
    table: list[Part] = [model.slots.only("table").parts[0] for model in (whole, folded(whole))]
    text = (
        f"{table[1].params / table[0].params:.0f} times the storage, {table[1].width / table[0].width:.0f} times the bytes "
        "of a pick (a vector of d_model for each core, instead of a value of half of it); it saves "
        + ", ".join(f"{100 * x:.1f} % at batch {b}" for b, x in saved.items())
    )
    words = "folding IVE's projections into the tables costs 4 times the storage"
    return Statement("S4", words, "4", text, lambda kv: table[1].params <= EXPANSION * table[0].params)


STATEMENTS = (
    batch_1,
    speed_up,
    moe_over_dense,
    memory_over_dense,
    memory_bound,
    flat_in_sparsity,
    v2_over_moe8,
    capacity,
    overlap,
    folding,
)
