"""The memory tasks' share of the training stream. Documents are short: training places each whole inside one window
(`workflows/prepare.py`), so a question is never trained without the facts that answer it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from evals.records.errors import UserError
from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS, Episode, MemoryTask

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The share of the training stream that these tasks take.

    Args:
        n_tokens: total length; biographies take what they need, the in-context tasks share the rest equally.
        n_people, exposures: of bioS.
    """

    n_tokens: int
    n_people: int = 200
    exposures: int = 20

    @property
    def bios(self) -> BioS:
        return BioS(self.n_people, self.exposures)


def mixture(cfg: MixtureConfig, tokenizer: Tokenizer, seed: int, longest: int) -> list[tuple[str, str]]:
    """(task, document) of every document of the training mix, in random order.

    The mix depends on the arguments alone, so every architecture sees the same. A biography of more than `longest` tokens
    becomes several documents of whole sentences; another document is left with fewer questions, or left out.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; it decides how many documents make cfg.n_tokens, an end of text counted for
            each. The mix is shorter than that by less than one document of each task.
        longest: tokens of a document, its end of text included.

    Raises:
        UserError: the biographies alone are longer than cfg.n_tokens, or no document of a task is so short as `longest`.
    """

    def halves(sentences: list[str]) -> list[list[str]]:
        if len(sentences) == 1:
            raise UserError(f"a sentence of a biography is longer than align {longest} tokens: raise align")
        return [sentences[: len(sentences) // 2], sentences[len(sentences) // 2 :]]

    biographies = _bounded(tokenizer, cfg.bios.biographies(seed), lambda part: " ".join(part) + "\n", halves, longest)
    documents = [(BioS.name, text) for text, _ in biographies]
    used = sum(length for _, length in biographies)
    if used > cfg.n_tokens:
        raise UserError(
            f"n_people {cfg.n_people} x exposures {cfg.exposures} take {used} tokens, more than n_tokens {cfg.n_tokens}: "
            "lower one of them or raise n_tokens"
        )
    share = (cfg.n_tokens - used) // len(TASKS)
    for name, task in TASKS.items():
        documents += [(name, text) for text in _fill(tokenizer, task, seed, share, longest)]
    random.Random(f"mixture {seed}").shuffle(documents)
    return documents


def _lengths(tokenizer: Tokenizer, documents: list[str]) -> Iterator[int]:
    """Tokens of each document and of the end of text before it."""
    for start in range(0, len(documents), 1024):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 1024], add_special_tokens=False):
            yield len(encoding.ids) + 1


def _bounded(tokenizer: Tokenizer, things: list, text: Callable, shorter: Callable, longest: int) -> list[tuple[str, int]]:
    """(document, tokens) of `things`, those beyond `longest` replaced by what `shorter` makes of them, until all fit."""
    documents = [text(thing) for thing in things]
    bounded = []
    for thing, document, length in zip(things, documents, _lengths(tokenizer, documents), strict=True):
        if length <= longest:
            bounded.append((document, length))
        else:
            bounded += _bounded(tokenizer, shorter(thing), text, shorter, longest)
    return bounded


def _fill(tokenizer: Tokenizer, task: MemoryTask, seed: int, n_tokens: int, longest: int) -> list[str]:
    """Documents of `task` up to n_tokens. Drawn by a fixed rule, so a longer fill begins with the shorter one."""

    def draw(n: int) -> list[tuple[str, int]]:
        return _bounded(tokenizer, task.train_episodes(seed, n), Episode.document, Episode.shorter, longest)

    pilot = draw(30)
    if not pilot:
        raise UserError(f"no document of memory task {task.name} fits into align {longest} tokens: raise align")
    per_episode = sum(length for _, length in pilot) / 30
    documents = draw(int(1.2 * n_tokens / per_episode) + len(task.levels))
    ends = accumulate(length for _, length in documents)
    return [document for (document, _), end in zip(documents, ends, strict=True) if end <= n_tokens]
