"""Which rows a text reads: traced from a trained run, and scaled onto a larger table so that its skew stays.

A table of s times as many rows is s copies of the trained one, and its text s texts in turn: token t reads copy t mod s at the
rows that token t // s of that copy's text read in the trained table, and every copy's text begins elsewhere in the trace. So
rows are as unequally popular as the trained table's, and other tokens read s times as much between two reads of one row: a
cache of some share of the rows holds nearly the share of the reads that it would of the trained table's (what one token reads
twice stays as near as it was). Rows that lay side by side still do. Uniform addresses are drawn anew for every token.

T tokens of the trace, L memory layers, M rows that a layer reads per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evals.access.counted import recorded
from evals.records.errors import UserError
from models.transformer import Transformer

TEXT, UNIFORM = "text", "uniform"


@dataclass(frozen=True)
class Trace:
    """The reads of a run on its test text. `table_L` numbers the table of each layer, `rows_K` are the rows of each table."""

    run: str
    row_TLM: np.ndarray
    table_L: tuple[int, ...]
    rows_K: tuple[int, ...]

    def flat(self) -> np.ndarray:
        """All reads in order, the rows of all tables numbered through."""
        start_L = np.cumsum([0, *self.rows_K])[list(self.table_L)]
        return (self.row_TLM + start_L[:, None]).ravel()


@torch.no_grad()
def trace(run: str, model: Transformer, token_WT: np.ndarray) -> Trace:
    """What the model reads on windows of text, one after the other.

    Raises:
        UserError: it has no value tables.
    """
    parts: list[list[np.ndarray]] = []
    for token_T in torch.from_numpy(token_WT.astype(np.int64)):
        with recorded(model) as reads:
            model.hidden(token_T[None])
        memories = [read for read in reads if read.tables[0].dim() == 2]  # a mixture's experts are not rows
        parts.append([read.index_TM.numpy() for read in memories])
    if not parts or not parts[0]:
        raise UserError(f"{run} has no value tables: trace a run of a memory architecture")
    banks = list(dict.fromkeys(read.bank for read in memories))
    layers = [np.concatenate([part[layer] for part in parts]) for layer in range(len(memories))]
    return Trace(
        run=run,
        row_TLM=np.stack(layers, 1),
        table_L=tuple(banks.index(read.bank) for read in memories),
        rows_K=tuple(bank[1] for bank in banks),
    )


class Addresses:
    """The rows that each layer of a decoding model reads at each token: `addresses(token, layer)`, (M,) int64.

    Args:
        trace: whose layers serve those of the model in turn. kind: "text" or "uniform".
        n_rows: of each of the model's tables. picks: rows that a layer reads.

    Raises:
        UserError: the trace has other picks, or a larger table.
    """

    def __init__(self, trace: Trace, kind: str, n_rows: int, picks: int, seed: int = 0):
        self.trace, self.kind, self.n_rows, self.picks, self.seed = trace, kind, n_rows, picks, seed
        largest = max(trace.rows_K)
        if trace.row_TLM.shape[2] != picks:
            raise UserError(f"{trace.run} reads {trace.row_TLM.shape[2]} rows a layer, the model that is timed {picks}")
        if n_rows < largest:
            raise UserError(f"a table of {n_rows} rows is smaller than the {largest} of {trace.run}: measure larger ones")
        self.copies = n_rows // largest
        self.start_s = np.random.default_rng(seed).integers(len(trace.row_TLM), size=self.copies)

    def __call__(self, token: int, layer: int) -> np.ndarray:
        if self.kind == UNIFORM:
            return np.random.default_rng((self.seed, token, layer)).integers(self.n_rows, size=self.picks)
        T, L, _ = self.trace.row_TLM.shape
        turn, copy = divmod(token, self.copies)
        layer %= L
        rows = self.trace.rows_K[self.trace.table_L[layer]]
        return copy * rows + self.trace.row_TLM[(self.start_s[copy] + turn) % T, layer]
