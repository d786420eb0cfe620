"""How long a decoding step should take: the slower of bytes and FLOPs for every part of every layer, plus launches.

    t = sum over parts of max(bytes / bandwidth, flops / rate) + launches * launch_s

`estimate` is that sum over `Operation`s, on anything that has `Speeds`: a GPU of the table (`Device`), or the machine at
hand as it was measured (evals/decode/machine.py), on which it predicts the steps that the decode benchmark times from the
records that they asked for (evals/decode/steps.py).

`step` models a step that nobody ran: bytes are the distinct records of `evals.access.declared` under one routing, FLOPs
2 x activated parameters x batch, the cache its own part. The model knows nothing of the last-level cache, of overlap
between parts or of more than one device, so it is a statement about what bytes and FLOPs allow, not a measurement: every
row it writes says `modelled`. The two tricks of inference are modelled for P1's UltraMem: `folded`
(evals/access/declared.py) and `overlapped`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from evals.access.declared import CONTEXT, KV_HEADS, Model, folded, kv_bytes, rows_read
from evals.decode.settings import GPUS
from evals.records.errors import UserError
from models.cost import Part

EXPERTS = ("grouped", "loop", "all")
BATCHES = tuple(4**i for i in range(9))


class Speeds(Protocol):
    """What a device can do: `read` in order, `gathered` in records of so many bytes, `rate` of products with so many rows.

    Bytes/s, bytes/s, FLOPs/s; `launch_s` are the seconds of one kernel launch.
    """

    @property
    def read(self) -> float: ...

    @property
    def launch_s(self) -> float: ...

    def gathered(self, record: int) -> float: ...

    def rate(self, rows: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU of the table, as fast for every record and number of rows.

    Peaks in bytes/s and FLOPs/s, the shares of them that are reached, and the seconds of one kernel launch.
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

    @property
    def read(self) -> float:
        return self.bandwidth * self.bandwidth_efficiency

    def gathered(self, record: int) -> float:
        return self.read

    def rate(self, rows: float) -> float:
        return self.flops * self.flops_efficiency


@dataclass(frozen=True)
class Operation:
    """What one part of one layer does in a step, `times` over.

    Args:
        rows: of the left side of its product.
        record: bytes of each record where they are gathered; None where they are read in order.
    """

    bytes: float
    flops: float = 0.0
    launches: float = 0.0
    rows: float = 1.0
    record: int | None = None
    times: int = 1


@dataclass(frozen=True)
class Estimate:
    """Seconds and what they are made of; `bytes_bound_s` is the time of the parts that bytes, not FLOPs, decide."""

    seconds: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0
    bytes_bound_s: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, n: int) -> Estimate:
        return Estimate(*(getattr(self, f.name) * n for f in fields(self)))

    @property
    def bytes_bound_share(self) -> float:
        return self.bytes_bound_s / self.seconds


def estimate(speeds: Speeds, operations: Iterable[Operation]) -> Estimate:
    """Operations one after the other, each the slower of its bytes and its FLOPs, plus its launches."""
    total = Estimate()
    for one in operations:
        by_bytes = one.bytes / (speeds.gathered(one.record) if one.record else speeds.read)
        by_flops = one.flops / speeds.rate(one.rows)
        seconds = max(by_bytes, by_flops) + one.launches * speeds.launch_s
        bound = by_bytes if by_bytes >= by_flops else 0.0
        total += Estimate(seconds, one.bytes, one.flops, one.launches, bound) * one.times
    return total


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
    speeds: Speeds,
    launches: dict[str, int],
    batch: int,
    itemsize: int = 2,
    cache: Cache | None = None,
    routing: str = "uniform",
    experts: str = "grouped",
) -> Estimate:
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
    return estimate(speeds, _operations(list(parts), launches, batch, itemsize, cache, routing, experts))


def _operations(
    parts: list[Part], launches: dict[str, int], batch: int, itemsize: int, cache: Cache | None, routing: str, experts: str
) -> Iterator[Operation]:
    for part in dict.fromkeys(parts):
        read, kernels = rows_read(part, batch, routing), _launches(part, launches)
        if part.name == "experts" and experts == "loop":
            kernels = 2 * 3 * read
        elif part.name == "experts" and experts == "all":
            read = part.rows
        gathered = part.role == "table" and part.name != "experts"
        yield Operation(
            itemsize * read * part.width,
            2 * part.active_params * batch,
            kernels,
            rows=part.reads * batch / read,
            record=itemsize * part.width if gathered else None,
            times=parts.count(part),
        )
    if cache:
        moved = kv_bytes(cache.d_model, 1, batch, cache.context, cache.kv, itemsize)
        flops = 4 * cache.context * cache.d_model * batch if KV_HEADS[cache.kv] else 0
        yield Operation(moved, flops, launches["kv"], times=cache.n_layers)


def _launches(part: Part, launches: dict[str, int]) -> int:
    for key in (part.name, part.role):
        if key in launches:
            return launches[key]
    raise ValueError(f"no number of launches for part {part.name!r} or role {part.role!r}: add it to gpus.yaml")


def decode(
    model: Model, device: Speeds, launches: dict[str, int], batch: int, kv: str = "mha", part: str = "model", **how: Any
) -> Estimate:
    """A decoding step of a published model in bf16 with `CONTEXT` cached tokens; part "ffn" leaves attention out."""
    if part == "ffn":
        return step(model.slots.parts, device, launches, batch, **how)
    return step(model.cost(kv).parts, device, launches, batch, cache=Cache(model.d_model, model.n_layers, kv=kv), **how)


def overlapped(
    model: Model, device: Speeds, launches: dict[str, int], batch: int, kv: str = "mha", part: str = "model"
) -> Estimate:
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
    at_peak = estimate(device, [Operation(both.bytes, both.flops)])
    hidden = both.seconds - max(lookup.seconds, blocks.seconds, at_peak.seconds)
    return replace(plain, seconds=plain.seconds - layers * hidden)


def _folded(model: Model, *how: Any, **named: Any) -> Estimate:
    return decode(folded(model), *how, **named)


VARIANTS: dict[str, Callable[..., Estimate]] = {"plain": decode, "overlap": overlapped, "folded": _folded}
