"""Causal attention equals torch's own in every dtype and on both paths."""

import pytest
import torch
import torch.nn.functional as F

from kernels import attention


@pytest.mark.parametrize("plain_limit", [0, 512])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2)])
def test_equals_float64(monkeypatch, plain_limit, dtype, tolerance):
    monkeypatch.setattr(attention, "LONGEST_PLAIN", plain_limit)
    torch.manual_seed(0)
    ours = [torch.randn(2, 3, 33, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    weight = torch.randn(2, 3, 33, 8)
    a, b = attention.causal_attention(*ours), F.scaled_dot_product_attention(*exact, is_causal=True)
    (a.float() * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in [(a, b), *((o.grad, e.grad) for o, e in zip(ours, exact, strict=True))]:
        assert (x.double() - y).norm() / y.norm() < tolerance


def test_future_has_no_weight():
    q, k, v = (torch.randn(1, 1, 9, 4, dtype=torch.bfloat16) for _ in range(3))
    v.requires_grad_()
    attention.causal_attention(q, k, v)[0, 0, 4].sum().backward()
    assert (v.grad[0, 0, 5:] == 0).all()
    assert (v.grad[0, 0, :5] != 0).all()
