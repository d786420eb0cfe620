"""What a GPU sends when a value table or a bank of experts lies in parts on P of them, per token of its own and layer.

By number: a GPU holds 1/P of the rows whole; addresses go to their owners, rows come back. By dimension: a GPU holds 1/P of the
columns of every row; everybody's addresses and scores go to everybody, each sums its columns for all tokens and sends back
every token's slice. The volumes of the forward pass are P1's appendix on distributed training (4-byte addresses, bf16 scores
and values). `pooled` is by number as we train it: scores travel with the addresses, and an owner sends the weighted sum of
what a token reads from it instead of every row. Gradients take the way back of scores and values; addresses are known by then.

M picks per token over all heads, C value width, h scores per pick, G sums per token (expansion blocks), P GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

INDEX, HALF = 4, 2  # bytes of an address, of a bf16 number


@dataclass(frozen=True)
class Lookup:
    """What a token asks of one memory layer; pre-values (P2) are `d_pre_value` numbers more in every row."""

    picks: int
    d_value: int
    cores: int = 1
    groups: int = 1
    d_pre_value: int = 0


def elsewhere(workers: int) -> float:
    """Share of evenly spread records that another GPU holds."""
    return (workers - 1) / workers


def owners(picks: int, workers: int) -> float:
    """Expected number of other GPUs that hold something of what a token reads, its picks spread evenly."""
    return (workers - 1) * (1 - elsewhere(workers) ** picks)


def by_number(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `number`: addresses there, rows back; then the rows' gradients the way they came."""
    rows = HALF * ask.picks * (ask.d_value + ask.d_pre_value) * elsewhere(workers)
    return INDEX * ask.picks * elsewhere(workers) + rows * (2 if backward else 1)


def by_number_pooled(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `pooled`: addresses and scores there, one sum for each owner and group back, and the gradients of both.

    What pre-values are multiplied with goes along to every owner.
    """
    scores = HALF * ask.cores * ask.picks * elsewhere(workers)
    sums = HALF * ask.d_value * min(ask.groups * owners(ask.picks, workers), ask.picks * elsewhere(workers))
    met = HALF * ask.d_pre_value * owners(ask.picks, workers)
    return INDEX * ask.picks * elsewhere(workers) + (scores + sums + met) * (2 if backward else 1)


def by_dimension(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `dimension`: addresses and scores to everybody, slices of sums back, and the gradients of both.

    With pre-values everybody has a part of every pick's product first: these are added up (float32) and given back.
    """
    scores = HALF * ask.cores * ask.picks * (workers - 1)
    slices = HALF * ask.groups * ask.d_value * elsewhere(workers)
    dots = 2 * 2 * HALF * ask.picks * (workers - 1) if ask.d_pre_value else 0
    return INDEX * ask.picks * (workers - 1) + (scores + slices + dots) * (2 if backward else 1)


WAYS = {"number": by_number, "pooled": by_number_pooled, "dimension": by_dimension}


def experts(top_k: int, d_model: int, workers: int, backward: bool = False) -> float:
    """Bytes of expert parallelism: a token's activation to each of its experts and back, then the gradients of both."""
    return 2 * HALF * top_k * d_model * elsewhere(workers) * (2 if backward else 1)


def cheaper(d_value: int, top_m: int, heads: int, workers: int) -> str:
    """P1's two ways compared: the one whose forward pass sends fewer bytes, `dimension` where both send as many."""
    ask = Lookup(heads * top_m, d_value)
    return "number" if by_number(ask, workers) < by_dimension(ask, workers) else "dimension"


def crossover(d_value: int, top_m: int, heads: int) -> float:
    """GPUs beyond which values by number send less than by dimension: (2 + C (1 - 1/M)) / 3, about a third of the width.

    From M (4 + 2 C) (P - 1)/P = 6 M (P - 1) + 2 C (P - 1)/P.
    """
    picks = heads * top_m
    return (2 + d_value * (1 - 1 / picks)) / 3
