"""A kernel and its twin in float64: one rounding to the result's dtype is allowed, plus what float32 sums may lose."""

import pytest
import torch

HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SUMS = 1e-6  # of the largest result
every_dtype = pytest.mark.parametrize("dtype", HALF_ULP, ids=lambda dtype: str(dtype).split(".")[1])


def assert_one_rounding(got, want):
    assert got.shape == want.shape
    allowed = HALF_ULP[got.dtype] * want.abs() + SUMS * want.abs().max()
    worst = ((got.double() - want).abs() - allowed).max().item()
    assert worst <= 0, f"{worst:.3g} beyond one rounding to {got.dtype}"


def agree(kernel, twin, tensors, *rest, **options):
    """Runs both, the twin in float64; compares the (first) result and the gradients of all `tensors`."""
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    got, want = kernel(*ours, *rest, **options), twin(*exact, *rest)
    if isinstance(got, tuple):
        assert torch.equal(got[1], want[1]), "other cells were selected"
        got, want = got[0], want[0]
    grad = torch.randn_like(got)
    got.backward(grad)
    want.backward(grad.double())
    assert_one_rounding(got, want)
    for our, true in zip(ours, exact, strict=True):
        assert_one_rounding(our.grad, true.grad)
