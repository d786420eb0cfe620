"""Which experts and table rows a model really reads, counted from the indices that it hands to the kernels.

`recorded` listens to the kernels that read tables while a model runs, so the count cannot differ from what was read; of
a mixture of experts the kernel is told only how many tokens each expert has, and the router's choice is held to that.
A run's trained model is counted on validation text: a decoding batch of B is one token from each of B windows, each
in the second half of its window, and a record that several of them ask for is read once. Beside it stand the formula's
rows of the same config (`evals.access.declared`). Weights and cache are counted in the dtype of the run's weights, the cache at
the longest context that the model takes and with its own key-value heads. Each run keeps its `access.csv`, and `access.json`
that says of what; one that has them, of the same weights, data and code, is not counted again.

    python -m evals.access.counted --results results/cpu --runs dense-s-s0 ultramem-s-s0 --out results/cpu/access.csv

T tokens, M picks per token (experts, or values of all heads), S windows of W tokens, P positions in each, B batch.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kernels
from evals.access.declared import BATCHES, FEED_FORWARD, ITEMSIZE, View, declared, published
from evals.load import Opened, identity, note, open_run, settled
from evals.records import options, schema
from evals.records.errors import UserError, run
from evals.records.runs import load_run
from models.moe import MoE
from models.transformer import ModelConfig, Transformer

WINDOW = 64
DRAWS = 8
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass
class Read:
    """One layer's reads of one bank of experts or values; record i is row i of each of `tables`."""

    layer: int
    tables: list[Tensor]
    index_TM: Tensor

    @property
    def bank(self) -> tuple[int, int, int]:
        """Which bank it is, its records, and the parameters of one."""
        first = self.tables[0]
        return first.data_ptr(), len(first), sum(table[0].numel() for table in self.tables)


class Reads(list[Read]):
    """What one step read. Layers that share a table read the same bank."""

    def unique(self) -> dict[tuple[int, int, int], int]:
        """Distinct records read of each bank."""
        asked: dict[tuple[int, int, int], list[Tensor]] = {}
        for read in self:
            asked.setdefault(read.bank, []).append(read.index_TM.flatten())
        return {bank: torch.cat(index).unique().numel() for bank, index in asked.items()}

    def counts(self) -> np.ndarray:
        """Records read with and without repeats, and parameters of the latter."""
        unique = self.unique()
        params = sum(n * width for (_, _, width), n in unique.items())
        return np.array([sum(read.index_TM.numel() for read in self), sum(unique.values()), params], dtype=float)


@contextmanager
def recorded(model: Transformer) -> Iterator[Reads]:
    """Fills a list with what the model's layers read from experts and value tables, without gradients.

    Raises:
        ValueError: at the end, if the tables read are not those of the config's cost: an architecture reads one past
            the kernels, or the model did not run.
    """
    # Overlapped memories run in a thread of their own, beside a feed-forward that is in another block.
    reads, now = Reads(), threading.local()

    def enter(layer: int) -> Callable:
        return lambda *_: setattr(now, "layer", layer)

    def read(table: Tensor, index_TM: Tensor) -> None:
        for known in reads:
            if known.index_TM is index_TM:
                known.tables.append(table)
                return
        reads.append(Read(now.layer, [table], index_TM))

    def by_row(kernel: Callable) -> Callable:
        def wrapped(table: Tensor, row_TM: Tensor, *rest: Any) -> Tensor:
            read(table, row_TM)
            return kernel(table, row_TM, *rest)

        return wrapped

    def route(kernel: Callable) -> Callable:
        def wrapped(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            result = kernel(*arguments)
            now.routed = result[2]
            return result

        return wrapped

    def by_choice(kernel: Callable) -> Callable:
        def wrapped(x_TD: Tensor, up_EDU: Tensor, down_EFD: Tensor, expert_Tk: Tensor, *rest: Any) -> Tensor:
            if expert_Tk is not now.routed:
                raise ValueError(f"block {now.layer} multiplies other experts than its router chose")
            read(up_EDU, expert_Tk)
            read(down_EFD, expert_Tk)
            return kernel(x_TD, up_EDU, down_EFD, expert_Tk, *rest)

        return wrapped

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for at, module in slots(model):
            stack.callback(module.register_forward_pre_hook(enter(at)).remove)
        for owner, name, wrap in (
            (kernels, "weighted_lookup", by_row),
            (kernels, "row_dot", by_row),
            (kernels, "experts", by_choice),
            (MoE, "route", route),
        ):
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, wrap(original))
        yield reads
    stored = Counter((part.rows, part.width) for part in model.cfg.cost().only("table").parts)
    found = Counter(bank[1:] for bank in {read.bank for read in reads})
    if found != stored:
        told = " and ".join(f"{dict(tables)}" for tables in (found, stored))
        raise ValueError(f"{model.cfg.arch.name}: (rows, width) and number of the tables read and of those declared: {told}")


