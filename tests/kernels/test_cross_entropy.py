"""The CPU's cross-entropy, plain torch and C++, against torch's own in float64."""

import pytest
import torch
from cpu_kernels import check_cross_entropy, gradients, head, needs_compiler, plain_loss

import kernels
from kernels.cpu import build
from kernels.cpu.cross_entropy import softmax_step


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_compiler)])
def backend(request, monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize("chunk", [1, 32, 1000, None])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_cross_entropy_fp32(backend, chunk, scale):
    check_cross_entropy(chunk, scale)


@needs_compiler
def test_native_exponential_is_accurate():
    x = torch.linspace(0, 86, 4001)
    logits = torch.stack([torch.zeros_like(x), -x], -1)
    softmax_step(logits, torch.zeros(len(x), dtype=torch.long), 1.0, True)
    wanted = torch.sigmoid(-x.double())  # the gradient at the other class: exp(-x) over its sum with 1
    assert ((logits[:, 1].double() - wanted).abs() / wanted).max() < 4e-7
    logits = torch.tensor([[0.0, -torch.inf, -1e30], [torch.nan, 0.0, 1.0]])
    loss = softmax_step(logits, torch.tensor([0, 1]), 1.0, True)
    assert torch.equal(logits[0], torch.zeros(3))
    assert loss[0] == 0
    assert loss[1].isnan()


@pytest.mark.parametrize("fast", [True, False])
def test_cross_entropy_bf16(backend, fast, monkeypatch):
    monkeypatch.setattr(build, "multiplies_bf16", lambda: fast)
    hidden, weight, target = head(S=512, D=64, V=1000)
    hidden = hidden / 4
    got = gradients(lambda h, w: kernels.cross_entropy(h, w, target, precision="bf16"), hidden, weight)
    wanted = gradients(plain_loss(target), hidden.double(), weight.double(), cotangent_dtype=torch.float32)
    assert abs(got[0] / wanted[0] - 1) < 1e-3
    for a, b in zip(got[1], wanted[1], strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 1e-2


def test_cross_entropy_without_gradient_and_partial_gradient(backend):
    hidden, weight, target = head()
    both = gradients(lambda h, w: kernels.cross_entropy(h, w, target), hidden, weight)
    with torch.no_grad():
        assert torch.equal(kernels.cross_entropy(hidden, weight, target), both[0])
    assert torch.equal(gradients(lambda h: kernels.cross_entropy(h, weight, target), hidden)[1][0], both[1][0])
    assert torch.equal(gradients(lambda w: kernels.cross_entropy(hidden, w, target), weight)[1][0], both[1][1])


def test_cross_entropy_refuses_what_it_cannot_serve(backend):
    hidden, weight, target = head()
    with pytest.raises(ValueError, match="precision"):
        kernels.cross_entropy(hidden, weight, target, precision="fp8")
    with pytest.raises(ValueError, match="reduction"):
        kernels.cross_entropy(hidden, weight, target, reduction="sum")
    with pytest.raises(ValueError, match="must be"):
        kernels.cross_entropy(hidden, weight[:, 1:], target)
    for bad in (333, -1):
        target[5] = bad
        with pytest.raises(ValueError, match=r"0\.\.332"):
            kernels.cross_entropy(hidden, weight, target)
