"""Loss and bits per byte of a run on the held-out text of each corpus source.

Windows of `seq_len` tokens follow each other without overlap, as in training: a token's context is what precedes it in
its window. Bits per byte of a source = its loss per token in nats / ln 2 * its tokens / its bytes of UTF-8 text, so that
runs with different tokenizers compare. `all` weights sources by their share of the training tokens (loss) or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from evals.records.errors import UserError
from evals.records.shards import HELDOUT, Shards

if TYPE_CHECKING:
    from evals.scores.lm import ModelLM


def rows(
    lm: ModelLM, shards: Shards, splits: Iterable[str] = HELDOUT, n_tokens: int | None = None, kept: list[dict] | None = None
) -> list[dict]:
    """Rows of the table `evals`, without their run.

    Args:
        lm: an `evals.scores.harness.ModelLM`.
        n_tokens: scored of each source and split, rounded down to windows; None is all.
        kept: receives the bits per byte of every window, rows of evals/scores/items.py.

    Raises:
        UserError: a source is shorter than one window.
    """
    found = []
    for split in splits:
        parts = {}
        for source, tokens in getattr(shards, split).items():
            loss_W = window_losses(lm, tokens, n_tokens, f"{shards.path}: {split} text of {source}")
            meta = shards.meta["sources"][source]
            error = float(loss_W.std(ddof=1) / math.sqrt(len(loss_W))) if len(loss_W) > 1 else None
            parts[source] = (float(loss_W.mean()), error, len(loss_W), meta["tokens"][split] / meta["bytes"][split])
            if kept is not None:
                kept += _windows(f"perplexity {split}/{source}", loss_W * parts[source][3] / math.log(2))
            found += _pair(lm, f"perplexity {split}/{source}", *parts[source])
        found += _all(lm, f"perplexity {split}/all", parts, shards.meta["sources"])
    return found


def window_losses(lm: ModelLM, tokens: np.ndarray, n_tokens: int | None, where: str) -> np.ndarray:
    """Mean loss of each window, in nats per token."""
    T = lm.seq_len
    count = min(len(tokens) - 1, n_tokens or len(tokens)) // T
    if count < 1:
        raise UserError(f"{where} is shorter than {T} tokens: prepare more text or score at least {T} tokens")
    windows = [tokens[start : start + T + 1].tolist() for start in range(0, count * T, T)]
    return np.array([-total / T for total, _ in lm.score([[(w[:-1], w[1:])] for w in windows])])


def _windows(task: str, bits_W: np.ndarray) -> list[dict]:
    return [
        {"task": task, "item": str(number), "cluster": str(number), "value": float(bits), "correct": None}
        for number, bits in enumerate(bits_W)
    ]


def _pair(lm: ModelLM, task: str, loss: float, error: float | None, n: int, tokens_per_byte: float) -> list[dict]:
    uniform = math.log(lm.tokenizer.get_vocab_size())
    shared = {"task": task, "n_shot": 0, "n": n, "higher_is_better": False}
    scales = {"loss_per_token": 1.0, "bits_per_byte": tokens_per_byte / math.log(2)}
    return [
        {"metric": metric, "value": loss * scale, "stderr": error and error * scale, "chance": uniform * scale}
        | shared
        | {"primary": metric == "bits_per_byte"}
        for metric, scale in scales.items()
    ]


def _all(lm: ModelLM, task: str, parts: dict[str, tuple], sources: dict) -> list[dict]:
    """The mean over sources by their share of training; errors of the sources are independent."""
    found = {}
    for unit, index in (("tokens", 0), ("bytes", 1)):
        total = sum(sources[name][unit]["train"] for name in parts)
        share = {name: sources[name][unit]["train"] / total for name in parts}
        pairs = {name: _pair(lm, task, *part)[index] for name, part in parts.items()}
        row = dict(next(iter(pairs.values())), n=sum(part[2] for part in parts.values()))
        row["value"] = sum(share[name] * pair["value"] for name, pair in pairs.items())
        row["chance"] = sum(share[name] * pair["chance"] for name, pair in pairs.items())
        errors = [pair["stderr"] for pair in pairs.values()]
        row["stderr"] = None if None in errors else math.hypot(*(share[name] * pair["stderr"] for name, pair in pairs.items()))
        found[unit] = row
    return list(found.values())
