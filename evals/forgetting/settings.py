"""What is taught, for how long, and where the ways of teaching are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from evals.records.errors import UserError

TRIALS, STEP, WARMUP = 5, 3.0, 10


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to teach a trained model; the search for its rate begins at `start` (`evals.forgetting.measure.search`)."""

    name: Literal["full", "lora", "slots"]
    start: float
    optimizer: Literal["adamw", "sgd"] = "adamw"


WAYS = (Way(name="full", start=1e-3), Way(name="lora", start=1e-2), Way(name="slots", start=3e-2))


def _word(default: Any, says: str) -> Any:
    return field(default=default, metadata={"help": says})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One experiment; all ways and architectures share it.

    The numbers were set on one run each of UltraMem and UltraMemV2 (d_model 64, 0.57 M tokens) with the people and the text
    that rates are chosen on: there 1024 rows of each table came to hold 60 and 44 % of the new facts, the reason for `level`.

    Raises:
        UserError: a number is out of range.
    """

    level: float = _word(0.4, "share of the new facts at which the ways are compared")
    stop: float = _word(0.7, "share of the new facts at which a way may stop")
    passes: int = _word(70, "at most so many biographies of each new person are read")
    every: int = _word(5, "passes between two points of a curve")
    people: int = _word(10, "new people, and old ones that are asked about; each has five facts")
    batch: int = _word(5, "biographies of one step")
    old_level: float = _word(0.8, "share of the old facts that a model knows before it is taught; it reads on until then")
    old_passes: int = _word(80, "at most so many biographies of each old person are read for that")
    old_rate: float = _word(0.3, "learning rate of that, in units of the highest that the run was trained with")
    background: int = _word(256, "windows of training text that say which rows are read anyway")
    slots: int = _word(1024, "rows of each value table that the way `slots` trains")
    rank: int = _word(8, "of LoRA's adapters; alpha is twice that")
    text_tokens: int = _word(4096, "held-out tokens of each source that forgetting is measured on")

    def __post_init__(self) -> None:
        for name in ("level", "stop", "old_level"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a share above 0, at most 1")
        if self.stop < self.level:
            raise UserError(f"stop {self.stop} is below level {self.level}: no way would get to where they are compared")
        for name in ("passes", "every", "batch", "background", "slots", "rank", "text_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a whole number from 1 up")
        if self.people < 2:
            raise UserError(f"people is {self.people}: a question needs two answers, so give 2 or more")
