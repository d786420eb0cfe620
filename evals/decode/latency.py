"""How long one decoding step takes: one new token for each sequence of a batch, all architectures interleaved in one run.

Models and steps are those of evals/decode/steps.py: every step sees new random tokens, and caches are flushed before it.
Whole models are timed, and feed-forward and memory alone (attention left out). Beside each time stand the bytes that the
step really asked for and the roofline of those bytes and products at this machine's measured speeds (`predicted_ms`): what
an implementation loses against its own roofline is p50_ms / predicted_ms, for a mixture of experts as for a memory layer.

    python -m evals.decode.latency --results results/cpu --out latency.csv --machine machine.csv   what `snakemake latency` runs
    python -m evals.decode.latency --results results/cpu --one-step moe2 64 bf16   a single step, for a profiler

Sparsity: `sparse_ratios` repeat the feed-forward part at other table sizes. Variants: `overlap` runs memories beside the
blocks they skip, on a second core or stream (a plain row with two threads stands beside it); `folded` has the projectors
of memory layers multiplied into their tables, measured at the smallest sparse ratio, since folded tables are many times larger.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from evals.access.counted import kv_name
from evals.access.declared import FEED_FORWARD
from evals.decode import machine
from evals.decode.machine import Machine
from evals.decode.roofline import estimate
from evals.decode.settings import Latency
from evals.decode.steps import DTYPES, Entry, Step, asked, build, foldable, load, noisy, ready, slots_only, step_of
from evals.decode.timers import Timer, timer
from evals.records import options, schema
from evals.records.errors import UserError, run
from evals.records.provenance import device_name
from kernels.allocator import keep_memory
from kernels.triton.tune import tuning
from models.fold import fold
from models.overlap import Overlap
from models.transformer import ModelConfig, Transformer

FEWEST_ROUNDS = 3
PARTS = {True: ("model", "ffn"), False: ("ffn",)}  # of the main models, of those of other sparse ratios


@dataclass(frozen=True)
class Plan:
    """One curve: a part of a model, and how it is run. `threads` is all of them on a CPU, a worker's included."""

    entry: Entry
    model: Transformer
    part: str
    variant: str = "plain"
    threads: int | None = None

    @contextmanager
    def threaded(self) -> Iterator[None]:
        """An overlapped step has its threads on two sides, half of them on each."""
        before = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads // 2 if self.variant == "overlap" else self.threads)
        yield
        torch.set_num_threads(before)


@dataclass
class Cell:
    """A point of a curve: its step, what times it, and the seconds it took."""

    plan: Plan
    step: Step
    timed: Callable[[], float]
    seconds: list[float] = field(default_factory=list)


def overlapping(entry: Entry, model: Transformer, threads: int | None) -> list[Plan]:
    """A model whose memories can run beside later blocks, overlapped, and plain on as many threads."""
    if not any(read_at < write_at for read_at, write_at in model.placement):
        return []
    twice = threads and 2 * threads
    plain = [Plan(entry, model, "ffn", "plain", twice)] if twice else []
    return [*plain, Plan(entry, model, "ffn", "overlap", twice)]