def slots(model: Transformer) -> list[tuple[int, nn.Module]]:
    """Feed-forwards and memories with the block that they read."""
    memories = zip(model.placement, model.memories, strict=True)
    return [*((at, block.ffn) for at, block in enumerate(model.blocks)), *((at, memory) for (at, _), memory in memories)]


def kv_name(cfg: ModelConfig) -> str:
    """What the tables call the cache of a model: `mha`, or `gqa` where query heads share keys and values."""
    return "mha" if cfg.kv_heads == cfg.n_heads else "gqa"


def views(cfg: ModelConfig, dtype: str) -> list[View]:
    """Feed-forward and memory alone, and the whole model but the embedding, without cache and with its own."""
    cost = cfg.cost().without("embedding")
    cache = cfg.kv_bytes(cfg.seq_len, ITEMSIZE[dtype])
    return [View("ffn", cost.only(*FEED_FORWARD)), View("model", cost), View("model", cost, kv_name(cfg), cfg.seq_len, cache)]


def asked(model: Transformer, token_SW: Tensor, position_SP: Tensor, chunk: int = 64) -> Reads:
    """What each layer reads at some positions of each window: `index_TM` becomes (S, P, M)."""
    chunks = []
    for window_SW, place_SP in zip(token_SW.split(chunk), position_SP.split(chunk), strict=True):
        with recorded(model) as reads:
            model.hidden(window_SW)
        window_S1 = torch.arange(len(window_SW), device=window_SW.device)[:, None]
        chunks.append([read.index_TM.view(*window_SW.shape, -1)[window_S1, place_SP].int().cpu() for read in reads])
    index = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    return Reads(Read(read.layer, read.tables, index_SPM) for read, index_SPM in zip(reads, index, strict=True))


def steps(reads: Reads, n_windows: int, batch: int, seed: int = 0) -> list[Reads]:
    """`DRAWS` decoding steps of `batch` tokens, each token of another window; the same for every model."""
    rng = np.random.default_rng((seed, batch))
    drawn = []
    for draw in range(DRAWS):
        at_B = torch.from_numpy(rng.permutation(n_windows)[:batch])
        drawn.append(Reads(Read(read.layer, read.tables, read.index_TM[at_B, draw % read.index_TM.shape[1]]) for read in reads))
    return drawn


def dense_params(model: Transformer, reads: Reads) -> list[int]:
    """Parameters that every token reads in the feed-forward and memories of each block."""
    sparse = {table.data_ptr() for read in reads for table in read.tables}
    totals = [0] * len(model.blocks)
    for at, module in slots(model):
        totals[at] += sum(p.numel() for p in module.parameters() if p.data_ptr() not in sparse)
    return totals


