"""How long a decoding step should take: the slower of bytes and FLOPs for every part of every layer, plus launches.

    t = sum over parts of max(bytes / (bandwidth * eff_b), flops / (peak * eff_f)) + launches * launch_s

Bytes are the distinct records of `evals.access` under one routing, FLOPs 2 x activated parameters x batch, the cache
its own part. The model knows nothing of the last-level cache, of overlap between parts or of more than one device, so
it is a statement about what bytes and FLOPs allow, not a measurement: every row it writes says `modelled`. The same
function predicts our own models on a machine whose bandwidth, FLOPs and launch time were measured.

    python -m evals.roofline [--gpus FILE] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from evals import schema
from evals.access import FEED_FORWARD, KV_HEADS, P1_SIZES, Model, kv_bytes, p1, rows_read, v2
from models.cost import Part
from workflows.errors import UserError, run

GPUS = Path(__file__).with_name("gpus.yaml")
EXPERTS = ("grouped", "loop", "all")
BATCHES = tuple(4**i for i in range(9))
CONTEXT = 2048


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks in bytes/s and FLOPs/s, the shares of them that are reached, and the seconds of one kernel launch."""

    name: str
    bandwidth: float
    flops: float
    memory: float
    bandwidth_efficiency: float = 1.0
    flops_efficiency: float = 1.0
    launch_s: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Step:
    """Seconds and what they are made of; `bytes_bound_s` is the time of the parts that bytes, not FLOPs, decide."""

    seconds: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0
    bytes_bound_s: float = 0.0

    def __add__(self, other: Step) -> Step:
        return Step(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, n: int) -> Step:
        return Step(*(getattr(self, f.name) * n for f in fields(self)))

    @property
    def bytes_bound_share(self) -> float:
        return self.bytes_bound_s / self.seconds


@dataclass(frozen=True)
class Cache:
    """The key-value cache of a model: `kv` as in `access.KV_HEADS`."""

    d_model: int
    n_layers: int
    context: int = CONTEXT
    kv: str = "mha"


