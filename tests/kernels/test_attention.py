"""Causal attention equals torch's own in every dtype, in C++ and without it."""

import pytest
import torch
import torch.nn.functional as F

from kernels import attention


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize(("T", "K"), [(1, 2), (33, 8), (150, 16), (64, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2)])
def test_equals_float64(monkeypatch, kernels, T, K, dtype, tolerance):
    monkeypatch.setenv("ULTRAMEM_KERNELS", kernels)
    torch.manual_seed(0)
    ours = [torch.randn(2, 3, T, K, dtype=dtype, requires_grad=True) for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    weight = torch.randn(2, 3, T, K)
    a, b = attention.causal_attention(*ours), F.scaled_dot_product_attention(*exact, is_causal=True)
    (a.float() * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in [(a, b), *((o.grad, e.grad) for o, e in zip(ours, exact, strict=True))]:
        assert (x.double() - y).norm() <= tolerance * y.norm()


def test_future_has_no_weight():
    q, k, v = (torch.randn(1, 1, 9, 4, dtype=torch.bfloat16) for _ in range(3))
    v.requires_grad_()
    attention.causal_attention(q, k, v)[0, 0, 4].sum().backward()
    assert (v.grad[0, 0, 5:] == 0).all()
    assert (v.grad[0, 0, :5] != 0).all()


def test_a_head_does_not_depend_on_threads():
    q, k, v = (torch.randn(2, 2, 70, 8, dtype=torch.bfloat16) for _ in range(3))
    wanted, before = attention.causal_attention(q, k, v), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(attention.causal_attention(q, k, v), wanted)
    finally:
        torch.set_num_threads(before)
