"""Which rows of the value tables the new facts read and other text does not, and a model of which only those learn.

After arXiv 2510.15103, section 3: a row's score is its share of the new facts' reads (term frequency) times
log((D + 1) / (d + 1)), d the number of D background windows that read it at all (inverse document frequency). There the rows
are chosen anew for each batch; here once for all new facts, so that all batches train the same few rows.

N table rows, T tokens, M picks per token, X reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from evals.access.counted import recorded
from evals.forgetting.people import IGNORED
from models.transformer import Transformer
from models.value_table import Table

Batch = tuple[Tensor, Tensor]


def tables(model: Transformer) -> dict[str, Any]:
    """Value tables by their name in the model, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Table)}


def documents_reads(model: Transformer, batches: Iterable[Batch]) -> dict[str, list[Tensor]]:
    """Rows that each document (a row of a batch, padding left out) reads of each table, (X,) with repeats."""
    model.eval()
    model.refresh()
    device = model.embedding.weight.device
    found: dict[str, list[Tensor]] = {name: [] for name in tables(model)}
    for tokens_BT, targets_BT in batches:
        with recorded(model) as reads:
            model.hidden(tokens_BT.to(device))
        here: dict[str, list[list[Tensor]]] = {name: [[] for _ in tokens_BT] for name in found}
        for name, table in tables(model).items():
            for read in reads:
                if any(bank is table.values_NC for bank in read.tables):
                    index_BTM = read.index_TM.view(*tokens_BT.shape, -1).cpu()
                    for document, (index_TM, target_T) in enumerate(zip(index_BTM, targets_BT, strict=True)):
                        here[name][document].append(index_TM[target_T != IGNORED].flatten())
        for name, parts in here.items():
            found[name] += [torch.cat(part).long() for part in parts]
    return found


def tf_idf(new: list[Tensor], background: list[Tensor], n_rows: int) -> Tensor:
    """Score (N,) of each row: its share of the reads in `new` times log((D + 1) / (d + 1)) over the D of `background`."""
    reads_N = torch.bincount(torch.cat(new), minlength=n_rows).double()
    windows_N = torch.zeros(n_rows, dtype=torch.float64)
    for rows_X in background:
        windows_N[rows_X.unique()] += 1
    return reads_N / reads_N.sum() * ((len(background) + 1) / (windows_N + 1)).log()


def chosen(model: Transformer, new: Iterable[Batch], background: Iterable[Batch], n: int) -> dict[str, Tensor]:
    """The n rows of each table that score highest, those with a score of 0 left out; (n,) or fewer."""
    read, anyway = documents_reads(model, new), documents_reads(model, background)
    found = {}
    for name, table in tables(model).items():
        score_N = tf_idf(read[name], anyway[name], len(table.values_NC))
        best = score_N.topk(min(n, len(score_N)))
        found[name] = best.indices[best.values > 0]
    return found


def only(model: Transformer, rows: dict[str, Tensor]) -> list[Tensor]:
    """Lets nothing of the model learn but the values of `rows`; returns the tables' parameters.

    Their gradients are zero elsewhere, which neither SGD nor AdamW without decay then moves.
    """
    model.requires_grad_(False)
    learning = []
    for name, table in tables(model).items():
        values_NC = table.values_NC.requires_grad_(True)
        mask_N1 = torch.zeros(len(values_NC), 1, device=values_NC.device)
        mask_N1[rows[name]] = 1.0
        values_NC.register_hook(lambda gradient, mask_N1=mask_N1: gradient * mask_N1)
        learning.append(values_NC)
    return learning
