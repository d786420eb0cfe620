"""How long a decoding step should take: the slower of bytes and FLOPs for every part of every layer, plus launches.

    t = sum over parts of max(bytes / (bandwidth * eff_b), flops / (peak * eff_f)) + launches * launch_s

Bytes are the distinct records of `evals.access` under one routing, FLOPs 2 x activated parameters x batch, the cache
its own part. The model knows nothing of the last-level cache, of overlap between parts or of more than one device, so
it is a statement about what bytes and FLOPs allow, not a measurement: every row it writes says `modelled`. The same
function predicts our own models on a machine whose bandwidth, FLOPs and launch time were measured.

The two tricks of inference are modelled for P1's UltraMem: `folded` (evals/access.py) and `overlapped`.

    python -m evals.roofline [--gpus FILE] [--out FILE.csv] [--statements FILE.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import yaml

from evals import schema
from evals.access import CONTEXT, KV_HEADS, P1_SIZES, Model, folded, kv_bytes, p1, published, resident, rows_read, v2
from models.cost import Part
from workflows.errors import UserError, run

GPUS = Path(__file__).with_name("gpus.yaml")
EXPERTS = ("grouped", "loop", "all")
BATCHES = tuple(4**i for i in range(9))


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks in bytes/s and FLOPs/s, the shares of them that are reached, and the seconds of one kernel launch.

    `training_utilisation` is the share of `flops` that training reaches, by `training_source`.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float
    bandwidth_efficiency: float = 1.0
    flops_efficiency: float = 1.0
    launch_s: float = 0.0
    source: str = ""
    training_utilisation: float = 0.0
    training_source: str = ""


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
    for part in dict.fromkeys(parts):
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


def decode(
    model: Model, device: Device, launches: dict[str, int], batch: int, kv: str = "mha", part: str = "model", **how
) -> Step:
    """A decoding step of a published model in bf16 with `CONTEXT` cached tokens; part "ffn" leaves attention out."""
    if part == "ffn":
        return step(model.slots.parts, device, launches, batch, **how)
    return step(model.cost(kv).parts, device, launches, batch, cache=Cache(model.d_model, model.n_layers, kv=kv), **how)


def overlapped(
    model: Model, device: Device, launches: dict[str, int], batch: int, kv: str = "mha", part: str = "model"
) -> Step:
    """The step of a memory model whose lookups run beside other work: the least time that two streams could take.

    A memory layer placed i:j runs beside the feed-forward of block i and `model.shadow` = j - i whole blocks, but both
    move bytes through one memory and compute on one set of units: together they take no less than either alone, than
    their bytes at the bandwidth, or than their FLOPs at the peak. Where both are bound by bytes, launches alone hide.
    """
    memory = model.slots.only("memory", "table").parts
    layers = sum(p.sparse for p in memory)
    attention, ffn = model.cost(kv).only("attention").parts[0], model.slots.only("ffn").parts[0]
    beside, cache = [ffn] * (1 + model.shadow), None
    plain = decode(model, device, launches, batch, kv, part)
    if part == "model":
        beside, cache = beside + [attention] * model.shadow, Cache(model.d_model, model.shadow, kv=kv)
    lookup = step(memory[: len(memory) // layers], device, launches, batch)
    blocks = step(beside, device, launches, batch, cache=cache)
    both = lookup + blocks
    by_bytes = both.bytes / (device.bandwidth * device.bandwidth_efficiency)
    by_flops = both.flops / (device.flops * device.flops_efficiency)
    hidden = both.seconds - max(lookup.seconds, blocks.seconds, by_bytes, by_flops)
    return replace(plain, seconds=plain.seconds - layers * hidden)


def _folded(model: Model, *how, **named) -> Step:
    return decode(folded(model), *how, **named)


VARIANTS: dict[str, Callable[..., Step]] = {"plain": decode, "overlap": overlapped, "folded": _folded}


def rows(devices: dict[str, Device], launches: dict[str, int], batches: Iterable[int] = BATCHES) -> Iterator[dict]:
    """Rows of the `latency` table, kind `modelled`: whole model with each cache, and feed-forward and memory alone."""
    views = [("ffn", "none"), *(("model", kv) for kv in KV_HEADS)]
    points = [(d, m, b, *view) for d in devices.values() for m in published() for b in batches for view in views]
    for device, model, batch, part, kv in points:
        for variant in VARIANTS if model.arch == "ultramem" else ("plain",):
            result = VARIANTS[variant](model, device, launches, batch, kv, part=part)
            yield {
                "arch": model.arch,
                "size": model.size,
                "phase": "decode",
                "part": part,
                "variant": variant,
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


def report(devices: dict[str, Device], launches: dict[str, int], stated: Iterable[Mapping[str, str]]) -> str:
    """The inputs, every modelled step, and the statements of `evals.statements` about them."""
    lines = ["inputs (MODELLED, nothing here was measured)"]
    for key, d in devices.items():
        lines.append(
            f"  {key}: {d.bandwidth / 1e12:g} TB/s x {d.bandwidth_efficiency:g}, {d.flops / 1e12:g} TFLOPS x "
            f"{d.flops_efficiency:g}, launch {1e6 * d.launch_s:g} us, {d.memory / 1e9:g} GB; {d.source}"
        )
    lines.append("  launches per part and layer: " + ", ".join(f"{k} {v}" for k, v in launches.items()))
    for m in published():
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
    for row in stated:
        was = f" ({row['published']})" if row["published"] else ""
        lines.append(f"\n{row['device']}, {row['id']}: {row['statement']}{was}. {row['verdict']}: {row['modelled']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="modelled latency of a decoding step at the papers' sizes")
    parser.add_argument("--gpus", type=Path, default=GPUS, help="devices and their parameters")
    parser.add_argument("--out", type=Path, help="write the rows of the latency table here")
    parser.add_argument("--statements", type=Path, help="write the papers' statements and what the model says of them here")
    options = parser.parse_args(arguments)
    from evals.statements import statements

    devices, launches = load(options.gpus)
    stated = [row for device in devices.values() for row in statements(device, launches)]
    print(report(devices, launches, stated))
    if options.out:
        schema.write(options.out, "latency", rows(devices, launches))
    if options.statements:
        options.statements.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(stated).to_csv(options.statements, index=False)


if __name__ == "__main__":
    run(main)