def load(path: Path = GPUS) -> tuple[dict[str, Device], dict[str, int]]:
    """Devices by short name, and launches per part. UserError names the file and what is wrong with it."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        devices = {key: Device(**values) for key, values in table["devices"].items()}
        return devices, dict(table["launches"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of devices and launches: {error}") from None


def step(
    parts: Iterable[Part],
    device: Device,
    launches: dict[str, int],
    batch: int,
    itemsize: int = 2,
    cache: Cache | None = None,
    routing: str = "uniform",
    experts: str = "grouped",
) -> Step:
    """One decoding step, one new token for each of `batch` sequences.

    Args:
        parts: one entry per part and layer, as in `Cost.parts`; `launches` is looked up by name, then by role.
        experts: "grouped" (one set of kernels for all experts), "loop" (three kernels for each touched expert of each
            of the two matrices), "all" (every stored expert is read, touched or not).

    Raises:
        ValueError: an unknown way to run experts, or a part without an entry in `launches`.
    """
    if experts not in EXPERTS:
        raise ValueError(f"experts {experts!r} is not one of {', '.join(EXPERTS)}")
    parts = list(parts)
    total = Step()
    for part in set(parts):
        rows, kernels = rows_read(part, batch, routing), _launches(part, launches)
        if part.name == "experts" and experts == "loop":
            kernels = 2 * 3 * rows
        elif part.name == "experts" and experts == "all":
            rows = part.rows
        one = _operation(device, itemsize * rows * part.width, 2 * part.active_params * batch, kernels)
        total += one * parts.count(part)
    if cache:
        share = KV_HEADS[cache.kv]
        moved = kv_bytes(cache.d_model, 1, batch, cache.context, cache.kv, itemsize)
        flops = 4 * cache.context * cache.d_model * batch if share else 0
        total += _operation(device, moved, flops, launches["kv"]) * cache.n_layers
    return total


def _operation(device: Device, moved: float, flops: float, kernels: float) -> Step:
    by_bytes = moved / (device.bandwidth * device.bandwidth_efficiency)
    by_flops = flops / (device.flops * device.flops_efficiency)
    seconds = max(by_bytes, by_flops) + kernels * device.launch_s
    return Step(seconds, moved, flops, kernels, by_bytes if by_bytes >= by_flops else 0.0)


def _launches(part: Part, launches: dict[str, int]) -> int:
    for key in (part.name, part.role):
        if key in launches:
            return launches[key]
    raise ValueError(f"no number of launches for part {part.name!r} or role {part.role!r}: add it to gpus.yaml")


def decode(model: Model, device: Device, launches: dict[str, int], batch: int, kv: str = "mha", **how) -> Step:
    """A whole decoding step of a published model in bf16 with `CONTEXT` cached tokens."""
    return step(model.cost(kv).parts, device, launches, batch, cache=Cache(model.d_model, model.n_layers, kv=kv), **how)


def resident(model: Model, batch: int, kv: str) -> float:
    """Bytes that weights (embedding included) and cache occupy in bf16."""
    weights = 2 * (model.cost(kv).params + model.vocab_size * model.d_model)
    return weights + kv_bytes(model.d_model, model.n_layers, batch, CONTEXT, kv, 2)


def models() -> list[Model]:
    """What is modelled: P1's three sizes, its 6.5B dense, and P2's 120B/2.5B beside an MoE of its totals."""
    sparse = [p1(arch, size) for size in P1_SIZES if size != "6.5B" for arch in ("dense", "moe2", "ultramem")]
    return sparse + [p1("dense", "6.5B")] + [v2(arch) for arch in ("dense", "moe8", "ultramem_v2")]


def rows(devices: dict[str, Device], launches: dict[str, int], batches: Iterable[int] = BATCHES) -> Iterator[dict]:
    """Rows of the `latency` table, kind `modelled`: whole model with each cache, and feed-forward and memory alone."""
    for device in devices.values():
        for model in models():
            slots = model.slots.only(*FEED_FORWARD).parts
            for batch in batches:
                for kv in KV_HEADS:
                    yield _row(model, device, batch, "model", kv, decode(model, device, launches, batch, kv))
                yield _row(model, device, batch, "ffn", "none", step(slots, device, launches, batch))


def _row(model: Model, device: Device, batch: int, part: str, kv: str, result: Step) -> dict:
    return {
        "arch": model.arch,
        "size": model.size,
        "phase": "decode",
        "part": part,
        "batch": batch,
        "context": CONTEXT if KV_HEADS[kv] else 0,
        "kv": kv,
        "sparse_ratio": float(model.sparse_ratio),
        "dtype": "bf16",
        "p50_ms": 1e3 * result.seconds,
        "bytes_declared": float(result.bytes),
        "kind": "modelled",
        "device": device.name,
    }


def published_memory(size: str = "1.6B", gflops: float = 3.50) -> int:
    """Dense parameters of one memory layer that P1's published FLOPs leave room for."""
    spare = gflops * 1e9 / 2 - p1("dense", size).cost().params
    return round(spare / P1_SIZES[size].n_memories - P1_SIZES[size].n_reads * P1_SIZES[size].d_model / 2)


