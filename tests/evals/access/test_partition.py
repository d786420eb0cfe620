"""Bytes that a parted table makes a GPU send: the paper's formulas by hand, and which part is cheaper for whom."""

import math

import pytest

from evals.access.partition import (
    WAYS,
    Lookup,
    by_dimension,
    by_number,
    by_number_pooled,
    cheaper,
    crossover,
    experts,
    requests,
)

P1 = Lookup(84, 1024)  # UltraMem 1.6B: 42 picks of two heads, values of 1024


def test_forward_volumes_are_the_papers():
    """spec B.10: 4 B m (P-1)/P + 2 B m C (P-1)/P, and 4 B m (P-1) + 2 B m (P-1) + 2 B C (P-1)/P."""
    assert by_number(P1, 8) == pytest.approx((4 * 84 + 2 * 84 * 1024) * 7 / 8)
    assert by_dimension(P1, 8) == pytest.approx((4 + 2) * 84 * 7 + 2 * 1024 * 7 / 8)
    assert experts(2, 2048, 4) == 2 * 2 * 2 * 2048 * 3 / 4


@pytest.mark.parametrize("way", WAYS)
def test_alone_nothing_is_sent_and_gradients_come_on_top(way):
    assert WAYS[way](P1, 1) == WAYS[way](P1, 1, backward=True) == 0
    assert WAYS[way](P1, 16, backward=True) > WAYS[way](P1, 16)
    both, forth = WAYS[way](P1, 16, backward=True), WAYS[way](P1, 16)
    once = 4 * 84 * (15 if way == "dimension" else 15 / 16) + (2 * requests(84, 1, 16) if way == "pooled" else 0)
    assert both == pytest.approx(2 * forth - once)


def test_sums_of_owners_are_never_more_than_the_rows():
    assert requests(1, 1, 4) == requests(1, 8, 4) == pytest.approx(3 / 4)
    assert requests(10_000, 1, 4) == pytest.approx(3)
    assert requests(10_000, 2, 4) == pytest.approx(6)
    for workers in (2, 8, 64, 512, 10**6):
        assert by_number_pooled(P1, workers) <= by_number(P1, workers) + (2 + 2) * 84
    assert by_number_pooled(P1, 8) < 0.1 * by_number(P1, 8)


def test_pre_values_cost_something_in_every_way():
    for way in WAYS.values():
        assert way(Lookup(256, 480, d_pre_value=160), 8) > way(Lookup(256, 480), 8)


@pytest.mark.parametrize("d_value", [64, 512, 1024])
@pytest.mark.parametrize(("top_m", "heads"), [(42, 2), (32, 1), (128, 6)])
def test_the_rule_is_where_the_volumes_cross(d_value, top_m, heads):
    at = crossover(d_value, top_m, heads)
    ask = Lookup(top_m * heads, d_value)
    for workers in range(2, 2 * math.ceil(at)):
        less = by_number(ask, workers) < by_dimension(ask, workers)
        assert less == (workers > at)
        assert cheaper(d_value, top_m, heads, workers) == ("number" if less else "dimension")
    assert at == pytest.approx(d_value / 3, rel=0.05)
