"""Addresses of what may hold more than 2^31 elements are of 64 bits: read in the code that Triton makes of each kernel."""

import pytest
import torch
import triton
import triton.language as tl
from kernel_ir import accesses, code, narrow_products

from kernels import aot
from kernels.triton import launch, lookup

BF16 = torch.bfloat16
# Indices of picks and counts of experts: fewer than 2^31 of each, and a grid could not be larger.
SHORT = {"sorted_row", "order", "first", "last", "counts", "u", "t", "core"}
WIDTH = 1000


def named(caught):
    for kernel, arguments, options in caught:
        yield aot.Case(kernel.fn.__name__.strip("_"), kernel, arguments, tuple(options.items()))


def lookups():
    yield from named(aot.lookups(BF16, WIDTH, 1, 1))
    yield from named(aot.lookups(BF16, WIDTH, 1, 1, deterministic=False)[1:2])


def others():
    yield from named(aot.products(BF16, 4096))
    yield from named(aot.tuckers(720, 42))


@pytest.mark.parametrize("case", [*lookups(), *others()], ids=lambda case: case.name)
def test_every_large_argument_is_addressed_in_64_bits(case, monkeypatch):
    found = accesses(code(monkeypatch, case))
    assert {name for name, _ in found} - SHORT
    assert not [(name, types) for name, types in found if name not in SHORT and "i64" not in types]


@pytest.mark.parametrize("case", lookups(), ids=lambda case: case.name)
def test_no_row_is_multiplied_by_its_width_in_32_bits(case, monkeypatch):
    assert not narrow_products(code(monkeypatch, case), WIDTH)


@triton.jit
def _narrow(out, values, row, C: tl.constexpr, D: tl.constexpr):
    r = tl.load(row + tl.program_id(0)).to(tl.int32)
    at = r * C + tl.arange(0, D)
    tl.store(out + at, tl.load(values + at.to(tl.int64)))


def test_the_reading_finds_a_narrow_address(monkeypatch):
    values, row = aot.meta(64, WIDTH), aot.meta(64, dtype=torch.int64)
    (case,) = named(
        aot.launches(lambda: launch.launch(_narrow, (64,), torch.empty_like(values), values, row, WIDTH, 16, num_warps=1))
    )
    text = code(monkeypatch, case)
    found = dict(accesses(text))
    assert "i64" not in found["out"]
    assert "i64" in found["values"]  # but too late:
    assert narrow_products(text, WIDTH)


def test_the_scatter_of_gradients_is_deterministic_unless_asked():
    """Stated where it is called: without `deterministic=False` nothing is added atomically."""
    kernels = {case.name for case in named(aot.lookups(BF16, WIDTH, 1, 1))}
    assert kernels == {"gather_sum", "gather_dot", "scatter_sum", "join_pieces"}
    assert "scatter_atomic" in {case.name for case in named(aot.lookups(BF16, WIDTH, 1, 1, deterministic=False))}
    assert "another rounding in every run" in " ".join(lookup.weighted_lookup.__doc__.split())
