"""Stack distances against a cache that is run, read by read."""

from collections import OrderedDict

import numpy as np
import pytest

from evals.offload import lru


def held(row_n, capacity):
    """Whether each read is of a row that a cache of the least recently used rows holds."""
    cache, found = OrderedDict(), []
    for row in row_n.tolist():
        found.append(row in cache)
        cache[row] = None
        cache.move_to_end(row)
        if len(cache) > capacity:
            cache.popitem(last=False)
    return np.array(found)


@pytest.mark.parametrize("rows", [1, 2, 7, 60, 1000])
def test_a_cache_of_every_size_holds_what_the_distances_say(rows):
    row_n = (np.random.default_rng(rows).random(700) ** 3 * rows).astype(np.int64)
    distance_n = lru.stack_distances(row_n)
    for capacity in (1, 2, 3, 10, 59, 60, 1000):
        expected = held(row_n, capacity)
        assert (expected == (distance_n < capacity)).all()
        assert lru.hit_rates(row_n, [capacity]) == [expected[350:].mean()]


def test_uniform_reads_hit_by_the_share_of_the_cache():
    row_n = np.random.default_rng(0).integers(1000, size=40_000)
    assert lru.hit_rates(row_n, [10, 50, 250]) == pytest.approx([0.01, 0.05, 0.25], abs=0.01)


def test_rows_read_once_hit_nothing():
    assert lru.hit_rates(np.arange(100), [1, 100]) == [0, 0]
    assert (lru.stack_distances(np.arange(5)) == lru.FIRST).all()
