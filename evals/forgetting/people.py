"""New people whom no training text knows, the biographies they are taught by, and what is asked about them.

B documents, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evals.records.errors import UserError
from evals.records.shards import end_of_text
from evals.scores.memory.bios import BioS
from evals.scores.memory.items import bios_items

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100  # a target that is padding


@dataclass(frozen=True)
class Newcomers(BioS):
    """People of bioS from number `first` on; with `first` beyond those of the corpus nobody has read of them."""

    first: int = 0

    def person(self, i: int) -> tuple[str, dict[str, str]]:
        return super().person(self.first + i)


def newcomers(bios: BioS, n: int, draw: int) -> Newcomers:
    """n people after those of `bios`, other ones for each `draw` (0, 1, …)."""
    return Newcomers(n_people=n, seed=bios.seed, first=bios.n_people + draw * n)


def acquaintances(bios: BioS, n: int) -> BioS:
    """The first n people of the corpus.

    Raises:
        UserError: there are fewer.
    """
    if bios.n_people < n:
        raise UserError(f"the corpus holds biographies of {bios.n_people} people, not of {n}: lower --people")
    return replace(bios, n_people=n)


class Reader:
    """Turns biographies into batches as training has them: an end of text, then the document.

    Args:
        longest: tokens of a document, its end of text included; a longer biography becomes several documents.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int):
        self.tokenizer, self.longest, self.end = tokenizer, longest, end_of_text(tokenizer)

    def documents(self, sentences: list[str]) -> list[list[int]]:
        """Token ids of one biography.

        Raises:
            UserError: one sentence alone is too long.
        """
        tokens = [self.end, *self.tokenizer.encode(" ".join(sentences) + "\n", add_special_tokens=False).ids]
        if len(tokens) <= self.longest:
            return [tokens]
        if len(sentences) == 1:
            raise UserError(f"a sentence of a biography is longer than {self.longest} tokens, which a document may have")
        half = len(sentences) // 2
        return self.documents(sentences[:half]) + self.documents(sentences[half:])

    def passes(self, people: BioS, n: int, seed: int) -> Iterator[list[list[int]]]:
        """n times the documents of one new biography of each person, in random order."""
        biographies = replace(people, exposures=n).biographies(seed)
        rng = random.Random(f"forgetting {seed}")
        for nth in range(n):
            documents = [part for i in range(people.n_people) for part in self.documents(biographies[i * n + nth])]
            rng.shuffle(documents)
            yield documents

    def batch(self, documents: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T); padding stands on the right, and its targets are left out of the loss."""
        T = max(map(len, documents)) - 1
        tokens_BT, targets_BT = torch.full((len(documents), T), self.end), torch.full((len(documents), T), IGNORED)
        for row, document in enumerate(documents):
            tokens_BT[row, : len(document) - 1] = torch.tensor(document[:-1])
            targets_BT[row, : len(document) - 1] = torch.tensor(document[1:])
        return tokens_BT, targets_BT


@dataclass(frozen=True)
class Questions:
    """One question on every fact of some people, as requests of an `evals.scores.lm.ModelLM`: the choices of each in a row."""

    requests: list
    choices: list[int]
    gold: list[int]

    @classmethod
    def about(cls, people: BioS, seed: int) -> Questions:
        items = [item for level in people.levels for item in bios_items(people, seed, people.n_people, level)]
        pairs = [SimpleNamespace(args=(item.context, f" {choice}")) for item in items for choice in item.choices]
        return cls(pairs, [len(item.choices) for item in items], [item.gold for item in items])

    def marks(self, logprobs: np.ndarray) -> tuple[float, float]:
        """Share of facts whose right answer is the likeliest choice, and nats that it costs among the choices."""
        right, nats, start = [], [], 0
        for n, gold in zip(self.choices, self.gold, strict=True):
            here, start = logprobs[start : start + n], start + n
            right.append(float(np.argmax(here) == gold))
            nats.append(float(np.logaddexp.reduce(here) - here[gold]))
        return float(np.mean(right)), float(np.mean(nats))
