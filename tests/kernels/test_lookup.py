"""The CPU's table reads and expert products, plain torch and C++, against float64 of the same rounded inputs."""

import pytest
import torch
from cpu_kernels import (
    BOTH,
    LOOKUPS,
    check_grouped_mm,
    check_row_dot,
    check_weighted_lookup,
    close,
    gradients,
    integers,
    native,
    needs_compiler,
    numbers,
)

import kernels
from kernels import reference

ROUNDING = [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)]


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("shape", LOOKUPS)
@pytest.mark.parametrize(("dtype", "tolerance"), ROUNDING)
def test_weighted_lookup_and_gradients(module, shape, dtype, tolerance):
    check_weighted_lookup(module, shape, dtype, tolerance)


@needs_compiler
def test_native_lookup_one_gradient_at_a_time():
    values, weight, row = numbers(30, 8), numbers(4, 6, 2, seed=1), integers(30, 4, 6)
    both = gradients(lambda v, w: native.weighted_lookup(v, row, w), values, weight)[1]
    assert torch.equal(gradients(lambda v: native.weighted_lookup(v, row, weight), values)[1][0], both[0])
    close(gradients(lambda w: native.weighted_lookup(values, row, w), weight)[1][0], both[1], 1e-6)


@needs_compiler
def test_native_reads_do_not_depend_on_threads():
    values, weight = numbers(500, 48), numbers(64, 20, 2, seed=1)
    row, group = integers(500, 64, 20), integers(4, 64, 20)
    run = lambda: gradients(lambda v, w: native.weighted_lookup(v, row, w, group, 4), values, weight)  # noqa: E731
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(2)
        two = run()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    assert all(map(torch.equal, one[1], two[1]))


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(("T", "M", "N", "P"), [(0, 3, 5, 16), (1, 1, 1, 1), (1, 40, 60, 24), (31, 37, 400, 72), (6, 9, 2, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), ROUNDING)
def test_row_dot_and_gradients(module, T, M, N, P, dtype, tolerance):
    check_row_dot(module, T, M, N, P, dtype, tolerance)


@needs_compiler
@pytest.mark.parametrize("bad", [-1, 30, 2**40])
def test_native_refuses_rows_outside_the_table(bad):
    values, weight, row = numbers(30, 8), numbers(4, 6, 1, seed=1), integers(30, 4, 6)
    row[3, 5] = bad
    with pytest.raises(IndexError, match="out of range"):
        native.weighted_lookup(values, row, weight)
    with pytest.raises(IndexError, match="out of range"):
        native.row_dot(values, row, numbers(4, 8))
    with pytest.raises(IndexError, match="out of range"):
        native.weighted_lookup(values, row.clamp(0, 29), weight, row, 30)


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(("E", "D", "F_"), [(1, 1, 1), (9, 64, 26), (5, 7, 5), (6, 64, 64), (3, 130, 100), (4, 600, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ["none", "one", "skewed"])
def test_grouped_mm_and_gradients(module, E, D, F_, dtype, rows):
    check_grouped_mm(module, E, D, F_, dtype, rows)


def test_grouped_mm_takes_strided_rows_and_autocast():
    counts = torch.tensor([3, 0, 4])
    x, weight = numbers(16, 7).T, numbers(3, 12, 16, seed=1).transpose(1, 2)
    wanted = reference.grouped_mm(x.double(), weight.double(), counts)
    close(kernels.grouped_mm(x, weight, counts), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.grouped_mm(x, weight, counts)
    assert out.dtype == torch.bfloat16
    close(out, wanted, 2**-7)


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("counts", [[3, 3], [9, -1], [4, 5]])
def test_grouped_mm_refuses_counts_that_do_not_add_up(module, counts):
    with pytest.raises(ValueError, match="add up to the 8 rows"):
        module.grouped_mm(numbers(8, 4), numbers(2, 4, 4), torch.tensor(counts))
