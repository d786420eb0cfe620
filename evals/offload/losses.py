"""What quantised value rows cost in loss: trained runs on test text with their tables at 16, 8 and 4 bits, against themselves.

Only value tables are quantised (`models.offload`); everything else stays as trained. The loss is that of the run's headline
sources, weighted as in training; the difference is paired over windows of text, which every setting reads alike.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch

import kernels
from evals.records.errors import UserError
from evals.records.runs import RunConfig
from evals.records.shards import Shards
from evals.records.sources import headline
from models.offload import Bits, Offload, offload, record_bytes, tables_of
from models.transformer import Transformer

FULL: Bits = 32
BITS: tuple[Bits, ...] = (16, 8, 4)
TOGETHER = 8  # windows


def windows(shards: Shards, seq_len: int, n_tokens: int) -> dict[str, np.ndarray]:
    """The first test windows (W, seq_len + 1) of each headline source, of `n_tokens` tokens each or what there is.

    Raises:
        UserError: a source is shorter than one window.
    """
    found = {}
    for name, tokens in shards.test.items():
        if not headline(shards.meta["sources"][name]):
            continue
        count = min(max(1, n_tokens // seq_len), (len(tokens) - 1) // seq_len)
        if count < 1:
            raise UserError(f"{shards.path}: test text of {name} is shorter than {seq_len} tokens: prepare more")
        found[name] = np.stack([tokens[i * seq_len : (i + 1) * seq_len + 1] for i in range(count)]).astype(np.int64)
    return found


@torch.no_grad()
def window_losses(model: Transformer, token_WT: np.ndarray) -> np.ndarray:
    """Mean loss of each window, nats per token."""
    found = []
    for first in range(0, len(token_WT), TOGETHER):
        token_BT = torch.from_numpy(token_WT[first : first + TOGETHER])
        hidden_TD = model.hidden(token_BT[:, :-1])[0].flatten(0, 1)
        targets_T = token_BT[:, 1:].flatten()
        loss_T = kernels.cross_entropy(hidden_TD, model.head_weight, targets_T, None, "fp32", "none")
        found.append(loss_T.view(len(token_BT), -1).double().mean(1).numpy())
    return np.concatenate(found)


def rows(config: RunConfig, model: Transformer, shards: Shards, n_tokens: int) -> Iterator[dict]:
    """Rows of the table `offload_loss`: the run as it was trained, and with its tables at fewer bits."""
    texts = windows(shards, config.train.seq_len, n_tokens)
    tokens = np.array([shards.meta["sources"][name]["tokens"]["train"] for name in texts], dtype=float)
    share_S = tokens / tokens.sum()
    tables = tables_of(model)
    plain = [window_losses(model, text_WT) for text_WT in texts.values()]
    for bits in (FULL, *BITS):
        if bits == FULL:
            loss = plain
        else:
            quantised = offload(copy.deepcopy(model), Offload(bits=bits, mapped=False))
            loss = [window_losses(quantised, text_WT) for text_WT in texts.values()]
        change = [after_W - before_W for after_W, before_W in zip(loss, plain, strict=True)]
        spread = [c_W.std(ddof=1) / len(c_W) ** 0.5 if len(c_W) > 1 else np.nan for c_W in change]
        yield {
            "run": config.run,
            "arch": config.arch,
            "size": config.size,
            "seed": config.seed,
            "bits": bits,
            "loss": float(share_S @ [loss_W.mean() for loss_W in loss]),
            "delta": None if bits == FULL else float(share_S @ [c_W.mean() for c_W in change]),
            "stderr": None if bits == FULL else float(np.sqrt((share_S**2) @ np.square(spread))),
            "n_windows": sum(map(len, loss)),
            "table_bytes": float(sum(len(t.values_NC) * record_bytes(t, bits) for t in tables.values())),
        }
