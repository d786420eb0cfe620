"""Two configs against each other in the light of the pooled seed noise, as the ledger rules on them."""

from __future__ import annotations

from collections.abc import Mapping

from evals.stats.intervals import Interval, difference
from evals.stats.seeds import Noise, Term, contrast


def apart(left: Mapping[int, float], right: Mapping[int, float], seed_noise: Noise | None) -> Interval:
    """Mean of left minus right, both keyed by seed and of one size: `contrast`, paired by the seeds that both have.

    Without any noise it is their own `difference`, which has no interval where no seed was repeated.

    Raises:
        ValueError: a side is empty, or a value is not finite.
    """
    if seed_noise is None:
        return difference(left, right)
    return contrast([Term(1, left, "size"), Term(-1, right, "size")], seed_noise)
