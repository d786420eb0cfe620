"""RMS norm, SwiGLU and attention's heads in one pass each, against plain torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import close, gradients, needs_compiler, numbers, same_as

import kernels
from kernels import reference

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]
SHAPES = [(1, 2), (3, 5, 33), (0, 8), (700, 16), (2, 1100)]  # of the third, no row; of the fourth, several strips


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_compiler)], autouse=True)
def served_by(request, monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", request.param)


def wide(tensors):
    return [None if tensor is None else tensor.detach().double() for tensor in tensors]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(dtype, tolerance, shape):
    x, weight = numbers(*shape, dtype=dtype) * 3, numbers(shape[-1], seed=1)
    got = gradients(lambda a, w: kernels.rms_norm(a, w, 1e-5), x, weight)
    assert got[0].dtype == dtype
    exact = lambda a, w: F.rms_norm(a, a.shape[-1:], w, 1e-5)  # noqa: E731
    same_as(got, gradients(exact, *wide((x, weight)), cotangent_dtype=dtype), tolerance)


def test_rms_norm_takes_strided_rows_and_gives_autocasts_dtype():
    rows, weight = numbers(4, 6, 16).transpose(0, 1), numbers(16, seed=1)
    wanted = F.rms_norm(rows.double(), (16,), weight.double(), 1e-5)
    close(kernels.rms_norm(rows, weight, 1e-5), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        got = kernels.rms_norm(rows, weight, 1e-5)
    assert got.dtype == torch.bfloat16
    close(got, wanted, 2**-7)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 34), (0, 8), (40, 300)])
def test_swiglu(dtype, tolerance, shape):
    x = numbers(*shape, dtype=dtype) * 4
    got = gradients(kernels.swiglu, x)
    assert got[0].dtype == dtype
    same_as(got, gradients(reference.swiglu, *wide((x,)), cotangent_dtype=dtype), tolerance)


def test_swiglu_of_extremes_is_torchs():
    gate = torch.tensor([-1e30, -100.0, -88.0, -0.0, 0.0, 88.0, 100.0, 1e30, float("inf"), float("nan")])
    x = torch.stack([gate, torch.ones(len(gate))]).T.reshape(-1, 2)
    torch.testing.assert_close(kernels.swiglu(x), reference.swiglu(x), atol=1e-30, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("B", "T", "n_heads", "n_kv_heads", "K"), [(1, 1, 1, 1, 2), (2, 5, 4, 2, 16), (1, 300, 2, 2, 6)])
@pytest.mark.parametrize("normed", [True, False])
def test_heads(dtype, tolerance, B, T, n_heads, n_kv_heads, K, normed):
    qkv = numbers(B, T, n_heads + 2 * n_kv_heads, K, dtype=dtype) * 2
    gains = (numbers(K, seed=1), numbers(K, seed=2)) if normed else ()
    turns = numbers(T, K // 2, seed=3).repeat(1, 2), numbers(T, K // 2, seed=4).repeat(1, 2)

    def together(function, turns):
        weights = lambda found: found or (None, None)  # noqa: E731
        return lambda x, *found: torch.cat(function(x, *weights(found), *turns, n_heads, 1e-5), 1)

    got = gradients(together(kernels.heads, turns), qkv, *gains)
    assert got[0].dtype == dtype
    assert got[0].shape == (B, n_heads + 2 * n_kv_heads, T, K)
    exact = gradients(together(reference.heads, wide(turns)), *wide((qkv, *gains)), cotangent_dtype=dtype)
    same_as(got, exact, 2 * tolerance)
