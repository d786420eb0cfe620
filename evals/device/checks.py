"""Part 1: every kernel on the device against its twin in float64, twice for equal bits, and beyond 2^31 elements.

`evals.agreement.kernels` is the comparison; the kernels are those that `kernels` serves on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import kernels
from evals.agreement import kernels as problems
from evals.agreement.kernels import OtherCells, Problem, beyond, disagreement, repeats, zipf
from evals.device.parts import Bench, Item, Part, Rows
from kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# On a CPU sums are of another order and rounded between: its own tests hold it to these shares of the largest result.
ON_CPU = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-8}
MANY = 2**31

Make = Callable[[torch.dtype], Problem]


def shapes(tiny: bool) -> dict[str, Make]:
    """Name -> a problem in a dtype. The last ones of each kernel are what a decoding step asks for."""
    t = 4 if tiny else 1
    tokens, rows = 64 // t // t, 5000 // t
    uniform = torch.randint
    return {
        "lookup 1024 wide": lambda d: problems.lookup(d, uniform(rows, (tokens, 84)), rows, 1024 // t),
        "lookup 2 cores 4 groups": lambda d: problems.lookup(d, zipf(rows, tokens, 37), rows, 144, 2, 4),
        "lookup 1000 wide": lambda d: problems.lookup(d, zipf(50, 9, 13), 50, 1000 // t),
        "lookup of long runs": lambda d: problems.lookup(d, zipf(5, tokens, 84), 5, 200),
        "lookup of one token": lambda d: problems.lookup(d, uniform(rows, (1, 84)), rows, 1024 // t),
        "row dots": lambda d: problems.dots((d, d), zipf(rows, tokens, 37), rows, 192),
        "row dots of two dtypes": lambda d: problems.dots((d, torch.float32), zipf(rows, tokens, 37), rows, 160),
        "product cells": lambda d: problems.product_cells(d, tokens, 2, 100, 32),
        "product cells of one token": lambda d: problems.product_cells(d, 1, 4, 33, 32),
        "tucker cells": lambda d: problems.tucker_cells(d, 8, 2, 720 // t, 42),
        "tucker cells, many": lambda d: problems.tucker_cells(d, 2, 1, 3578 // t, 80),
        "tucker cells of rank 3": lambda d: problems.tucker_cells(d, 2, 1, 60, 13, 3, 1),
        "grouped products": lambda d: problems.products(d, [150 // t, 0, 20, 1, 0, 300 // t], 768 // t, 384 // t),
        "grouped products of few rows": lambda d: problems.products(d, [1, 0, 0, 2, 1, 0, 0, 0], 1024 // t, 256),
    }


def allowance(device: str, dtype: torch.dtype) -> float | None:
    """One rounding and float32 sums (None) where Triton serves; of a CPU's C++ and of plain torch a share of the largest."""
    return None if kernels.backend(device) == "triton" else ON_CPU[dtype]


def row(kernel: str, dtype: torch.dtype, what: str, passed: bool, since: float, device: str, **more: Any) -> dict[str, Any]:
    """A row of the table `gpu_checks`."""
    return {
        "kernel": kernel,
        "served_by": kernels.backend(device),
        "check": what,
        "dtype": str(dtype).removeprefix("torch."),
        "passed": passed,
        "seconds": time.perf_counter() - since,
    } | more


def against_twin(name: str, make: Make, bench: Bench) -> Rows:
    """Every dtype: the error of result and gradients, and whether a second run gives the same bits."""
    rows = []
    for dtype in DTYPES:
        since = time.perf_counter()
        torch.manual_seed(0)
        problem = make(dtype)
        kernel = getattr(kernels, problem.kernel)
        try:
            worst = disagreement(problem, kernel, bench.device, allowance(bench.device, dtype))
            told = {"worst": worst}
        except OtherCells as error:
            worst, told = float("inf"), {"note": str(error)}
        rows.append(row(problem.kernel, dtype, "float64", worst <= 1, since, bench.device, **told))
        since = time.perf_counter()
        same = repeats(problem, kernel, bench.device, times=3)
        rows.append(row(problem.kernel, dtype, "repeats", same, since, bench.device))
    return rows


def far_rows(n_elements: int, width: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A table (N, width) of at least `n_elements`, zero but for some rows; those rows' numbers (F,), and picks of them (T, M).

    The last rows lie beyond `n_elements`; were an address cut to 32 bits, a row that is zero would be read in their place.
    """
    n_rows = -(-n_elements // width) + 64
    far = torch.tensor([0, 1, n_rows // 2, n_rows - 62, n_rows - 2, n_rows - 1])
    values = torch.zeros(n_rows, width, dtype=dtype, device=device)
    values[far.to(device)] = torch.randn(len(far), width, dtype=dtype).to(device)
    picks = far[torch.randint(len(far), (16, 24))]
    return values, far, picks


def beyond_31_bits(bench: Bench) -> Rows:
    """Lookup and gradients on a table of more than 2^31 elements, of which only a few rows are not zero."""
    rows, dtype = [], torch.bfloat16
    torch.manual_seed(0)
    table, far, picks = far_rows(4096 if bench.tiny else MANY, 64 if bench.tiny else 1024, dtype, bench.device)
    small, place = table[far.to(bench.device)].cpu().double(), torch.searchsorted(far, picks)
    weight, grad = torch.randn(*picks.shape, 1, dtype=dtype), torch.randn(len(picks), 1, table.shape[1], dtype=dtype)
    x, dots = torch.randn(len(picks), table.shape[1], dtype=dtype), torch.randn(*picks.shape, dtype=dtype)
    cases: dict[str, tuple[Callable, Callable, torch.Tensor, torch.Tensor]] = {
        "weighted_lookup": (kernels.weighted_lookup, reference.weighted_lookup, weight, grad),
        "row_dot": (kernels.row_dot, reference.row_dot, x, dots),
    }
    for name, (kernel, twin, other, out_grad) in cases.items():
        since = time.perf_counter()
        ours, ours_other = table.detach().requires_grad_(), other.to(bench.device).requires_grad_()
        exact, exact_other = small.clone().requires_grad_(), other.double().requires_grad_()
        got = kernel(ours, picks.to(bench.device), ours_other)
        want = twin(exact, place, exact_other)
        to_table, to_other = torch.autograd.grad(got, (ours, ours_other), out_grad.to(got))
        exact_table, exact_to_other = torch.autograd.grad(want, (exact, exact_other), out_grad.double())
        pairs = ((got, want.detach()), (to_table[far.to(bench.device)], exact_table), (to_other, exact_to_other))
        worst = max(beyond(ours, exact, allowance(bench.device, dtype)) for ours, exact in pairs)
        to_table[far.to(bench.device)] = 0
        elsewhere = int(torch.count_nonzero(to_table))
        passed = worst <= 1 and not elsewhere
        told = {"worst": worst, "note": f"{table.numel()} elements; gradient in {elsewhere} other places"}
        rows.append(row(name, dtype, "beyond 31 bits", passed, since, bench.device, **told))
        del to_table, ours
    return rows


def items(bench: Bench) -> Iterator[Item]:
    for name, make in shapes(bench.tiny).items():
        yield Item(name, partial(against_twin, name, make))
    yield Item("a table beyond 2^31 elements", beyond_31_bits)


CHECKS = Part("checks", "gpu_checks", "kernels against float64 oracles, twice, and beyond 2^31 elements", 75.0, items)
