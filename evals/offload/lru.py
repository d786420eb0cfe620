"""How often a cache of the least recently used rows would hold what is read: exact, for every size at once.

The stack distance of a read is the number of other rows that were read since its row was read last (Mattson et al. 1970); a
cache of c rows holds it where that is below c. Of n reads, those between p and i that repeat a row of the same stretch are the
earlier ones whose own last read lies behind p: inversions, counted bit by bit in O(n log n).
"""

from __future__ import annotations

import numpy as np

FIRST = np.iinfo(np.int64).max  # the distance of a row that was not read before


def last_reads(row_n: np.ndarray) -> np.ndarray:
    """Where each read's row was read before, (n,); -1 where it was not."""
    order = np.argsort(row_n, kind="stable")
    again = row_n[order][1:] == row_n[order][:-1]
    last_n = np.full(len(row_n), -1)
    last_n[order[1:][again]] = order[:-1][again]
    return last_n


def larger_before(value_n: np.ndarray) -> np.ndarray:
    """Of each value, which are not negative, how many larger ones stand before it."""
    count_n, order = np.zeros(len(value_n), np.int64), np.arange(len(value_n))
    for bit in reversed(range(int(value_n.max(initial=0)).bit_length())):
        # `order` has values of equal higher bits side by side, each group in the order of reads.
        high = value_n[order] >> bit
        one, group = high & 1, high >> 1
        ones = np.cumsum(one) - one
        starts = np.concatenate([[True], group[1:] != group[:-1]])
        base = np.maximum.accumulate(np.where(starts, ones, 0))
        count_n[order] += np.where(one == 0, ones - base, 0)
        order = order[np.argsort(high, kind="stable")]
    return count_n


def stack_distances(row_n: np.ndarray) -> np.ndarray:
    """The stack distance of each read of a row, (n,) int64; `FIRST` where the row was not read before."""
    last_n = last_reads(row_n)
    distance_n = np.arange(len(row_n)) - last_n - 1 - larger_before(last_n + 1)
    return np.where(last_n < 0, FIRST, distance_n)


def hit_rates(row_n: np.ndarray, capacities: list[int]) -> list[float]:
    """The share of the later half of the reads that caches of these many rows would hold; the first half fills them."""
    later = stack_distances(row_n)[len(row_n) // 2 :]
    return [float((later < capacity).mean()) for capacity in capacities]
