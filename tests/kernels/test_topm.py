"""The CPU's product and Tucker top-m, plain torch and C++, against brute force and against each other."""

import pytest
import torch
from cpu_kernels import (
    BOTH,
    brute_topm,
    check_product_topm,
    check_tucker_gradients,
    close,
    gradients,
    integers,
    native,
    needs_compiler,
    numbers,
    same_as,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (8, 8), (74, 8), (600, 40)])
def test_topm_of_a_row_takes_the_lowest_of_equals_and_nan_first(module, n, m):
    scores = integers(9, 30, n, seed=n).float()
    scores[::4, ::5] = -torch.inf
    scores[::7, -1] = torch.nan
    assert torch.equal(module.topm(scores, m), torch.sort(scores, dim=-1, descending=True, stable=True)[1][:, :m])


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (2, 4), (7, 1), (7, 10), (7, 49), (40, 32), (129, 16), (300, 42), (512, 128), (20, 300)]
)
def test_product_topm_is_brute_force(module, n, m):
    check_product_topm(module, n, m)


@pytest.mark.parametrize("module", BOTH)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_product_topm_ties_take_the_lowest_index(module, n, data):
    m = data.draw(st.integers(1, n * n))
    spread = data.draw(st.integers(1, 4))  # few distinct whole numbers: sums are exact and most cells tie
    row, col = (integers(spread, 2, 1, n, seed=data.draw(st.integers(0, 999))).float() for _ in range(2))
    if data.draw(st.booleans()):
        row[..., :: data.draw(st.integers(1, 3))] = -torch.inf
    score, index = module.product_topm(row, col, m)
    wanted_score, wanted_index = brute_topm(row, col, m)
    assert torch.equal(score, wanted_score)
    assert torch.equal(index[score > -torch.inf], wanted_index[score > -torch.inf])
    assert torch.equal(row.gather(-1, index // n) + col.gather(-1, index % n), score)
    assert all(len(set(cells)) == m for cells in index.flatten(0, 1).tolist())


@pytest.mark.parametrize("module", BOTH)
def test_topm_of_nothing_but_ties_minus_infinity_and_no_tokens(module):
    for value in (0.0, -0.0, 3.5, -torch.inf):
        _, index = module.product_topm(torch.full((1, 1, 600), value), torch.full((1, 1, 600), value), 700)
        assert torch.equal(index[0, 0], torch.arange(700))
    signed = torch.zeros(1, 1, 40)
    signed[..., ::2] = -0.0
    assert torch.equal(module.product_topm(signed, signed, 50)[1][0, 0], torch.arange(50))
    score, index = module.product_topm(torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), 3)
    assert score.shape == index.shape == (0, 2, 3)


@needs_compiler
def test_native_topm_takes_every_nan_for_the_largest():
    """As torch.topk does, whatever the sign bit, which hardware sets on the NaN of 0/0."""
    row = torch.zeros(1, 1, 40)
    row[0, 0, 7], row[0, 0, 30] = torch.nan, torch.copysign(torch.tensor(torch.nan), torch.tensor(-1.0))
    for key in (row, -row):
        score, index = native.product_topm(key, torch.arange(40.0).view(1, 1, 40), 80)
        assert score[0, 0].isnan().all()
        assert set((index[0, 0] // 40).tolist()) == {7, 30}


def test_native_topm_survives_nan():
    row, col = numbers(4, 2, 100), numbers(4, 2, 100, seed=1)
    row[0], row[1, 0, 3], col[2, 1, ::2] = torch.nan, torch.nan, -torch.nan
    _, index = native.product_topm(row, col, 30)
    assert index.min() >= 0
    assert index.max() < 100 * 100
    core = numbers(2, 2, 2, 2)
    _, index = native.tucker_topm(*(torch.stack([x, x], -1) for x in (row, col)), core, core[0, 0], core[0, 1], 30)
    assert index.min() >= 0
    assert index.max() < 100 * 100


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_topm_gradient_counts_the_picks(module, dtype):
    n, m = 30, 12
    row, col = numbers(5, 2, n, dtype=dtype), numbers(5, 2, n, seed=1, dtype=dtype)
    _, index = module.product_topm(row, col, m)
    score, (d_row, d_col) = gradients(lambda *x: module.product_topm(*x, m)[0], row, col)
    assert score.dtype == torch.float32
    cotangent = numbers(5, 2, m, seed=7)
    close(d_row, torch.zeros(5, 2, n).scatter_add(-1, index // n, cotangent), 2**-8 if dtype == torch.bfloat16 else 1e-6)
    close(d_col, torch.zeros(5, 2, n).scatter_add(-1, index % n, cotangent), 2**-8 if dtype == torch.bfloat16 else 1e-6)


@needs_compiler
def test_native_topm_reads_strided_scores():
    both = numbers(6, 50, 2, 2)
    row, col = both[..., 0].transpose(1, 2), both[..., 1].transpose(1, 2)
    assert not row.is_contiguous()
    wanted = reference.product_topm(row, col, 9)
    assert all(map(torch.equal, native.product_topm(row, col, 9), wanted))
    sides = numbers(2, 5, 2, 3, 40)  # rank before key, as a matrix product leaves it
    row, col = sides.transpose(-1, -2)
    core, u, t = numbers(2, 2, 3, 3), numbers(2, 3, seed=1), numbers(2, 3, seed=2)
    same_as(*(gradients(lambda *x, k=k: k.tucker_topm(*x, u, t, 9)[0], row, col, core) for k in (native, reference)))


def brute_tucker(row, col, core, u, t, m):
    """Loops over heads: filter, cross, sort (P1 eq. 6-12)."""
    T, H, n, _ = row.shape
    score, index = torch.empty(T, H, m, len(core), dtype=row.dtype), torch.empty(T, H, m, dtype=torch.long)
    k = min(m, n)
    for i in range(T):
        for h in range(H):
            a = torch.sort(row[i, h] @ u[h], descending=True, stable=True)[1][:k].sort()[0]
            b = torch.sort(col[i, h] @ t[h], descending=True, stable=True)[1][:k].sort()[0]
            cross = torch.stack([row[i, h, a] @ core_rr @ col[i, h, b].T for core_rr in core[:, h]])
            best = torch.sort(cross.sum(0).flatten(), descending=True, stable=True)[1][:m]
            index[i, h] = a[best // k] * n + b[best % k]
            score[i, h] = cross.flatten(1)[:, best].T
    return score, index


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("n", "r", "h", "m"), [(1, 1, 1, 1), (5, 2, 2, 25), (17, 1, 2, 8), (64, 2, 1, 32), (150, 3, 2, 42), (300, 2, 2, 128)]
)
def test_tucker_topm_is_brute_force(module, n, r, h, m):
    H = 2
    row, col = numbers(3, H, n, r, seed=n), numbers(3, H, n, r, seed=n + 1)
    core, u, t = numbers(h, H, r, r, seed=2).abs(), numbers(H, r, seed=3).abs(), numbers(H, r, seed=4).abs()
    score, index = module.tucker_topm(row, col, core, u, t, m)
    wanted_score, wanted_index = brute_tucker(*(x.double() for x in (row, col, core, u, t)), m)
    close(score.sum(-1), wanted_score.sum(-1))
    same = (index == wanted_index).float().mean()
    assert same > 0.99
    close(score[index == wanted_index], wanted_score[index == wanted_index])


@pytest.mark.parametrize("module", BOTH)
def test_tucker_topm_ties_take_the_lowest_index(module):
    ones = torch.ones(2, 1, 30, 2)
    _, index = module.tucker_topm(ones, ones, torch.ones(1, 1, 2, 2), torch.ones(1, 2), torch.ones(1, 2), 8)
    assert torch.equal(index[0, 0], torch.arange(8))  # 8 cells of row 0, whose 8 lowest columns passed the filter
    _, index = module.tucker_topm(ones, ones, torch.zeros(1, 1, 2, 2), torch.ones(1, 2), torch.ones(1, 2), 40)
    assert torch.equal(index[0, 0], torch.arange(40))


@needs_compiler
@pytest.mark.parametrize(("r", "h", "m"), [(1, 1, 5), (2, 2, 12), (3, 4, 40)])
def test_native_tucker_gradients(r, h, m):
    check_tucker_gradients(r, h, m)
