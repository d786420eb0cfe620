"""Addresses of a larger table: those of the trained one with their skew, or uniform ones."""

import numpy as np
import pytest
import torch
from memory_layers import CONFIGS, MODELS, built, model_of

from evals.offload import lru
from evals.offload.trace import Addresses, Trace, trace
from evals.records.errors import UserError

T, M, ROWS = 400, 4, 100


@pytest.fixture(scope="module")
def skewed():
    """Two layers that share a table: few rows take most reads, and a token often reads what the last one did."""
    rng = np.random.default_rng(0)
    row_TLM = (rng.random((T, 2, M)) ** 4 * ROWS).astype(np.int64)
    return Trace("run", row_TLM, (0, 0), (ROWS,))


@pytest.mark.parametrize("copies", [1, 8])
def test_a_cache_of_a_share_of_a_larger_table_hits_as_often(skewed, copies):
    n_rows = copies * ROWS + 3
    addresses = Addresses(skewed, "text", n_rows, M)
    row_n = np.concatenate([addresses(token, layer) for token in range(copies * T) for layer in range(2)])
    assert row_n.min() >= 0
    assert row_n.max() < copies * ROWS
    # Of a token's own repeats, which are as near as they were, a cache of few rows holds more.
    small = lru.hit_rates(skewed.flat(), [20, 50, 80])
    large = lru.hit_rates(row_n, [20 * copies, 50 * copies, 80 * copies])
    assert large == pytest.approx(small, abs=0.05)
    assert small[0] > 0.5
    use_N, plain_N = (np.bincount(read, minlength=n) for read, n in ((row_n, copies * ROWS), (skewed.flat(), ROWS)))
    assert (use_N.reshape(copies, ROWS) == plain_N).all()


def test_a_layer_beyond_the_traces_takes_them_in_turn_and_uniform_ones_differ(skewed):
    text, uniform = Addresses(skewed, "text", 2 * ROWS, M), Addresses(skewed, "uniform", 2 * ROWS, M)
    assert (text(5, 2) == text(5, 0)).all()
    drawn = np.stack([uniform(token, layer) for token in range(500) for layer in range(2)])
    assert np.bincount(drawn.ravel(), minlength=2 * ROWS).min() > 5
    assert (uniform(3, 1) == uniform(3, 1)).all()
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_what_does_not_fit_is_refused(skewed):
    with pytest.raises(UserError, match="run reads 4 rows a layer, the model that is timed 8"):
        Addresses(skewed, "text", 200, 8)
    with pytest.raises(UserError, match="a table of 99 rows is smaller than the 100 of run"):
        Addresses(skewed, "text", 99, M)
    with pytest.raises(UserError, match="x has no value tables"):
        trace("x", built(model_of(MODELS["dense"])), np.zeros((1, 4)))


@pytest.mark.parametrize("name", [*CONFIGS, "hybrid"])
def test_a_trace_is_what_the_layers_read_token_by_token(name):
    model = built(model_of(MODELS[name]))
    token_WT = np.random.default_rng(1).integers(64, size=(3, 8))
    found = trace("run", model, token_WT)
    seen = []
    for memory in model.memories:
        address = memory.address
        memory.address = lambda *given, address=address: seen.append(address(*given)) or seen[-1]
    with torch.no_grad():
        model.hidden(torch.from_numpy(token_WT))
    expected = np.stack([row_TM.numpy() for row_TM, _ in seen], 1)
    assert (found.row_TLM == expected).all()
    tables = {memory.table: len(memory.table.values_NC) for memory in model.memories}
    assert list(found.rows_K) == list(tables.values())
    assert [list(tables)[k] for k in found.table_L] == [memory.table for memory in model.memories]
    assert found.flat().max() < sum(found.rows_K)
