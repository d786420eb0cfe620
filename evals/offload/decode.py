"""Times decoding with value tables in a file under a memory limit: one process for one file.

    python -m evals.offload.decode JOB.json FOUND.json            what evals.offload.measure starts, in a scope of its own

The model has random weights and the size of the decode benchmark's, its key grid that of the file's rows; what its selection
picks is replaced by the traced addresses, so that the work is all done and the reads are real text's. A cold cell begins with
nothing of the file in memory. A warm one reads the rows of the tokens before, without computing, until as much is held as the
limit allows. Time is that of one token, logits included; the limit is kept between tokens, outside of it.

M rows that a layer reads per token.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from evals.decode.steps import fill
from evals.offload import pages
from evals.offload.trace import TEXT, UNIFORM, Addresses, Trace
from evals.records.errors import run
from evals.records.runs import build_model
from evals.records.tensors import read_tensors
from models.offload import Ahead, Bits, Offload, offload, record_bytes, tables_of
from models.rows import PAGE, RowFile
from models.transformer import ModelConfig, Transformer

PROBE = 1 << 10  # keys an axis
DTYPE = torch.bfloat16
STATES = ("cold", "warm")


def on_meta(cfg: ModelConfig) -> Transformer:
    """The model without memory of its own, in the dtype that is timed."""
    with torch.device("meta"):
        return cfg.build().to(DTYPE).eval().requires_grad_(False)


def sized(cfg: ModelConfig, n_bytes: float) -> ModelConfig:
    """The model with so many keys that its value tables take about `n_bytes` at 16 bits a value."""

    def with_keys(n_keys: int) -> ModelConfig:
        arch: Any = cfg.arch
        return replace(cfg, arch=replace(arch, n_keys=n_keys))

    probe = 2 * with_keys(PROBE).cost().only("table").params
    arch: Any = cfg.arch
    return with_keys(max(arch.smallest_size, isqrt(round(n_bytes / probe * PROBE**2))))


@dataclass
class Cursor:
    """The token that is decoded, and the addresses that layers are given in place of their own."""

    addresses: Addresses
    token: int = 0

    def steer(self, model: Transformer) -> None:
        for layer, memory in enumerate(model.memories):
            blocks = memory.cfg.blocks

            def address(index_TM: Tensor, _: object = None, layer: int = layer, blocks: int = blocks) -> tuple:
                row_TM = torch.from_numpy(self.addresses(self.token, layer))[None]
                return row_TM, index_TM % blocks if blocks > 1 else None

            memory.address = address

    def rows(self, token: int, layers: int) -> list[np.ndarray]:
        return [np.unique(self.addresses(token, layer)) for layer in range(layers)]


class Bench:
    """A model whose tables lie in `path`, and the cells that are timed of it."""

    def __init__(self, cfg: ModelConfig, path: Path, bits: Bits, context: int, most: int, limited: str):
        model = on_meta(cfg)
        self.shapes = {name: (len(table.values_NC), record_bytes(table, bits)) for name, table in tables_of(model).items()}
        offload(model, Offload(bits=bits), path)
        torch.manual_seed(0)
        fill(model, "cpu")
        model.refresh()
        self.model, self.context, self.state = model, context, model.decode_state(1, context + 1)
        self.state.pretend(context)
        tables: Any = [memory.table.values_NC for memory in model.memories]
        self.file: RowFile = tables[0].file
        self.firsts = [rows.first for rows in tables]
        self.sizes = [rows.bytes_NB.shape[1] for rows in tables]
        self.fits = len(self.file.map) <= most
        self.limited = pages.WHOLE if self.fits else limited
        self.cache = pages.Cache(self.file, most, dropped=self.limited == pages.DROPPED)
        self.process, self.draw = psutil.Process(), torch.Generator().manual_seed(0)

    def pages_of(self, rows_L: list[np.ndarray]) -> list[int]:
        """The pages in which the rows of each layer lie, each once."""
        found: set[int] = set()
        for row_M, first, size in zip(rows_L, self.firsts, self.sizes, strict=True):
            start_M = first + row_M * size
            found.update((start_M // PAGE).tolist(), ((start_M + size - 1) // PAGE).tolist())
        return sorted(found)

    def fill(self, cursor: Cursor, seconds: float) -> int:
        """Reads the rows of the tokens from the cursor on until the limit or the time is reached; returns those tokens."""
        end, start = time.perf_counter() + seconds, cursor.token
        if self.fits:
            buffer = bytearray(1 << 24)
            with open(self.file.path, "rb", buffering=0) as whole:  # in order, and so faster than page by page
                while whole.readinto(buffer):
                    pass
            return 0
        while time.perf_counter() < end and not (cursor.token % 64 == 0 and self.cache.full):
            rows_L = cursor.rows(cursor.token, len(self.sizes))
            for row_M, first, size in zip(rows_L, self.firsts, self.sizes, strict=True):
                self.file.ask((first + row_M * size).tolist(), size)
            read = self.pages_of(rows_L)
            self.file.bytes_X[torch.tensor(read) * PAGE].sum()  # waits for them
            self.cache.read(read)
            cursor.token += 1
        return cursor.token - start

    @torch.no_grad()
    def time(self, cursor: Cursor, tokens: int, ahead: bool) -> dict:
        """Decodes tokens from the cursor on."""
        self.model.overlap = Ahead() if ahead else None  # type: ignore[assignment]
        cursor.steer(self.model)
        seconds, rows, size, before = [], 0, 0, disk_bytes()
        for _ in range(tokens):
            rows_L = cursor.rows(cursor.token, len(self.sizes))
            token_B1 = torch.randint(self.model.cfg.vocab_size, (1, 1), generator=self.draw)
            self.state.length = self.context
            start = time.perf_counter()
            self.model.logits(token_B1, self.state)
            seconds.append(time.perf_counter() - start)
            self.cache.read(self.pages_of(rows_L))
            rows += sum(map(len, rows_L))
            size += sum(len(row_M) * of for row_M, of in zip(rows_L, self.sizes, strict=True))
            cursor.token += 1
        after = disk_bytes()
        return {
            "tokens_per_s": tokens / sum(seconds),
            "p50_ms": 1e3 * float(np.percentile(seconds, 50)),
            "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
            "n_tokens": tokens,
            "resident_bytes": self.process.memory_info().rss,
            "cached_bytes": pages.resident(self.file),
            "rows_read": rows / tokens,
            "bytes_read": size / tokens,
            "bytes_disk": None if before is None or after is None else (after - before) / tokens,
        }

    def cells(self, trace: Trace, tokens: int, fill_s: float) -> Iterator[dict]:
        """Rows of the table `offload` that say what was timed: both addresses, cold and warm, ahead and not."""
        # The smallest table's rows, so that every layer's addresses lie in its table; layers of one model have equal ones.
        n_rows, picks = min(rows for rows, _ in self.shapes.values()), self.picks()
        for kind in (TEXT, UNIFORM):
            cursor = Cursor(Addresses(trace, kind, n_rows, picks))
            cursor.steer(self.model)
            self.state.length = self.context
            with torch.no_grad():  # what is compiled or kept at first use
                self.model.logits(torch.zeros(1, 1, dtype=torch.int64), self.state)
            for state in STATES:
                self.cache.empty()
                filled = self.fill(cursor, fill_s) if state == "warm" else 0
                for ahead in (True, False):
                    if state == "cold":
                        self.cache.empty()
                    found = self.time(cursor, tokens, ahead)
                    said = {"addresses": kind, "state": state, "ahead": ahead, "limit": self.limited, "tokens_before": filled}
                    yield said | found
        self.cache.close()

    def picks(self) -> int:
        cfg = self.model.memories[0].cfg
        return cfg.n_mem_heads * cfg.top_m


def disk_bytes() -> int | None:
    """What this process has had read from disks; None where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


def measured(job: dict, trace: Trace) -> list[dict]:
    """The cells of a job: {model, path, bits, context, limit, tokens, fill_s}."""
    torch.set_num_threads(1)
    cfg = build_model(job["model"], "job")
    folder = pages.own_cgroup()
    bench = Bench(cfg, Path(job["path"]), job["bits"], job["context"], job["limit"], pages.DROPPED)
    if folder is not None and not bench.fits:
        bench.cache.empty()
        bench.limited = pages.limit(job["limit"], folder)
        bench.cache.dropped = bench.limited == pages.DROPPED
    return list(bench.cells(trace, job["tokens"], job["fill_s"]))


def traced(path: Path) -> Trace:
    """The trace that evals.offload.measure wrote."""
    tensors, note = read_tensors(path)
    return Trace(note["run"], tensors["row_TLM"].numpy(), tuple(note["table_L"]), tuple(note["rows_K"]))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(measured(job, traced(Path(job["trace"])))))


if __name__ == "__main__":
    run(main)
