"""The Triton kernels under Triton's interpreter, forward and backward, against float64 of the same rounded inputs.

Run by test_triton.py in a process of its own: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import pytest
import torch
from one_rounding import assert_one_rounding, every_dtype, solves

import kernels
from evals.agreement import kernels as problems
from evals.agreement.kernels import singular_vectors, zipf
from kernels import reference
from kernels.triton import lookup, topm
from kernels.triton.grouped_mm import grouped_mm

pytestmark = pytest.mark.usefixtures("rounding_as_on_a_gpu")


def look_up(dtype, row, n_rows, width, n_cores, n_groups, **options):
    solves(problems.lookup(dtype, row, n_rows, width, n_cores, n_groups), lookup.weighted_lookup, **options)


@every_dtype
@pytest.mark.parametrize(("width", "n_cores", "n_groups"), [(200, 1, 1), (144, 2, 4), (1000, 1, 1), (24, 3, 2)])
def test_lookup(dtype, width, n_cores, n_groups):
    look_up(dtype, zipf(50, 2, 13), 50, width, n_cores, n_groups)


@every_dtype
def test_lookup_of_one_token_is_split_over_programs(dtype):
    assert lookup._Shape(1, 84, 200, 1, 1).splits > 1
    look_up(dtype, torch.randint(300, (1, 84)), 300, 200, 1, 1)


def test_lookup_without_splits(monkeypatch):
    monkeypatch.setattr(lookup, "ENOUGH_PROGRAMS", 1)
    look_up(torch.bfloat16, torch.randint(300, (1, 84)), 300, 200, 2, 2)


@pytest.mark.parametrize("lengths", [[400], [1, 3, 4, 5, 8, 9, 1, 17], [7, 6, 5, 4, 3], [4, 4, 4], [33, 2, 33]])
def test_long_runs_of_one_row_are_split_and_joined(lengths, monkeypatch):
    monkeypatch.setattr(lookup, "PIECE", 4)
    row = torch.repeat_interleave(torch.randperm(len(lengths) + 3)[: len(lengths)], torch.tensor(lengths))
    look_up(torch.float32, row[torch.randperm(len(row))][None], len(lengths) + 3, 16, 1, 1)


@every_dtype
def test_atomic_gradient(dtype):
    look_up(dtype, zipf(20, 3, 11), 20, 40, 2, 3, deterministic=False)


def test_a_weight_of_infinity_stays_in_its_group():
    values, row = torch.ones(4, 16), torch.zeros(1, 2, dtype=torch.int64)
    weight, group = torch.tensor([[[torch.inf], [1.0]]]), torch.tensor([[0, 1]])
    out = lookup.weighted_lookup(values, row, weight, group, 2)
    assert out[0, 0].isinf().all()
    assert (out[0, 1] == 1).all()


@every_dtype
def test_row_dot(dtype):
    solves(problems.dots((dtype, dtype), zipf(30, 3, 13), 30, 200), lookup.row_dot)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_row_dot_of_two_dtypes_loses_nothing_to_the_narrower(dtypes):
    solves(problems.dots(dtypes, torch.randint(5, (2, 3)), 5, 16), lookup.row_dot)


def test_a_table_that_is_not_contiguous_is_refused():
    row = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be contiguous"):
        lookup.weighted_lookup(torch.ones(4, 16).T, row, torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="must be contiguous"):
        lookup.row_dot(torch.ones(4, 16).T, row, torch.ones(1, 4))


@every_dtype
@pytest.mark.parametrize(("n_tokens", "n", "m"), [(2, 100, 13), (1, 7, 30), (1, 33, 32)])
def test_product_topm(dtype, n_tokens, n, m):
    solves(problems.product_cells(dtype, n_tokens, 2, n, m), topm.product_topm)


@every_dtype
@pytest.mark.parametrize(("n_tokens", "n", "m", "rank", "n_cores"), [(2, 60, 13, 2, 2), (1, 5, 20, 3, 1), (1, 100, 80, 2, 2)])
def test_tucker_topm(dtype, n_tokens, n, m, rank, n_cores):
    solves(problems.tucker_cells(dtype, n_tokens, 1 if m == 80 else 2, n, m, rank, n_cores), topm.tucker_topm)


def test_scores_come_best_first():
    core = torch.rand(2, 1, 2, 2)
    score, index = topm.tucker_topm(
        torch.randn(1, 1, 40, 2), torch.randn(1, 1, 40, 2), core, *singular_vectors(core), 21
    )  # fmt: skip
    assert (score.sum(-1).diff() <= 0).all()
    assert index.unique().numel() == 21


@pytest.mark.parametrize("value", [0.0, -3.5, -torch.inf, torch.inf])
def test_equal_scores_give_the_lowest_cells(value):
    row, col = torch.full((1, 1, 19), value), torch.full((1, 1, 19), 0.0)
    score, index = topm.product_topm(row, col, 7)
    assert index.flatten().tolist() == list(range(7))
    assert (score == value).all()
    side, ones = torch.ones(1, 1, 19, 2), torch.ones(1, 2)
    _, index = topm.tucker_topm(side, side, torch.ones(1, 1, 2, 2), ones, ones, 21)
    assert index.flatten().tolist() == list(range(21))


def test_ties_as_in_the_reference():
    row, col = (torch.randint(-2, 3, (3, 1, 50)).float() for _ in range(2))
    row[1, 0, 9:] = -torch.inf
    for got, want in zip(topm.product_topm(row, col, 31), reference.product_topm(row, col, 31), strict=True):
        assert torch.equal(got, want)


def test_zeros_of_both_signs_are_equal():
    row = torch.tensor([-0.0] * 10 + [0.0] * 10).view(1, 1, 20)
    col = torch.tensor([-0.0] + [-5.0] * 19).view(1, 1, 20)
    assert topm.product_topm(row, col, 5)[1].flatten().tolist() == [0, 20, 40, 60, 80]


def test_nan_counts_as_the_largest_score():
    row, col = torch.randn(1, 1, 30), torch.randn(1, 1, 30)
    row[0, 0, 17] = torch.nan
    row[0, 0, 4] = -torch.nan
    col[0, 0, 5] = -torch.inf
    score, index = topm.product_topm(row, col, 12)
    assert torch.equal(index, reference.product_topm(row, col, 12)[1])
    assert set((index // 30).flatten().tolist()) == {4}
    assert score.isnan().all()


def test_too_many_picks_are_refused():
    with pytest.raises(ValueError, match="at most 128"):
        topm.product_topm(torch.zeros(1, 1, 200), torch.zeros(1, 1, 200), 129)


def test_the_package_serves_these_kernels(monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", "triton")
    values, weight, row = torch.randn(9, 16), torch.randn(2, 5, 2), torch.randint(9, (2, 5))
    names = {"product_topm": topm, "tucker_topm": topm, "weighted_lookup": lookup, "row_dot": lookup}
    for name, module in names.items():
        assert kernels._serving(name, values) is getattr(module, name)
    assert kernels._serving("grouped_mm", values) is grouped_mm
    out = kernels.weighted_lookup(values, row, weight)
    assert_one_rounding(out, reference.weighted_lookup(values.double(), row, weight.double()))
