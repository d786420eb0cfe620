"""Health of sparse layers: each layer's own `health()` on the inputs it meets in the running model; how often training read
each row of a value table, and what a finished model loses on single tokens, beside how often the rows that they read were read.

T tokens, M picks per token, N table rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import kernels
from evals.records.shards import Shards
from models.balance import summed
from models.value_table import Table

TOKENS = 16_384  # of the test text whose losses are kept, at most: 100 kB a run


@torch.no_grad()
def measure(model: nn.Module, tokens: np.ndarray, n_tokens: int, device: str) -> list[dict]:
    """Rows {layer, metric, value} of every slot module with `health(x_BTD)`, on the first `n_tokens` tokens.

    `layer` is the block whose input a module reads. Metrics of a memory beside experts of the same block begin "memory.".
    """
    seq_len = min(model.cfg.seq_len, n_tokens)
    count = max(1, min(n_tokens, len(tokens)) // seq_len)
    batch_BT = torch.from_numpy(tokens[: count * seq_len].astype(np.int64).reshape(count, seq_len)).to(device)
    slots = [(layer, block.ffn) for layer, block in enumerate(model.blocks)]
    slots += [(read_at, memory) for memory, (read_at, _) in zip(model.memories, model.placement, strict=True)]
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple) -> None:
        inputs[module] = args[0]

    slots = [(layer, module) for layer, module in slots if hasattr(module, "health")]
    handles = [module.register_forward_pre_hook(keep) for _, module in slots]
    model.hidden(batch_BT)
    for handle in handles:
        handle.remove()
    rows: dict[tuple[int, str], float] = {}
    for layer, module in slots:
        found = module.health(inputs[module])
        beside = "memory." if any((layer, metric) in rows for metric in found) else ""
        rows |= {(layer, beside + metric): value for metric, value in found.items()}
    return [{"layer": layer, "metric": metric, "value": value} for (layer, metric), value in rows.items()]


def tables(model: nn.Module) -> dict[str, Table]:
    """Value tables by their names; one that layers share is there once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Table)}


def watch(table: Table, see: Callable[[Tensor], None]) -> Callable[[], None]:
    """From now on, `see` gets the rows (T, M) of every look-up of values before they are read. Returns what ends it."""
    read = table.read

    def seen(name: str, row_TM: Tensor) -> tuple[Tensor, Tensor]:
        if name == "values_NC":
            see(row_TM)
        return read(name, row_TM)

    vars(table)["read"] = seen
    return lambda: vars(table).update(read=read)


def count_reads(model: nn.Module) -> dict[str, Tensor]:
    """How often each row of each value table was read, (N,) int64 by the table's name: from now on, and kept up to date.

    Exact: every pick of every training token, over all micro-batches and workers; forward passes without gradients are not
    counted.
    """
    counts = {}

    def follow(table: Table, count_N: Tensor) -> None:
        def see(row_TM: Tensor) -> None:
            if table.training and torch.is_grad_enabled():
                row_X = row_TM.flatten()
                count_N.add_(summed(torch.zeros_like(count_N).scatter_add_(0, row_X, torch.ones_like(row_X))))

        watch(table, see)

    for name, table in tables(model).items():
        counts[name] = torch.zeros(len(table.values_NC), dtype=torch.int64, device=table.values_NC.device)
        follow(table, counts[name])
    return counts


def sample(shards: Shards, seq_len: int) -> dict[str, np.ndarray]:
    """The first test windows (W, seq_len + 1) of each headline source, `TOKENS` targets in all or a few less.

    The same for all runs that read the same data in windows of the same length.
    """
    names = [name for name in shards.test if shards.meta["sources"][name].get("headline", True)]
    share = TOKENS // len(names)
    width, found = min(seq_len, share), {}
    for name in names:
        tokens = shards.test[name]
        starts = range(0, min(share // width, (len(tokens) - 1) // width) * width, width)
        if starts:
            found[name] = np.stack([tokens[start : start + width + 1] for start in starts]).astype(np.int64)
    return found


def frequency(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each token stands in `tokens`, (vocab_size,); a piece at a time, for the text may not fit into memory."""
    pieces = (tokens[start : start + (1 << 20)] for start in range(0, len(tokens), 1 << 20))
    return sum((np.bincount(piece, minlength=vocab_size) for piece in pieces), np.zeros(vocab_size, np.int64))


@torch.no_grad()
def single_tokens(
    model: nn.Module, reads: dict[str, Tensor], shards: Shards, seq_len: int, device: str, precision: str
) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """What the model, as it stands (in eval mode), loses on each target of the `sample`.

    Returns:
        float16 vectors over the targets: `loss` in nats; `frequency`, log2(1 + times that the target stands in the training
        shard); where there are memories `reads`, the mean over the picks of all of them, unweighted, of log2(1 + times that
        training read the row). And {source: tokens, window}, in the order of the vectors.
    """
    windows = sample(shards, seq_len)
    losses: list[Tensor] = []
    means: list[Tensor] = []
    picked: list[Tensor] = []
    logs = {name: torch.log2(1 + count_N.double()) for name, count_N in reads.items()}
    named = tables(model)
    ends = [watch(named[name], lambda row_TM, log_N=log_N: picked.append(log_N[row_TM])) for name, log_N in logs.items()]
    for window in (window for batch in windows.values() for window in batch):
        token_T = torch.from_numpy(window).to(device)
        picked.clear()
        hidden_TD = model.hidden(token_T[None, :-1])[0][0]
        losses.append(kernels.cross_entropy(hidden_TD, model.head_weight, token_T[1:], None, precision, "none"))
        means += [torch.cat(picked, 1).mean(1)] if reads else []
    for end in ends:
        end()
    count_V = frequency(shards.train, len(model.head_weight))
    targets = np.concatenate([batch[:, 1:].ravel() for batch in windows.values()])
    found = {"loss": torch.cat(losses), "frequency": torch.from_numpy(np.log2(1 + count_V[targets]))}
    found |= {"reads": torch.cat(means)} if reads else {}
    about = {name: {"tokens": batch[:, 1:].size, "window": batch.shape[1] - 1} for name, batch in windows.items()}
    return {name: values.half().cpu() for name, values in found.items()}, about
