"""The feed-forward networks of a mixture of experts in one pass, against every expert over every token in float64."""

import pytest
import torch
from cpu_kernels import check_experts, close, experts_of, gradients, integers, native, needs_compiler, same_as

import kernels
from kernels.experts import sorted_experts

SHAPES = [  # T, k, E, D, F
    (1, 1, 1, 2, 1),
    (5, 2, 3, 7, 5),
    (70, 3, 5, 33, 19),
    (300, 2, 2, 16, 64),  # several blocks of rows and strips of a weight's gradient
    (9, 8, 40, 64, 23),  # experts without a token
    (12, 2, 8, 160, 144),  # few rows, multiplied where whole vectors of weights lie
    (60, 2, 2, 160, 144),  # several panels of packed weights, the last one partly filled, and slices of them
]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_and_its_gradients(dtype, shape, glu):
    check_experts(dtype, *shape, glu)


@needs_compiler
def test_all_tokens_may_go_to_one_expert():
    check_experts(torch.float32, 600, 1, 3, 8, 6, True, picks=torch.ones(600, 1, dtype=torch.long))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(dtype):
    x, up, down, weight = experts_of(torch.float32, 333, 3, 7, 24, 11, True)
    picks = integers(7, 333, 3)
    run = lambda: gradients(lambda a, *b: native.experts(a, *b[:2], picks, b[2], True), x.detach().to(dtype), up, down, weight)  # noqa: E731
    wanted, before = run(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        got = run()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0], wanted[0])
    assert all(map(torch.equal, got[1], wanted[1]))


@pytest.mark.parametrize("glu", [True, False])
def test_put_together_from_grouped_products_it_is_the_same(glu):
    x, up, down, weight = experts_of(torch.float64, 40, 3, 6, 8, 5, glu)
    picks = integers(6, 40, 3)
    got = gradients(lambda *a: kernels.experts(*a[:3], picks, a[3], glu), x, up, down, weight)
    same_as(gradients(lambda *a: sorted_experts(*a[:3], picks, a[3], glu), x, up, down, weight), got, 1e-12)
    if kernels.backend("cpu") == "native":
        single = [tensor.detach().float() for tensor in (x, up, down, weight)]
        close(native.experts(*single[:3], picks, single[3], glu), got[0], 1e-5)


@needs_compiler
@pytest.mark.parametrize("tokens", [2, 400])  # streamed, and packed for both products
@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
def test_experts_laid_out_for_decoding_answer_the_same(dtype, tolerance, glu, tokens):
    x, up, down, weight = (tensor.detach().to(dtype) for tensor in experts_of(torch.float32, tokens, 2, 4, 34, 19, glu))
    picks, (up_turned, down_turned) = integers(4, tokens, 2), (tensor.mT.contiguous().mT for tensor in (up, down))
    wanted = sorted_experts(x.double(), up.double(), down.double(), picks, weight.double(), glu)
    for ups, downs in ((up, down), (up_turned, down_turned)):
        got = kernels.experts(x, ups, downs, picks, weight, glu)
        assert got.dtype == dtype
        close(got, wanted, tolerance)


@needs_compiler
def test_autocast_rounds_rows_and_keeps_float32_gradients_of_weights():
    x, up, down, weight = experts_of(torch.float32, 20, 2, 4, 8, 6, True)
    with torch.autocast("cpu", torch.bfloat16):
        y = kernels.experts(x, up, down, integers(4, 20, 2), weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert {tensor.grad.dtype for tensor in (x, up, down, weight)} == {torch.float32}


def test_shapes_that_do_not_fit_are_refused():
    x, up, down, weight = experts_of(torch.float32, 5, 2, 3, 8, 6, True)
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.experts(x, up, down, integers(3, 5, 2), weight, glu=False)
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.experts(x, up, down, integers(3, 4, 2), weight)
