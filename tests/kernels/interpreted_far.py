"""Table rows whose addresses do not fit into 31 bits, under Triton's interpreter, where int32 wraps as on a GPU.

Run by test_triton.py. The table is pages that nobody writes but for a few rows, so it takes no memory.
"""

import numpy as np
import pytest
import torch
from one_rounding import assert_one_rounding

from kernels import reference
from kernels.triton import lookup

WIDTH = 1024
ROWS = 2**31 // WIDTH + 8
FAR = torch.tensor([0, 5, ROWS - 8, ROWS - 1])

pytestmark = pytest.mark.usefixtures("rounding_as_on_a_gpu")


def unwritten(*_, **__):
    return torch.from_numpy(np.zeros((ROWS, WIDTH), np.uint16)).view(torch.bfloat16)


@pytest.fixture
def table(monkeypatch):
    table = unwritten()
    table[FAR] = torch.randn(len(FAR), WIDTH).bfloat16()
    monkeypatch.setattr(lookup.torch, "zeros_like", lambda like: unwritten() if like.shape == (ROWS, WIDTH) else like * 0)
    return table


def test_lookup_and_its_gradients_beyond_31_bits(table):
    place = torch.tensor([[3, 2, 3], [1, 3, 0]])
    weight, grad = torch.randn(2, 3, 1).bfloat16(), torch.randn(2, 1, WIDTH).bfloat16()
    small, exact = table[FAR].double().requires_grad_(), weight.double().requires_grad_()
    ours = table.requires_grad_(), weight.requires_grad_()
    got = lookup.weighted_lookup(ours[0], FAR[place], ours[1])
    want = reference.weighted_lookup(small, place, exact)
    assert_one_rounding(got, want.detach())
    to_table, to_weight = torch.autograd.grad(got, ours, grad)
    exact_table, exact_weight = torch.autograd.grad(want, (small, exact), grad.double())
    assert_one_rounding(to_table[FAR], exact_table)
    assert_one_rounding(to_weight, exact_weight)


def test_row_dot_beyond_31_bits(table):
    place, x = torch.tensor([[3, 2, 1, 0]]), torch.randn(1, WIDTH).bfloat16()
    got = lookup.row_dot(table, FAR[place], x)
    assert_one_rounding(got, reference.row_dot(table[FAR].double(), place, x.double()))
