"""How long a decoding step should take: the slower of bytes and FLOPs for every part of every layer, plus launches.

    t = sum over parts of max(bytes / (bandwidth * eff_b), flops / (peak * eff_f)) + launches * launch_s

Bytes are the distinct records of `evals.access.declared` under one routing, FLOPs 2 x activated parameters x batch, the cache
its own part. The model knows nothing of the last-level cache, of overlap between parts or of more than one device, so
it is a statement about what bytes and FLOPs allow, not a measurement: every row it writes says `modelled`. The same
function predicts our own models on a machine whose bandwidth, FLOPs and launch time were measured.

The two tricks of inference are modelled for P1's UltraMem: `folded` (evals/access/declared.py) and `overlapped`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from evals.access.declared import CONTEXT, KV_HEADS, Model, folded, kv_bytes, rows_read
from evals.decode.settings import GPUS
from evals.records.errors import UserError
from models.cost import Part

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
