"""Part 5: the decode benchmark at the papers' shapes in bf16: dense, MoE-2 and UltraMem of P1 at 151M, 680M and 1.6B.

Steps, clocks, bytes and rooflines are those of `evals.decode`. A GPU does not hold three 1.6B models, so each is built alone,
by shape, with weights of noise, straight onto the device (`noisy`); tables that do not fit are halved until they do, and the
sparse ratio says so. First feed-forward and memory alone, at every batch; then whole models behind a cache of 2048 tokens, with
as many key-value heads as P1's and with an eighth of them, at the batches whose caches fit. Where Nsight Compute may read the
device's counters, the bytes of single steps stand beside.

`predicted_ms` is the roofline of what a step really asked for at the device's measured speeds: the ratio to hold against a
mixture of experts is that of its roofline, not of our implementation of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from evals.access.counted import kv_name
from evals.access.hardware import FROM_MEMORY, NoCounters, count, find_ncu
from evals.decode import machine
from evals.decode.latency import Plan, row, time_batch
from evals.decode.settings import Latency
from evals.decode.steps import DTYPES, Entry, noisy
from evals.device.parts import Bench, Item, NotNow, Part, Rows
from evals.records import schema
from evals.records.provenance import device_name
from evals.records.runs import plain
from models.count import entries
from models.transformer import ModelConfig

SIZES = {
    size: {"dense": f"Dense-{size}", "moe2": f"MoE-{size}-2in{experts}", "ultramem": f"UltraMem-{size}-x12"}
    for size, experts in (("1.6B", 34), ("151M", 32), ("680M", 33))
}
PARTS = {"ffn": "ffn", "gqa": "model", "mha": "model"}
ARCHS = ("dense", "moe2", "ultramem")
DTYPE: Final = "bf16"
USABLE = 0.85  # of the free memory; the rest is for activations, evictor and graphs
COUNTED = (64, 1)  # batches whose bytes the device's counters are asked for, in models of 151M


def settings(tiny: bool) -> Latency:
    """As presets state the decode benchmark."""
    if tiny:
        return Latency(size="tiny", archs=ARCHS, context=8, batches=(1, 4), dtypes=(DTYPE,), rounds=3, budget_s=0.2)
    return Latency(size="1.6B", archs=ARCHS, context=2048, dtypes=(DTYPE,), rounds=15, budget_s=1.5)


def config(name: str, context: int, tiny: bool) -> ModelConfig:
    """A published model (models/count.py), with room for a token more than its cache holds."""
    cfg = entries()[name].model
    return replace(small(cfg) if tiny else cfg, seq_len=context + 1)


def small(cfg: ModelConfig) -> ModelConfig:
    """The same architecture at shapes that a CPU runs through in moments."""
    changes: dict[str, Any] = {"d_expert": 24, "n_experts": 4} if cfg.arch.name == "moe" else {"d_ff": 64}
    if cfg.arch.name == "ultramem":
        changes |= {"placement": ("0:1",), "n_keys": 16, "d_key": 16, "top_m": 4, "d_value": 16}
    return replace(cfg, arch=replace(cfg.arch, **changes), vocab_size=256, d_model=32, n_layers=2, n_heads=4)


def fitted(cfg: ModelConfig, free: float) -> ModelConfig:
    """The model, its tables halved until it fits into `free` bytes."""
    itemsize = DTYPES[DTYPE].itemsize
    while cfg.cost().params * itemsize > free and (knob := cfg.arch.size_knob):
        size = getattr(cfg.arch, knob)
        smaller = int(size / 2**0.5) if knob == "n_keys" else size // 2
        cfg = replace(cfg, arch=replace(cfg.arch, **{knob: max(smaller, cfg.arch.smallest_size)}))
        if size == getattr(cfg.arch, knob):
            break
    return cfg


def free_memory(device: str) -> float:
    """Bytes that models may take of the device."""
    if device == "cpu":
        return 4e9
    torch.cuda.empty_cache()
    return USABLE * torch.cuda.mem_get_info()[0]


def measured(size: str, name: str, arch: str, view: str, bench: Bench) -> Rows:
    """Every batch of one model: `ffn`, feed-forward and memory alone, or the whole model behind a `mha` or `gqa` cache.

    Raises:
        NotNow: the part's time ends before the last batch.
    """
    how = replace(settings(bench.tiny), size=size, context=1 if view == "ffn" else settings(bench.tiny).context)
    cfg = config(name, how.context, bench.tiny)
    if view == "gqa":
        cfg = replace(cfg, n_kv_heads=max(1, cfg.n_heads // 8))
    cfg = fitted(cfg, free_memory(bench.device))
    cost = cfg.cost().without("embedding")
    plan = Plan(Entry(arch, cost.params / cost.active_params, cfg), noisy(cfg, DTYPES[DTYPE], bench.device), PARTS[view])
    records = machine.records(cfg, DTYPES[DTYPE].itemsize) | {DTYPES[DTYPE].itemsize * cfg.d_model}
    speeds = machine.measure(bench.clock, DTYPES[DTYPE], cfg.d_model, records, max(how.batches))
    rows, device = Rows(), device_name(bench.device)
    for batch in how.batches:
        cache = batch * cfg.kv_bytes(how.context + 1, DTYPES[DTYPE].itemsize)
        if 1.1 * cache > free_memory(bench.device):
            bench.say(f"{name}, {view}: a cache of {cache / 1e9:.0f} GB at batch {batch} does not fit beside the model")
            break
        if bench.left < 0:
            raise NotNow(f"time ended before batch {batch}")
        with torch.no_grad():
            (cell,) = time_batch([plan], bench.clock, batch, how)
            found = row(cell, size, DTYPE, speeds, device)
        rows.append({k: v for k, v in found.items() if k != "device"} | {"model": name, "stored_params": cost.params})
    told = ", ".join(f"{r['batch']}: {r['p50_ms']:.3g} (roofline {r['predicted_ms']:.3g})" for r in rows)
    bench.say(f"{name}, {view}, ms by batch: {told}")
    return rows


def counted(name: str, arch: str, batch: int, bench: Bench) -> Rows:
    """Bytes from the device's memory of one step, by its own counters; a sentence where nobody may read them."""
    how = settings(bench.tiny)
    cfg = config(name, how.context, bench.tiny)
    path = bench.folder / "latency.yaml"
    model = {"arch": arch, "sparse_ratio": 1.0, "model": plain(cfg)}
    path.write_text(yaml.safe_dump({"settings": plain(how), "models": [model]}, sort_keys=False))
    try:
        if bench.device == "cpu":
            raise NoCounters("a CPU has none of a GPU's counters")
        n_bytes = count(find_ncu(), bench.folder, arch, batch, DTYPE)[FROM_MEMORY]
    except (NoCounters, ValueError) as why:
        bench.say(f"hardware counters of {name} at batch {batch}: {why}")
        return []
    same = {"phase": "decode", "variant": "plain", "kind": "measured", "dtype": DTYPE, "sparse_ratio": 1.0}
    view = {"part": "model", "kv": kv_name(cfg), "context": how.context, "batch": batch}
    return [same | view | {"model": name, "arch": arch, "size": name.split("-")[1], "hardware_bytes": n_bytes}]


def items(bench: Bench) -> Iterator[Item]:
    sizes = list(SIZES)[:1] if bench.tiny else list(SIZES)
    for size in sizes:
        for view in PARTS:
            for arch, name in reversed(SIZES[size].items()):
                yield Item(f"{name}, {view}", partial(measured, size, name, arch, view))
    for arch, name in list(reversed(SIZES["151M"].items()))[:2]:
        for batch in COUNTED[:1] if bench.tiny else COUNTED:
            yield Item(f"{name}, counters at batch {batch}", partial(counted, name, arch, batch))


DECODE = Part("decode", "gpu_decode", "decoding at the papers' shapes, batch 1 to 1024", 170.0, items)


def as_latency(folder: Path) -> None:
    """`latency.csv` of a folder, which the ledger and the report of another folder read, from its `decode.csv`."""
    path = folder / "decode.csv"
    if not path.exists():
        return
    frame = schema.read(path, "gpu_decode").astype(object)
    frame = frame[frame["hardware_bytes"].isna()]
    names = [column.name for column in schema.columns("latency")]
    rows = frame.where(frame.notna(), None).to_dict("records")
    schema.write(folder / "latency.csv", "latency", [{n: r[n] for n in names if n in r} for r in rows])
