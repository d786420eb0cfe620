"""What a GPU sends when a value table or a bank of experts lies in parts on P of them, per token of its own and layer.

By number: a GPU holds 1/P of the rows whole; addresses go to their owners, rows come back. By dimension: a GPU holds 1/P of the
columns of every row; everybody's addresses and scores go to everybody, each sums its columns for all tokens and sends back
every token's slice. The volumes of the forward pass are P1's appendix on distributed training (4-byte addresses, bf16 scores
and values). `pooled` is by number as we train it (workflows/parallel/tables.py): scores travel with the addresses, and an owner
sends the weighted sum of what a token reads from it for one output group instead of every row. Gradients take the way back of
scores and values; addresses are known by then.

M picks per token over all heads, C value width, h scores per pick, G sums per token (expansion blocks), P GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

INDEX, COUNT, HALF, FULL = 4, 2, 2, 4  # bytes of an address, of how many there are, of a bf16 number, of a float32 one


@dataclass(frozen=True)
class Lookup:
    """What a token asks of one memory layer; pre-values (P2) are `d_pre_value` numbers more in every row.

    `itemsize` is that of scores and values on their way.
    """

    picks: int
    d_value: int
    cores: int = 1
    groups: int = 1
    d_pre_value: int = 0
    itemsize: int = HALF


def elsewhere(workers: int) -> float:
    """Share of evenly spread records that another GPU holds."""
    return (workers - 1) / workers


def requests(picks: int, groups: int, workers: int) -> float:
    """Expected number of pairs of another GPU and an output group that a token reads something of, its picks spread evenly."""
    return groups * (workers - 1) * (1 - (1 - 1 / (groups * workers)) ** picks)


def by_number(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `number`: addresses there, rows back; then the rows' gradients the way they came."""
    rows = ask.itemsize * ask.picks * (ask.d_value + ask.d_pre_value) * elsewhere(workers)
    return INDEX * ask.picks * elsewhere(workers) + rows * (2 if backward else 1)


def by_number_pooled(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `pooled`: addresses and scores there, one sum for each owner and group back, and the gradients of both.

    A request says how many of the addresses are its own; what pre-values are multiplied with goes along.
    """
    asked = requests(ask.picks, ask.groups, workers)
    scores = ask.itemsize * ask.cores * ask.picks * elsewhere(workers)
    sums = ask.itemsize * (ask.d_value + ask.d_pre_value) * asked
    return INDEX * ask.picks * elsewhere(workers) + COUNT * asked + (scores + sums) * (2 if backward else 1)


def by_dimension(ask: Lookup, workers: int, backward: bool = False) -> float:
    """Bytes of `dimension`: addresses and scores to everybody, slices of sums back, and the gradients of both.

    With pre-values slices of what they meet go to everybody first, and everybody's part of every pick's product (float32) is
    summed up where the token is.
    """
    scores = ask.itemsize * ask.cores * ask.picks * (workers - 1)
    slices = ask.itemsize * (ask.groups * ask.d_value + ask.d_pre_value) * elsewhere(workers)
    dots = FULL * ask.picks * (workers - 1) if ask.d_pre_value else 0
    return INDEX * ask.picks * (workers - 1) + (scores + slices + dots) * (2 if backward else 1)


WAYS = {"number": by_number, "pooled": by_number_pooled, "dimension": by_dimension}


def experts(top_k: int, d_model: int, workers: int, backward: bool = False, itemsize: int = HALF) -> float:
    """Bytes of expert parallelism: a token's activation to each of its experts and back, then the gradients of both."""
    return 2 * itemsize * top_k * d_model * elsewhere(workers) * (2 if backward else 1)


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
