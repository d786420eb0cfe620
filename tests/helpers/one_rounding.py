"""A kernel and its twin in float64, as assertions: the comparison itself is `evals.agreement.kernels`."""

import pytest

from evals.agreement.kernels import HALF_ULP, beyond, disagreement

every_dtype = pytest.mark.parametrize("dtype", HALF_ULP, ids=lambda dtype: str(dtype).split(".")[1])


def assert_one_rounding(got, want):
    worst = beyond(got, want)
    assert worst <= 1, f"{worst:.3g} times what one rounding to {got.dtype} and float32 sums allow"


def solves(problem, kernel, **options):
    worst = disagreement(problem, kernel, **options)
    assert worst <= 1, f"{worst:.3g} times what one rounding and float32 sums allow"
