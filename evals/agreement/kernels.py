"""Kernels against their plain-torch twins in float64, forward and backward: what a right kernel may differ by.

Shared by the tests under Triton's interpreter, by those on a device (marked `gpu`), and by `python -m evals.gpu`, which has no
pytest. One rounding to the result's dtype is allowed, plus what float32 sums may lose: of equal inputs, never a blanket 1e-2.

T tokens, M picks, N rows, C width, h cores, G groups, P pre-value width, H heads, n keys, m picks a head, r rank, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import reference

HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SUMS = 1e-6  # of the largest result

Kernel = Callable[..., Any]


class OtherCells(AssertionError):
    """A selection that is not the twin's."""


@dataclass(frozen=True)
class Problem:
    """Arguments of a kernel by name: `tensors` have gradients, `fixed` have none. They lie on the CPU until they are used."""

    kernel: str
    tensors: Mapping[str, Tensor]
    fixed: Mapping[str, Any]

    def on(self, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies on `device` that ask for gradients, and the fixed arguments."""
        asking = {name: tensor.to(device, copy=True).requires_grad_() for name, tensor in self.tensors.items()}
        fixed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.fixed.items()}
        return asking, fixed


def beyond(got: Tensor, want: Tensor, share: float | None = None) -> float:
    """Largest error over what is allowed of it: 1 is the limit.

    share: allow this share of the largest wanted number instead, of sums in another order and rounded between.

    Raises:
        ValueError: another shape.
    """
    if got.shape != want.shape:
        raise ValueError(f"{tuple(got.shape)} came out where {tuple(want.shape)} was expected")
    if not want.numel():
        return 0.0
    want = want.cpu()
    error = (got.detach().cpu().double() - want).abs()
    most = want.abs().max()
    allowed = HALF_ULP[got.dtype] * want.abs() + SUMS * most if share is None else share * most
    return float(torch.where(error == 0, 0.0, error / allowed).nan_to_num(torch.inf).max())


def gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A random cotangent, drawn on the CPU."""
    return torch.randn(shape, dtype=dtype).to(device)


def differentiated(kernel: Kernel, tensors: list[Tensor], grad: Tensor | None = None) -> tuple[Any, list[Tensor], Tensor]:
    """What `kernel` returns, the gradients of `tensors` by its (first) result, and the cotangent (None: a random one)."""
    result = kernel()
    out = result[0] if isinstance(result, tuple) else result
    grad = gradient(out.shape, out.dtype, out.device) if grad is None else grad.to(out)
    return result, list(torch.autograd.grad(out, tensors, grad)), grad


def disagreement(
    problem: Problem, kernel: Kernel, device: torch.device | str = "cpu", share: float | None = None, **options: Any
) -> float:
    """Largest error, over what is allowed (`beyond`), of the (first) result and of all gradients of `kernel` on `device`.

    Its twin (`kernels.reference`) runs in float64 on the CPU.

    Raises:
        OtherCells: kernel and twin return indices as well, and these differ.
    """
    twin = getattr(reference, problem.kernel)
    ours, ours_fixed = problem.on(device)
    exact, exact_fixed = problem.on("cpu")
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in exact.items()}
    got, ours_grad, grad = differentiated(lambda: kernel(**ours, **ours_fixed, **options), list(ours.values()))
    want, exact_grad, _ = differentiated(lambda: twin(**wide, **exact_fixed), list(wide.values()), grad)
    if isinstance(got, tuple):
        if not torch.equal(got[1].cpu(), want[1].cpu()):
            raise OtherCells("other cells were selected")
        got, want = got[0], want[0]
    pairs = [(got, want.detach()), *zip(ours_grad, exact_grad, strict=True)]
    return max(beyond(*pair, share) for pair in pairs)


def repeats(problem: Problem, kernel: Kernel, device: torch.device | str, times: int = 2, **options: Any) -> bool:
    """Whether result and gradients are bit-equal in every one of `times` runs."""
    first: list[Tensor] = []
    for _ in range(times):
        tensors, fixed = problem.on(device)
        torch.manual_seed(0)
        result, grads, _ = differentiated(
            lambda tensors=tensors, fixed=fixed: kernel(**tensors, **fixed, **options), list(tensors.values())
        )
        found = [*(result if isinstance(result, tuple) else (result,)), *grads]
        first = first or found
        if not all(map(torch.equal, first, found)):
            return False
    return True


def zipf(n_rows: int, *shape: int) -> Tensor:
    """Rows drawn in proportion to 1 / (1 + row): a few are asked for often."""
    weight = 1 / torch.arange(1, n_rows + 1).double()
    return torch.multinomial(weight, int(torch.Size(shape).numel()), replacement=True).view(shape)


def lookup(dtype: torch.dtype, row_TM: Tensor, n_rows: int, width: int, n_cores: int = 1, n_groups: int = 1) -> Problem:
    """Of `weighted_lookup`, random values, weights and groups."""
    group_TM = torch.randint(n_groups, row_TM.shape) if n_groups > 1 else None
    tensors = {
        "values_NC": torch.randn(n_rows, width, dtype=dtype),
        "weight_TMh": torch.randn(*row_TM.shape, n_cores, dtype=dtype),
    }
    return Problem("weighted_lookup", tensors, {"row_TM": row_TM, "group_TM": group_TM, "n_groups": n_groups})


def dots(dtypes: tuple[torch.dtype, torch.dtype], row_TM: Tensor, n_rows: int, width: int) -> Problem:
    """Of `row_dot`; dtypes of the table and of what it meets."""
    tensors = {"table_NP": torch.randn(n_rows, width).to(dtypes[0]), "x_TP": torch.randn(len(row_TM), width).to(dtypes[1])}
    return Problem("row_dot", tensors, {"row_TM": row_TM})


def product_cells(dtype: torch.dtype, n_tokens: int, n_heads: int, n: int, m: int) -> Problem:
    """Of `product_topm`, with scores that are distinct multiples of 1/64 and of 1/8192: no two cells tie, in any dtype."""

    def side(unit: int) -> Tensor:
        order = torch.stack([torch.randperm(n) for _ in range(n_heads * n_tokens)])
        return order.view(n_tokens, n_heads, n).to(dtype) / unit

    return Problem("product_topm", {"row_THn": side(64), "col_THn": side(8192)}, {"m": m})


def singular_vectors(core_hHrr: Tensor) -> tuple[Tensor, Tensor]:
    """The leading pair (u, t) of the summed core."""
    left, _, right = torch.linalg.svd(core_hHrr.float().sum(0))
    return left[..., 0], right[..., 0, :]


def tucker_cells(dtype: torch.dtype, n_tokens: int, n_heads: int, n: int, m: int, rank: int = 2, n_cores: int = 2) -> Problem:
    """Of `tucker_topm`, random scores and cores."""
    row, col = (torch.randn(n_tokens, n_heads, n, rank).to(dtype) for _ in range(2))
    core = torch.rand(n_cores, n_heads, rank, rank).to(dtype)
    u, t = singular_vectors(core)
    tensors = {"row_THnr": row, "col_THnr": col, "core_hHrr": core}
    return Problem("tucker_topm", tensors, {"u_Hr": u, "t_Hr": t, "m": m})


def products(dtype: torch.dtype, counts: list[int], d_in: int, d_out: int) -> Problem:
    """Of `grouped_mm`, with so many rows for each expert."""
    tensors = {
        "x_SD": torch.randn(sum(counts), d_in, dtype=dtype),
        "weight_EDF": torch.randn(len(counts), d_in, d_out, dtype=dtype),
    }
    return Problem("grouped_mm", tensors, {"counts_E": torch.tensor(counts)})
