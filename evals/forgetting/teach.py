"""The loop: a pupil reads biographies pass by pass; what it knows of new and old facts and of text is measured between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evals.forgetting.people import Questions, Reader
from evals.forgetting.settings import Settings
from evals.forgetting.ways import Pupil
from evals.records.errors import UserError
from evals.records.shards import Shards
from evals.records.sources import headline
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS
from evals.scores.perplexity import window_losses
from models.transformer import Transformer


@dataclass(frozen=True)
class Point:
    """A point of a curve: passes over the new facts, tokens read, shares of new and old facts known, nats that the right answer
    on an old fact costs among its choices, and the loss on each window of held-out text (W,)."""

    passes: float
    tokens: float
    known: float
    old_known: float
    old_loss: float
    text_W: np.ndarray

    def between(self, other: Point, share: float) -> Point:
        """The point at `share` of the way to another one."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Point(*((1 - share) * a + share * b for a, b in pairs))


def at_level(curve: list[Point], level: float) -> Point | None:
    """Where a curve first knows `level` of the new facts, on straight lines between its points; None where it never does."""
    for before, after in zip([curve[0], *curve], curve, strict=False):
        if after.known >= level:
            gained = after.known - before.known
            return before.between(after, (level - before.known) / gained if gained > 0 else 1.0)
    return None


class Exam:
    """What is asked of every pupil alike.

    Args:
        split: of the held-out text. Sources that count in the headline are read, weighted by their share of the training text.
    """

    def __init__(self, lm: ModelLM, shards: Shards, new: BioS, old: BioS, split: str, settings: Settings):
        self.lm, self.shards, self.split, self.n_tokens = lm, shards, split, settings.text_tokens
        self.people, self.new, self.old = new, Questions.about(new, 0), Questions.about(old, 0)
        sources = shards.meta["sources"]
        self.texts = {name: t for name, t in getattr(shards, split).items() if headline(sources[name])}
        self.shares = {name: sources[name]["tokens"]["train"] for name in self.texts}

    def knows(self, model: Transformer, questions: Questions) -> tuple[float, float]:
        """`Questions.marks` of a model."""
        self.lm.model = model.eval()
        model.refresh()
        return questions.marks(np.array([total for total, _ in self.lm.loglikelihood(questions.requests)]))

    def text(self) -> np.ndarray:
        """(W,) loss of each window; a mean over them weights sources by their share of the training text."""
        found = {
            name: window_losses(self.lm, tokens, self.n_tokens, f"{self.shards.path}: {self.split} text of {name}")
            for name, tokens in self.texts.items()
        }
        total = sum(self.shares.values())
        self.weight_W = np.concatenate(
            [np.full(len(loss_W), self.shares[n] / total / len(loss_W)) for n, loss_W in found.items()]
        )
        return np.concatenate(list(found.values()))

    def sit(self, model: Transformer, passes: float = 0, tokens: float = 0) -> Point:
        known, _ = self.knows(model, self.new)
        return Point(passes, tokens, known, *self.knows(model, self.old), self.text())

    def change(self, before: Point, after: Point) -> tuple[float, float]:
        """Mean change of the loss on text, paired by window, and its standard error over the windows."""
        change_W = after.text_W - before.text_W
        mean = float(self.weight_W @ change_W)
        return mean, float(math.sqrt((self.weight_W**2) @ (change_W - mean) ** 2))


def taught(pupil: Pupil, before: Point, exam: Exam, reader: Reader, settings: Settings, until: float, seed: int) -> list[Point]:
    """The curve of a pupil that reads of `exam.new`, from `before` on until it knows the share `until`, or the passes end."""
    curve, tokens = [before], 0
    for nth, documents in enumerate(reader.passes(exam.people, settings.passes, seed), 1):
        for start in range(0, len(documents), settings.batch):
            loss = pupil.step(reader.batch(documents[start : start + settings.batch]))
            if not math.isfinite(loss):
                return curve
        tokens += sum(map(len, documents))
        if nth % settings.every == 0:
            curve.append(exam.sit(pupil.model, nth, tokens))
            if curve[-1].known >= until:
                break
    return curve


def windows(tokens: np.ndarray, seq_len: int, n: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (n, seq_len) of training text, others each time.

    Raises:
        UserError: there is less than a window.
    """
    if len(tokens) <= seq_len:
        raise UserError(f"the training text has {len(tokens)} tokens, a window {seq_len + 1}: prepare more text")
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(len(tokens) - seq_len, size=n)
        batch = torch.from_numpy(tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def revised(
    model: Transformer, old: BioS, exam: Exam, reader: Reader, train: np.ndarray, settings: Settings, rate: float, seed: int
) -> None:
    """Lets the model itself read on, biographies of old people beside as much training text, until it knows their facts.

    A small model of a short run has seen each fact too seldom to have anything to forget. One that knows `old_level` of them
    is left alone.
    """
    texts, pupil = None, Pupil(model, torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), 0)
    for nth, documents in enumerate(reader.passes(old, settings.old_passes, seed)):
        if nth % (2 * settings.every) == 0 and exam.knows(model, exam.old)[0] >= settings.old_level:
            break
        for start in range(0, len(documents), settings.batch):
            batch = reader.batch(documents[start : start + settings.batch])
            texts = texts or windows(train, model.cfg.seq_len, max(1, round(batch[0].numel() / model.cfg.seq_len)), seed)
            pupil.step(batch, next(texts))