def counted(model: Transformer, token_SW: Tensor, batches: tuple[int, ...] = BATCHES, seed: int = 0) -> Iterator[dict]:
    """Rows of the `access` table without run, arch and size: means over `DRAWS` steps, per block and over the model."""
    S, W = token_SW.shape
    rng = np.random.default_rng(seed)
    position_SP = torch.from_numpy(rng.permuted(np.tile(np.arange(W // 2, W), (S, 1)), axis=1)[:, :DRAWS])
    reads = asked(model, token_SW, position_SP.to(token_SW.device))
    dense, dtype = dense_params(model, reads), DTYPES[next(model.parameters()).dtype]
    for batch in batches:
        drawn = steps(reads, S, batch, seed)
        for view in views(model.cfg, dtype):
            yield _row(view, drawn, view.cost.without("table").params, batch, dtype)
            if view.part == "ffn":
                for layer, params in enumerate(dense):
                    alone = [Reads(read for read in step if read.layer == layer) for step in drawn]
                    yield _row(view, alone, params, batch, dtype) | {"layer": layer}


def _row(view: View, drawn: list[Reads], dense: int, batch: int, dtype: str) -> dict:
    n_read, n_unique, sparse = (float(mean) for mean in np.mean([step.counts() for step in drawn], axis=0))
    return {
        "part": view.part,
        "kv": view.kv,
        "context": view.context,
        "dtype": dtype,
        "layer": None,
        "batch": batch,
        "routing": "trained",
        "kind": "counted",
        "rows_read": n_read,
        "rows_unique": n_unique,
        "bytes": ITEMSIZE[dtype] * (dense + sparse) + batch * view.cache,
    }


def windows(opened: Opened, n: int, length: int) -> Tensor:
    """n windows of validation text, evenly spread over all sources.

    Raises:
        UserError: there is not one window of text.
    """
    text = np.concatenate(list(opened.shards.validation.values()))
    if len(text) < length:
        raise UserError(f"{opened.corpus} has {len(text)} tokens of validation text, a window is {length}: prepare more")
    starts = np.linspace(0, len(text) - length, n).astype(np.int64)
    return torch.from_numpy(text[starts[:, None] + np.arange(length)].astype(np.int64))


def rows(folder: Path, batches: tuple[int, ...] = BATCHES, device: str = "cpu") -> Iterator[dict]:
    """Counted and declared rows of the run in `folder`."""
    opened, config = open_run(folder, device), load_run(folder)
    names = {"run": config.run, "arch": config.arch, "size": config.size}
    token_SW = windows(opened, max(batches), min(WINDOW, config.model.seq_len)).to(device)
    for row in counted(opened.model, token_SW, batches):
        yield names | row
    dtype = DTYPES[next(opened.model.parameters()).dtype]
    for view in views(config.model, dtype):
        yield from declared(config.run, config.arch, config.size, view, batches, dtype)


def papers(batches: tuple[int, ...] = BATCHES) -> Iterator[dict]:
    """Declared rows of the papers' sizes; the run is the model's name."""
    for model in published():
        for view in model.views():
            yield from declared(f"{model.arch} {model.size}", model.arch, model.size, view, batches)


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results folder of the preset")
    parser.add_argument("--runs", nargs="*", default=[], help="names of finished runs in it")
    parser.add_argument("--papers", action="store_true", help="add the declared rows of the papers' sizes")
    parser.add_argument("--device", default="cpu", help="runs the models; what they read is counted alike")
    parser.add_argument("--out", type=Path, required=True, help="write the rows of the access table here")
    args = parser.parse_args(arguments)
    found: list[dict] = []
    for folder in (args.results / "runs" / name for name in args.runs):
        source = identity(folder, "access", BATCHES)
        if not settled(folder, "access", source):
            schema.write(folder / "access.csv", "access", rows(folder, device=args.device))
            note(folder, "access", source)
        if (folder / "access.csv").exists():
            found += schema.read(folder / "access.csv", "access").astype(object).to_dict("records")
    schema.write(args.out, "access", found + (list(papers()) if args.papers else []))


if __name__ == "__main__":
    run(main)