def statements(device: Device, launches: dict[str, int]) -> list[str]:
    """The papers' and summaries' latency statements beside what the model gives for 1.6B."""
    dense, moe, memory = (p1(arch, "1.6B") for arch in ("dense", "moe2", "ultramem"))
    fat = p1("ultramem", "1.6B", memory_params=published_memory())

    def ms(model, batch, kv="mha", **how):
        return 1e3 * decode(model, device, launches, batch, kv, **how).seconds

    slow = {how: ms(moe, 1, experts=how) for how in EXPERTS}
    eager = 1e3 * decode(moe, replace(device, launch_s=1e-5), launches, 1, experts="loop").seconds
    peak = {}
    for kv in KV_HEADS:
        ratios = {b: ms(moe, b, kv) / ms(memory, b, kv) for b in (2**i for i in range(17))}
        best = max(ratios, key=ratios.get)
        peak[kv] = f"{ratios[best]:.1f} at batch {best}"
    near = [ms(memory, b) / ms(dense, b) for b in BATCHES]
    fat_near = [ms(fat, b) / ms(dense, b) for b in BATCHES]
    fits = max(b for b in (2**i for i in range(12)) if resident(moe, b, "mha") < device.memory)
    share = decode(moe, device, launches, 16).bytes_bound_share
    batch_1 = (
        f"B1 'batch 1: UltraMem 12 ms, MoE 72 ms' (6x): modelled {ms(memory, 1):.1f} and {slow['grouped']:.1f} ms, "
        f"{slow['grouped'] / ms(memory, 1):.2f}x; a loop over experts {slow['loop']:.1f} ms ({eager:.1f} with 10 us "
        f"launches), reading all experts {slow['all']:.1f} ms. Bytes do not give 6x at batch 1: a top-2 MoE reads two "
        "experts a layer."
    )
    speed_up = (
        f"B2 / claim 6 '2 to 6x faster than MoE': largest ratio with full cache {peak['mha']}, with 1/8 of the "
        f"key-value heads {peak['gqa']}, without cache {peak['none']}. 6x needs small cache traffic."
    )
    as_dense = (
        f"claim 6 'UltraMem about as fast as dense': {min(near):.2f} to {max(near):.2f} times dense over all batches; "
        f"{min(fat_near):.2f} to {max(fat_near):.2f} if a memory layer has the {published_memory() / 1e6:.0f} M dense "
        "parameters that the published FLOPs allow."
    )
    bound = f"B3 'over 60 % of MoE latency is memory access': {100 * share:.0f} % of the step at batch 16 is bytes-bound."
    capacity = (
        f"A batch of {fits} is the largest power of two that MoE 1.6B with full cache fits in {device.memory / 1e9:.0f}"
        " GB: the published axis to 1000 needs a smaller cache, several devices or one layer at a time."
    )
    return [batch_1, speed_up, as_dense, bound, capacity]


def report(devices: dict[str, Device], launches: dict[str, int]) -> str:
    lines = ["inputs (MODELLED, nothing here was measured)"]
    for key, d in devices.items():
        lines.append(
            f"  {key}: {d.bandwidth / 1e12:g} TB/s x {d.bandwidth_efficiency:g}, {d.flops / 1e12:g} TFLOPS x "
            f"{d.flops_efficiency:g}, launch {1e6 * d.launch_s:g} us, {d.memory / 1e9:g} GB; {d.source}"
        )
    lines.append("  launches per part and layer: " + ", ".join(f"{k} {v}" for k, v in launches.items()))
    for m in models():
        cost = m.cost()
        lines.append(
            f"  {m.arch} {m.size}: {m.n_layers} x {m.d_model}, {cost.params / 1e9:.2f} B stored, "
            f"{cost.active_params / 1e9:.3f} B activated, embedding left out"
        )
    triples = [("dense", "moe2", "ultramem", size) for size in P1_SIZES if size != "6.5B"]
    for key, device in devices.items():
        for kv in KV_HEADS:
            for names in [*triples, ("dense", "moe8", "ultramem_v2", "120B/2.5B")]:
                *archs, size = names
                trio = [p1(a, size) for a in archs] if size in P1_SIZES else [v2(a) for a in archs]
                lines.append(f"\n{key} {size} KV {kv}, context {CONTEXT}: batch, ms of {', '.join(archs)}, ratios, GB")
                for batch in BATCHES:
                    d, m, u = (decode(x, device, launches, batch, kv) for x in trio)
                    fit = "".join("y" if resident(x, batch, kv) < device.memory else "n" for x in trio)
                    lines.append(
                        f"  {batch:6d} {1e3 * d.seconds:9.2f} {1e3 * m.seconds:9.2f} {1e3 * u.seconds:9.2f}"
                        f"   moe/memory {m.seconds / u.seconds:5.2f}   memory/dense {u.seconds / d.seconds:5.2f}"
                        f"   {m.bytes / 1e9:8.1f} {u.bytes / 1e9:8.1f}   fits {fit}"
                    )
        lines += ["", f"{key}: the statements of the papers and of summaries, 1.6B", *statements(device, launches)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="modelled latency of a decoding step at the papers' sizes")
    parser.add_argument("--gpus", type=Path, default=GPUS, help="devices and their parameters")
    parser.add_argument("--out", type=Path, help="write the rows of the latency table here")
    options = parser.parse_args(arguments)
    devices, launches = load(options.gpus)
    print(report(devices, launches))
    if options.out:
        schema.write(options.out, "latency", rows(devices, launches))


if __name__ == "__main__":
    run(main)
