"""The products that decoding streams weights through, against float64; dispatch between them and torch's."""

import pytest
import torch

import kernels
from kernels import reference
from kernels.cpu import build, grouped_mm, linear

needs_compiler = pytest.mark.skipif(not build.available(), reason="no C++ compiler")
DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)]


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded_once(got, exact, tolerance, terms=1):
    """Within one rounding of the output, beside what cancels in a sum of so many standard normal products."""
    error = (got.double() - exact).abs() / (exact.abs() + max(terms**0.5, exact.square().mean().sqrt()))
    assert error.max() <= tolerance, f"relative error {error.max():.1e}"


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 13, 96, 200])
def test_linear_is_the_float64_product(dtype, tolerance, rows, monkeypatch):
    """All group sizes of rows, widths with and without a rest, several chunks, outputs that do not fill a block."""
    monkeypatch.setattr(linear, "STREAM_FEW_ROWS", dict.fromkeys(linear.STREAM_FEW_ROWS, 1 << 30))
    for width in (1, 31, 128, 1100):
        for outputs in (1, 5, 8, 130):
            x, weight = numbers(rows, width, dtype=dtype), numbers(outputs, width, seed=1, dtype=dtype)
            rounded_once(linear.linear(x, weight), x.double() @ weight.double().T, tolerance, terms=width)


@needs_compiler
def test_linear_does_not_depend_on_threads_or_on_other_rows():
    x, weight = numbers(7, 96), numbers(1000, 96, seed=1)
    wanted, before = linear.linear(x, weight), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(linear.linear(x, weight), wanted)
    finally:
        torch.set_num_threads(before)
    assert linear.linear(x[None, :, None], weight).shape == (1, 7, 1, 1000)


@needs_compiler
def test_linear_streams_only_where_nothing_is_learnt(monkeypatch):
    served = []
    monkeypatch.setenv("ULTRAMEM_KERNELS", "native")
    monkeypatch.setattr(linear, "call", lambda name, *rest, work: served.append(name))
    x, weight = numbers(4, 256), numbers(8, 256, seed=1).requires_grad_()
    kernels.linear(x, weight)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kernels.linear(x, weight)
    assert served == []
    with torch.no_grad():
        kernels.linear(x, weight)
        kernels.linear(x.double(), weight.double())
        kernels.linear(numbers(400, 256, dtype=torch.bfloat16), weight.bfloat16())
        kernels.linear(x, weight[:, ::2].repeat(1, 2).T.contiguous().T)
    assert served == ["linear_f32"]


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
@pytest.mark.parametrize(("T", "H", "r", "K", "n"), [(1, 1, 1, 8, 5), (5, 2, 2, 40, 33), (70, 1, 2, 194, 100)])
def test_key_scores_keep_float32_sums_of_half_precision_products(dtype, tolerance, T, H, r, K, n):
    query, keys = numbers(T, H, r, K, dtype=dtype), numbers(H, r, n, K, seed=1, dtype=dtype)
    wanted = torch.einsum("thrk,hrnk->thnr", query.double(), keys.double())
    for module in (reference, linear):
        got = module.key_scores(query, keys)
        assert got.dtype == torch.float32
        rounded_once(got, wanted, tolerance)


@needs_compiler
def test_one_query_meets_the_keys_of_every_rank():
    query, keys = numbers(3, 2, 1, 40), numbers(2, 4, 33, 40, seed=1)
    wanted = torch.einsum("thk,hrnk->thnr", query[:, :, 0].double(), keys.double())
    for module in (reference, linear):
        got = module.key_scores(query, keys)
        assert got.shape == wanted.shape
        rounded_once(got, wanted, 1e-6)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("counts", [[3, 0, 1, 8], [0, 0, 0, 0], [200, 1, 0, 5]])
def test_experts_laid_out_for_decoding_multiply_the_same(dtype, tolerance, counts):
    weight_EDF = numbers(4, 130, 72, dtype=dtype)
    turned = weight_EDF.mT.contiguous().mT
    x, counts_E = numbers(sum(counts), 130, seed=1, dtype=dtype), torch.tensor(counts)
    wanted = reference.grouped_mm(x.double(), weight_EDF.double(), counts_E)
    with torch.no_grad():
        got = grouped_mm.grouped_mm(x, turned, counts_E)
    assert got.shape == wanted.shape
    if len(x):
        rounded_once(got, wanted, tolerance)
    x.requires_grad_()
    grouped_mm.grouped_mm(x, turned, counts_E).sum().backward()
    if len(x):
        close = torch.cat([w.double().sum(1).expand(c, -1) for w, c in zip(weight_EDF, counts, strict=True)])
        rounded_once(x.grad, close, 2**-6 if dtype == torch.bfloat16 else 1e-5)


@needs_compiler
def test_experts_laid_out_for_decoding_are_not_copied(monkeypatch):
    handed = []
    monkeypatch.setattr(grouped_mm, "call", lambda name, x, weight, *rest, work: handed.append((name, weight.data_ptr())))
    turned = numbers(4, 64, 130).mT
    with torch.no_grad():
        grouped_mm.grouped_mm(numbers(3, 130), turned, torch.tensor([1, 0, 0, 2]))
    assert handed == [("linear_f32", turned.data_ptr())]


@needs_compiler
@pytest.mark.parametrize("fast", [True, False])
def test_autocast_rounds_alike_whichever_products_are_faster(fast, monkeypatch):
    """Processors differ in whether they multiply bfloat16 fast; a run's numbers differ by the order of sums alone."""
    monkeypatch.setenv("ULTRAMEM_KERNELS", "native")
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: fast)
    low = torch.bfloat16
    x, weight = numbers(2, 5, 70).requires_grad_(), numbers(9, 70, seed=1).requires_grad_()
    dy = numbers(2, 5, 9, seed=2, dtype=low)
    with torch.autocast("cpu", low):
        y = kernels.linear(x, weight)
    assert (type(y.grad_fn).__name__ == "_WidenedBackward") != fast
    y.backward(dy)
    x_low, weight_low, dy_low = x.detach().to(low).double(), weight.detach().to(low).double(), dy.double()
    exact = (x_low @ weight_low.T, dy_low @ weight_low, dy_low.flatten(0, 1).T @ x_low.flatten(0, 1))
    for got, wanted, terms in zip((y, x.grad, weight.grad), exact, (70, 9, 10), strict=True):
        rounded_once(got.detach(), wanted, 2**-8, terms=terms)
        assert torch.equal(got.detach().to(low).to(got.dtype), got.detach())
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (low, torch.float32, torch.float32)