def time_batch(planned: list[Plan], clock: Timer, batch: int, settings: Latency, seed: int = 0) -> list[Cell]:
    """Interleaved rounds over all plans, so that none is timed on a quieter machine than the others."""
    steps: dict[int, Step] = {}
    cells = []
    for plan in planned:
        whole = steps.setdefault(id(plan.model), step_of(plan.model, batch, settings.context))
        model = slots_only(plan.model) if plan.part == "ffn" else copy.copy(plan.model)
        model.overlap = Overlap() if plan.variant == "overlap" else None
        step = Step(model, whole.state, whole.tokens_B1, settings.context)
        with plan.threaded():
            cells.append(Cell(plan, step, clock.prepare(step)))
    draw = torch.Generator().manual_seed(seed)
    end = time.perf_counter() + settings.budget_s
    for done in range(settings.rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        tokens_B1 = torch.randint(planned[0].entry.cfg.vocab_size, (batch, 1), generator=draw)
        first = done % len(cells)
        for cell in cells[first:] + cells[:first]:
            cell.step.tokens_B1.copy_(tokens_B1)
            with cell.plan.threaded():
                cell.seconds.append(cell.timed())
    return cells


def row(cell: Cell, size: str, dtype: str, speeds: Machine, device: str) -> dict:
    """A row of the table `latency`."""
    plan, cfg, batch = cell.plan, cell.step.model.cfg, len(cell.step.tokens_B1)
    cost, whole, itemsize = cfg.cost().without("embedding"), plan.part == "model", DTYPES[dtype].itemsize
    cache = batch * cfg.kv_bytes(cell.step.context, itemsize) if whole else 0
    predicted = estimate(speeds, asked(cell.step, plan.part, itemsize))
    milliseconds = 1e3 * np.percentile(cell.seconds, (20, 50, 80))
    return {
        "arch": plan.entry.arch,
        "size": size,
        "phase": "decode",
        "part": plan.part,
        "variant": plan.variant,
        "batch": batch,
        "context": cell.step.context if whole else 0,
        "kv": kv_name(cfg) if whole else "none",
        "sparse_ratio": plan.entry.sparse_ratio if cost.sparse_params else 0.0,
        "dtype": dtype,
        "threads": plan.threads,
        **dict(zip(("p20_ms", "p50_ms", "p80_ms"), map(float, milliseconds), strict=True)),
        "n_iters": len(cell.seconds),
        "bytes_declared": float((cost if whole else cost.only(*FEED_FORWARD)).bytes(batch, itemsize) + cache),
        "bytes_counted": float(predicted.bytes),
        "predicted_ms": 1e3 * predicted.seconds,
        "kind": "measured",
        "device": device,
    }


def free_memory() -> int:
    """Bytes of the GPU, or of the machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil  # here, because a machine that lends a GPU may not have it

    return psutil.virtual_memory().available


def too_large(models: list[ModelConfig], settings: Latency, itemsize: int) -> str | None:
    """A sentence where models and caches of one interleaved run would not fit into the machine's memory."""
    weights = sum(cfg.cost().params for cfg in models)
    cache = max(settings.batches) * sum(cfg.kv_bytes(settings.context, 1) for cfg in models)
    need = itemsize * (weights + cache)
    free = free_memory()
    if need <= 0.9 * free:
        return None
    return (
        f"models and caches of {need / 1e9:.1f} GB do not fit into {free / 1e9:.1f} GB of free memory and are not timed: make "
        "measure.latency's size, context, batches or sparse ratios smaller"
    )


def measure(settings: Latency, entries: list[Entry], device: str, say: Callable[[str], None]) -> tuple[list[dict], list[dict]]:
    """Rows of `latency` and of `machine`; a sparse ratio whose models do not fit into memory is left out, and said so."""
    where, label = torch.device(device), device_name(device)
    threads = settings.threads if device == "cpu" else None
    clock = timer(where)
    if threads:
        torch.set_num_threads(threads)
    ratios = list(dict.fromkeys(entry.sparse_ratio for entry in entries))
    rows: list[dict] = []
    machines: dict = {}
    speeds: list = []
    for ratio in ratios:
        main = ratio == ratios[0]
        group = [e for e in entries if e.sparse_ratio == ratio and (main or e.cfg.arch.size_knob)]
        if why := too_large([e.cfg for e in group], settings, max(DTYPES[d].itemsize for d in settings.dtypes)):
            say(f"sparse ratio {ratio:g}: {why}")
            continue
        keep_memory(False)  # so that weights lie in pages of their own, huge ones where the system gives them
        built = {e.arch: build(e.cfg, DTYPES[settings.dtypes[0]], where) for e in group}
        keep_memory()
        for dtype in settings.dtypes:
            models = {arch: ready(model, DTYPES[dtype], where) for arch, model in built.items()}
            if dtype not in machines:
                itemsize = DTYPES[dtype].itemsize
                records = set().union(*(machine.records(entry.cfg, itemsize) for entry in entries))
                records |= {itemsize * entries[0].cfg.d_model}
                most = max(settings.batches)
                machines[dtype] = machine.measure(clock, DTYPES[dtype], entries[0].cfg.d_model, records, most)
                speeds += machine.rows(machines[dtype], dtype, label, threads)
            planned = [Plan(e, models[e.arch], part, "plain", threads) for part in PARTS[main] for e in group]
            if main:
                planned += [plan for e in group for plan in overlapping(e, models[e.arch], threads)]
            if ratio == min(ratios):
                planned += [Plan(e, fold(models[e.arch]), "ffn", "folded", threads) for e in group if foldable(e.cfg)]
            for batch in settings.batches if main else settings.sparsity_batches:
                cells = time_batch(planned, clock, batch, settings)
                rows += [row(cell, settings.size, dtype, machines[dtype], label) for cell in cells]
                say(summary(cells, dtype, batch, ratio))
                del cells
        del built, models, planned
    return rows, speeds


def summary(cells: list[Cell], dtype: str, batch: int, ratio: float) -> str:
    times = ", ".join(
        f"{cell.plan.entry.arch} {1e3 * statistics.median(cell.seconds):.1f}"
        for cell in cells
        if cell.plan.part == "ffn" and cell.plan.variant == "plain"
    )
    return f"{dtype}, sparse ratio {ratio:g}, batch {batch}, {len(cells[0].seconds)} rounds; feed-forward part, ms: {times}"


def one_step(entries: list[Entry], settings: Latency, arch: str, batch: int, dtype: str, device: str) -> None:
    """One step between cudaProfilerStart and cudaProfilerStop, after one that compiles and tunes.

    Raises:
        UserError: no such architecture or dtype.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        found.setdefault(entry.arch, entry)
    for what, name, known in (("architecture", arch, found), ("dtype", dtype, DTYPES)):
        if name not in known:
            raise UserError(f"{what} {name!r} is not one of {', '.join(known)}")
    step = step_of(noisy(found[arch].cfg, DTYPES[dtype], device), batch, settings.context)
    step.tokens_B1.random_(found[arch].cfg.vocab_size, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        with tuning():
            step()
        if device == "cpu":
            step()
            return
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results folder of a resolved preset")
    parser.add_argument("--out", type=Path, help="write the rows of the latency table here")
    parser.add_argument("--machine", type=Path, help="write the machine's own speeds here")
    parser.add_argument("--device", help="cpu or cuda; by default CUDA where there is one")
    parser.add_argument("--one-step", nargs=3, metavar=("ARCH", "BATCH", "DTYPE"), help="run one step and nothing else")
    args = parser.parse_args(arguments)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings, entries = load(args.results)
    if args.one_step:
        arch, batch, dtype = args.one_step
        if not batch.isdecimal():
            raise UserError(f"batch {batch!r} is not a whole number")
        return one_step(entries, settings, arch, int(batch), dtype, device)
    with torch.no_grad():
        rows, speeds = measure(settings, entries, device, lambda text: print(text, flush=True))
    if args.out:
        schema.write(args.out, "latency", rows)
    if args.machine:
        schema.write(args.machine, "machine", speeds)


if __name__ == "__main__":
    run(main)
