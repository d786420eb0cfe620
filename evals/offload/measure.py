"""Decoding with value tables larger than memory: times and reads, what a cache would hold, the disk's limit, the loss of bits.

    python -m evals.offload.measure --results results/cpu --runs ultramem-d64-s0 --out results/cpu

Of the runs given, the largest of the architecture that is timed gives the addresses (its reads on test text), and every one
with value tables gives its loss at 32, 16, 8 and 4 bits and its hit rates. Settings are the preset's `measure.offload`;
--sizes-gb and --cache take others. Each table is generated, measured in a process of its own, and deleted.

`snakemake offload` runs it. Tables: offload, offload_disk, offload_hits, offload_loss.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from evals.decode import steps
from evals.load import weights_of
from evals.offload import decode, disk, losses, lru, pages, phone, tables
from evals.offload.settings import Offload
from evals.offload.trace import TEXT, UNIFORM, Trace, trace
from evals.records import options, schema, strict
from evals.records.errors import UserError, run
from evals.records.provenance import ROOT, device_name
from evals.records.runs import RunConfig, load_run, plain
from evals.records.shards import load_shards
from evals.records.tensors import read_tensors, write_tensors
from models.transformer import ModelConfig, Transformer

SHARES = (0.01, 0.05, 0.25)
Say = Callable[[str], None]
Job = Callable[[dict, Trace], list[dict]]


def settings_of(results: Path) -> Offload:
    """UserError: the preset has no such benchmark."""
    path = results / "grid.json"
    asked = json.loads(path.read_text())["measure"].get("offload") if path.exists() else None
    if asked is None:
        raise UserError(f"{path} asks for no measure.offload: name it in the preset, and have snakemake resolve it")
    return strict.build(Offload, asked, f"{path}: measure.offload")


def trained(folder: Path) -> tuple[RunConfig, Transformer]:
    """A finished run and its model, in eval mode.

    Raises:
        UserError: it is not finished, or its weights are elsewhere.
    """
    config = load_run(folder)
    state, _ = read_tensors(weights_of(folder))
    model = config.model.build()
    model.load_state_dict(state)
    model.eval().refresh()
    return config, model


def hits(config: RunConfig, traced: Trace, seed: int = 0) -> Iterator[dict]:
    """Rows of the table `offload_hits`: a cache that all tables of a model share."""
    row_n, rows = traced.flat(), sum(traced.rows_K)
    start_L = np.cumsum([0, *traced.rows_K])[list(traced.table_L)]
    rows_L = np.array(traced.rows_K)[list(traced.table_L)]
    drawn_TLM = np.random.default_rng(seed).integers(rows_L[:, None], size=traced.row_TLM.shape) + start_L[:, None]
    capacities = [max(1, round(share * rows)) for share in SHARES]
    for kind, read_n in ((TEXT, row_n), (UNIFORM, drawn_TLM.ravel())):
        for share, capacity, rate in zip(SHARES, capacities, lru.hit_rates(read_n, capacities), strict=True):
            yield {
                "run": config.run,
                "arch": config.arch,
                "size": config.size,
                "seed": config.seed,
                "addresses": kind,
                "share": share,
                "capacity": capacity,
                "rows": rows,
                "hit_rate": rate,
                "n_reads": len(read_n),
            }


def of_runs(folders: Iterable[Path], settings: Offload, say: Say) -> tuple[list[dict], list[dict], dict[str, Trace]]:
    """Rows of `offload_hits` and `offload_loss`, and the trace of each run with value tables.

    Runs without weights, which were adopted, are left out and said to be.

    Raises:
        UserError: none is left.
    """
    hit_rows: list[dict] = []
    loss_rows: list[dict] = []
    traces = {}
    for folder in folders:
        if not (folder / "model.safetensors").is_file():
            say(f"{folder} is left out: it has no weights here (adopted, or not trained yet)")
            continue
        config, model = trained(folder)
        if not len(model.memories):
            continue
        shards = load_shards(Path(config.data))
        text_WT = np.concatenate(
            [part[:, :-1] for part in losses.windows(shards, config.train.seq_len, settings.trace_tokens).values()]
        )
        traces[config.run] = trace(config.run, model, text_WT)
        hit_rows += hits(config, traces[config.run])
        loss_rows += losses.rows(config, model, shards, settings.loss_tokens)
        say(f"{config.run}: {text_WT.size} tokens traced, loss at 32, 16, 8 and 4 bits taken")
    if not traces:
        raise UserError("no run with value tables has its weights here: train one first, or name it with --runs")
    return hit_rows, loss_rows, traces


def chosen(traces: dict[str, Trace], arch: str, results: Path) -> Trace:
    """The trace of the largest run of the architecture that is timed.

    Raises:
        UserError: there is none.
    """
    sizes = {}
    for name in traces:
        config = load_run(results / "runs" / name)
        if config.arch == arch:
            sizes[name] = (config.model.cost().params, -config.seed)
    if not sizes:
        raise UserError(f"no run of {arch}, which is timed (measure.offload.arch), has its weights here: train one first")
    return traces[max(sizes, key=lambda name: sizes[name])]


def in_scope(job: dict, traced: Trace) -> list[dict]:
    """Measures a job in a process of its own, in a scope whose memory it may limit where systemd gives one.

    Raises:
        UserError: the process failed; its own words are on stderr.
    """
    folder = Path(job["path"]).parent
    asked, found, kept = folder / "job.json", folder / "found.json", folder / "trace.safetensors"
    note = {"run": traced.run, "table_L": traced.table_L, "rows_K": traced.rows_K}
    write_tensors(kept, {"row_TLM": torch.from_numpy(traced.row_TLM)}, note)
    asked.write_text(json.dumps(job | {"trace": str(kept)}))
    command = [*pages.launcher(), sys.executable, "-m", "evals.offload.decode", str(asked), str(found)]
    try:
        if code := subprocess.run(command, cwd=ROOT).returncode:
            raise UserError(f"the process that decodes from {job['path']} ended with code {code}: its last words are above")
        return json.loads(found.read_text())
    finally:
        for path in (asked, found, kept):
            path.unlink(missing_ok=True)


def of_table(
    cfg: ModelConfig, size_gb: float, bits: int, traced: Trace, settings: Offload, device: str, job: Job
) -> tuple[list[dict], list[dict]]:
    """Rows of `offload` and `offload_disk` of one table, generated and deleted.

    Raises:
        UserError: no room on the disk, a trace that does not fit, or the process failed.
    """
    folder = Path(settings.cache).absolute()
    path, cfg = folder / f"{size_gb:g}gb-{bits}.safetensors", decode.sized(cfg, 1e9 * size_gb)
    model = decode.on_meta(cfg)
    whole, limit = tables.needs(model, 16), round(settings.memory * tables.needs(model, 16))
    said = {
        "run": traced.run,
        "arch": cfg.arch.name,
        "table_bytes": float(whole),
        "file_bytes": float(tables.needs(model, bits)),
        "rows": sum(part.rows for part in cfg.cost().only("table").parts),
        "bits": bits,
        "limit_bytes": float(limit),
    }
    asked = {"model": plain(cfg), "path": str(path), "bits": bits, "context": settings.context, "limit": limit}
    asked |= {"tokens": settings.tokens, "fill_s": settings.fill_s}
    try:
        tables.generate(model, path, bits)
        cells = [said | cell for cell in job(asked, traced)]
        picks = traced.row_TLM.shape[2]
        speeds = list(disk.rows(path, tuple(dict.fromkeys((1, picks))), device))
    finally:
        path.unlink(missing_ok=True)
    queued = max(row["bytes_per_s"] for row in speeds if row["pattern"] == "random")
    weights = 2.0 * cfg.cost().without("embedding", "table").params
    rows = []
    for cell in cells:
        read = cell["bytes_disk"]
        rows.append(cell | {"disk_ms": None if read is None else 1e3 * read / queued, "kind": "measured", "device": device})
    modelled = phone.rows((row for row in rows if row["addresses"] == TEXT), weights)
    return [*rows, *modelled], [row | {"table_bytes": float(whole), "bits": bits} for row in speeds]


def measure(results: Path, runs: list[str], settings: Offload, say: Say, job: Job = in_scope) -> dict[str, list[dict]]:
    """Rows of each table of the benchmark, by its name.

    Raises:
        UserError: as the parts; the decode benchmark of the preset does not have the architecture.
    """
    _, entries = steps.load(results)
    entry = next((entry for entry in entries if entry.arch == settings.arch), None)
    if entry is None:
        known = ", ".join(dict.fromkeys(entry.arch for entry in entries))
        raise UserError(f"measure.offload.arch {settings.arch!r} is none of measure.latency.archs: {known}")
    hit_rows, loss_rows, traces = of_runs((results / "runs" / name for name in runs), settings, say)
    traced, device = chosen(traces, settings.arch, results), device_name("cpu")
    found: dict[str, list[dict]] = {"offload": [], "offload_disk": [], "offload_hits": hit_rows, "offload_loss": loss_rows}
    cfg = replace(entry.cfg, seq_len=max(entry.cfg.seq_len, settings.context + 1))
    for size_gb, bits in itertools.product(settings.sizes_gb, settings.bits):
        rows, speeds = of_table(cfg, size_gb, bits, traced, settings, device, job)
        found["offload"] += rows
        found["offload_disk"] += speeds
        for row in rows:
            how = f"{row['addresses']}, {row['state']}, {'' if row['ahead'] else 'not '}ahead, {row['kind']}"
            say(f"{size_gb:g} GB at {bits} bits, {how}: {row['tokens_per_s']:.1f} tokens/s")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results folder of a resolved preset")
    parser.add_argument("--runs", nargs="+", required=True, help="names of finished runs in it")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the four tables")
    parser.add_argument("--sizes-gb", type=float, nargs="+", help="sizes of the tables in place of the preset's")
    parser.add_argument("--cache", help="folder for the generated files in place of the preset's")
    args = parser.parse_args(arguments)
    settings = settings_of(args.results)
    if args.sizes_gb:
        settings = replace(settings, sizes_gb=tuple(args.sizes_gb))
    if args.cache:
        settings = replace(settings, cache=args.cache)
    torch.set_num_threads(1)
    found = measure(args.results, args.runs, settings, lambda text: print(text, flush=True))
    for table, rows in found.items():
        schema.write(args.out / f"{table}.csv", table, rows)


if __name__ == "__main__":
    run(main)
