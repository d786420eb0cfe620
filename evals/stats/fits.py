"""When points carry a law: fewer than four distinct x are never called one. The laws themselves are `evals.laws`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_POINTS = 4


@dataclass(frozen=True)
class NotALaw:
    """What a fit returns when the points cannot carry one."""

    n: int
    reason: str

    @property
    def statement(self) -> str:
        return f"not a law: {self.reason}"


def too_few(x: Sequence[float] | np.ndarray) -> NotALaw | None:
    """Why the points carry no law, if they have fewer than `MIN_POINTS` distinct x."""
    n = len(np.unique(np.asarray(x, float)))
    return NotALaw(n, f"{n} point{'s' * (n != 1)}, a law needs {MIN_POINTS}") if n < MIN_POINTS else None
