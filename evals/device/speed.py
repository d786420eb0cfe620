"""Parts 2 to 4: table lookups as a share of copy bandwidth, TDQKR retrieval, grouped products against torch's.

Implementations of one thing are timed in turns, caches flushed before every call (evals/decode/timers.py); on CUDA a call is
the replay of a graph. Bytes are the least that must move: each distinct row once, gradients of the table written whole.

T tokens, M picks, N rows, C width, H heads, n keys, m picks a head, r rank, E experts, S rows sorted by expert, D in, F out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from evals.agreement.kernels import Problem, products, tucker_cells, zipf
from evals.decode.timers import CACHES_COVERED, Step, Timer
from evals.device.parts import Bench, Item, Part, Rows
from kernels import reference

ROUNDS = {True: 3, False: 25}  # by tiny


def copy_bandwidth(clock: Timer, n_bytes: int) -> float:
    """Bytes per second, read and written, of copying `n_bytes` on the device."""
    source = torch.ones(n_bytes // 4, device=clock.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock.median(lambda: target.copy_(source))


@dataclass(frozen=True)
class Yardstick:
    """What the device reaches: bytes/s of a copy, FLOPs/s of a large product in bf16."""

    copy: float
    product: float

    @classmethod
    def of(cls, bench: Bench, products: bool = False) -> Yardstick:
        clock = bench.clock
        side = 256 if bench.tiny else 8192
        rate = clock.matmul_rate(torch.bfloat16, side, side, side) if products else float("inf")
        return cls(copy_bandwidth(clock, 1 << 22 if bench.tiny else CACHES_COVERED * clock.cache_bytes()), rate)

    def seconds(self, n_bytes: float, flops: float) -> float:
        return max(n_bytes / self.copy, flops / self.product)


def in_turns(bench: Bench, ways: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds of each of several steps, interleaved, each with cold caches."""
    clock = bench.clock
    timed = {name: clock.prepare(step) for name, step in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS[bench.tiny]):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed[name]())
    return seconds


def rows_of(operation: str, shape: str, dtype: str, seconds: dict[str, list[float]], **more: Any) -> Iterator[dict[str, Any]]:
    """Rows of the table `gpu_speed`: the first implementation is the yardstick of `ratio`."""
    first = next(iter(seconds.values()))
    for impl, taken in seconds.items():
        p20, p50, p80 = (1e3 * statistics.quantiles(taken, n=10, method="inclusive")[i] for i in (1, 4, 7))
        ratio = statistics.median(one / other for one, other in zip(first, taken, strict=True))
        yield {
            "operation": operation,
            "impl": impl,
            "shape": shape,
            "dtype": dtype,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            "ratio": ratio,
            "versus": next(iter(seconds)),
            "n_iters": len(taken),
        } | more


def against(yardstick: Yardstick, rows: Iterator[dict[str, Any]], n_bytes: float, flops: float = 0.0) -> Rows:
    """The same rows with bytes and FLOPs, and the share of the time that these would take at the yardstick's rates."""
    found = []
    for row in rows:
        seconds = row["p50_ms"] / 1e3
        share = yardstick.seconds(n_bytes, flops) / seconds
        found.append(
            row | {"bytes": n_bytes, "flops": flops, "bytes_per_s": n_bytes / seconds, "copy_bytes_per_s": yardstick.copy}
            | {"product_flops_per_s": yardstick.product if flops else None, "share": share}
        )  # fmt: skip
    return found


def with_gradients(kernel: Callable[..., Any], problem: Problem, device: str) -> tuple[Step, Step]:
    """Forward alone, and forward and backward, both on tensors that stay where they are."""
    tensors, fixed = problem.on(device)

    def forward() -> object:
        with torch.no_grad():
            return kernel(**tensors, **fixed)

    def output() -> Tensor:
        result = kernel(**tensors, **fixed)
        return result[0] if isinstance(result, tuple) else result

    cotangent = torch.randn_like(output())

    def both() -> object:
        return torch.autograd.grad(output(), list(tensors.values()), cotangent)

    return forward, both


def lookup(n_tokens: int, n_rows: int, width: int, spread: str, bench: Bench) -> Rows:
    """One lookup of 84 rows a token, forward, and forward and backward with the table's whole gradient."""
    torch.manual_seed(0)
    yardstick, M, dtype = Yardstick.of(bench), 84, torch.bfloat16
    row_TM = zipf(n_rows, n_tokens, M) if spread == "zipf" else torch.randint(n_rows, (n_tokens, M))
    values = torch.empty(n_rows, width, dtype=dtype, device=bench.device).normal_()
    weight = torch.randn(n_tokens, M, 1, dtype=dtype)
    problem = Problem("weighted_lookup", {"values_NC": values, "weight_TMh": weight}, {"row_TM": row_TM})
    del values
    forward, both = with_gradients(kernels.weighted_lookup, problem, bench.device)
    distinct, size = row_TM.unique().numel(), dtype.itemsize
    picked, out = distinct * width * size, n_tokens * width * size
    asked = n_tokens * M * (8 + size)
    moved = {"forward": picked + out + asked}
    # Rows again and the cotangent for the weights' gradient; the cotangent, zeros and the touched rows for the table's.
    backward = picked + out + n_tokens * M * size + out + n_rows * width * size + picked + asked
    moved["forward and backward"] = moved["forward"] + backward
    shape, rows = f"T={n_tokens} M={M} N={n_rows} C={width} {spread}", []
    for name, step in (("forward", forward), ("forward and backward", both)):
        seconds = in_turns(bench, {"ours": step})
        rows += against(yardstick, rows_of(f"lookup {name}", shape, "bf16", seconds, rows=distinct), moved[name])
    return rows


def lookups(bench: Bench) -> Iterator[Item]:
    tokens, n_rows, width = ((1, 8), 512, 64) if bench.tiny else ((4096, 64, 1, 16384), 1 << 20, 1024)
    for n_tokens in tokens:
        for spread in ("uniform", "zipf"):
            yield Item(f"{n_tokens} tokens, {spread}", partial(lookup, n_tokens, n_rows, width, spread))
    narrow = width * 3 // 16
    yield Item(f"{tokens[0]} tokens, {narrow} wide", partial(lookup, tokens[0], n_rows, narrow, "uniform"))


def retrieval(n_tokens: int, n_heads: int, n: int, m: int, bench: Bench) -> Rows:
    """TDQKR from scores of each axis, against plain torch; bytes are the scores, read once (written once by gradients)."""
    torch.manual_seed(0)
    yardstick = Yardstick.of(bench)
    with torch.device(bench.device):
        problem = tucker_cells(torch.float32, n_tokens, n_heads, n, m)
    ours, plain = (with_gradients(kernel, problem, bench.device) for kernel in (kernels.tucker_topm, reference.tucker_topm))
    scores = sum(problem.tensors[name].nbytes for name in ("row_THnr", "col_THnr"))
    picks = n_tokens * n_heads * m * (8 + 2 * 4)
    shape, rows = f"T={n_tokens} H={n_heads} n={n} m={m} r=2 h=2", []
    for at, (name, moved) in enumerate((("forward", scores + picks), ("forward and backward", 2 * (scores + picks)))):
        seconds = in_turns(bench, {"ours": ours[at], "torch": plain[at]})
        rows += against(yardstick, rows_of(f"retrieval {name}", shape, "fp32", seconds), moved)
    return rows


# Heads, logical keys per axis and picks: P1 at 151M, 680M and 1.6B (x sqrt(E) of expansion), P2 at 227M and with 128 picks.
RETRIEVALS = ((2, 3578, 42), (2, 3264, 42), (2, 2200, 42), (1, 360, 32), (1, 552, 128))


def retrievals(bench: Bench) -> Iterator[Item]:
    for n_tokens in (1, 4) if bench.tiny else (64, 1, 4096):
        for heads, n, m in ((1, 40, 8),) if bench.tiny else RETRIEVALS:
            yield Item(f"{n_tokens} tokens, {n} keys, {m} picks", partial(retrieval, n_tokens, heads, n, m))


def torch_grouped(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """torch's own product of experts."""
    return torch._grouped_mm(x_SD, weight_EDF, counts_E.cumsum(0).to(torch.int32))


def grouped(n_tokens: int, n_experts: int, top_k: int, d_in: int, d_out: int, bench: Bench) -> Rows:
    """Products of experts under uniform routing, ours against torch's, forward, and forward and backward."""
    torch.manual_seed(0)
    yardstick, dtype = Yardstick.of(bench, products=True), torch.bfloat16
    expert = torch.stack([torch.randperm(n_experts)[:top_k] for _ in range(n_tokens)])
    counts = torch.bincount(expert.flatten(), minlength=n_experts)
    with torch.device(bench.device):
        problem = products(dtype, counts.tolist(), d_in, d_out)
    ways = {"ours": with_gradients(kernels.grouped_mm, problem, bench.device)}
    try:
        theirs = with_gradients(torch_grouped, problem, bench.device)
        theirs[1]()
        ways["torch._grouped_mm"] = theirs
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        bench.say(f"torch._grouped_mm cannot do this here and is left out: {str(error).splitlines()[0]}")
    touched, S = int((counts > 0).sum()), n_tokens * top_k
    moved = dtype.itemsize * (touched * d_in * d_out + S * (d_in + d_out))
    flops, shape = 2 * S * d_in * d_out, f"S={S} E={n_experts} D={d_in} F={d_out}"
    # Backward reads weights and both sides again and writes the gradient of every weight, touched or not.
    backward = moved + dtype.itemsize * (n_experts * d_in * d_out + 2 * S * (d_in + d_out))
    rows = []
    for at, (name, n_bytes, work) in enumerate(
        (("forward", moved, flops), ("forward and backward", moved + backward, 3 * flops))
    ):
        seconds = in_turns(bench, {impl: steps[at] for impl, steps in ways.items()})
        made = rows_of(f"grouped products {name}", shape, "bf16", seconds, rows=touched)
        rows += against(yardstick, made, float(n_bytes), float(work))
    return rows


# Experts, of which a token takes so many, widths: P1's 1.6B, P2's open 227M and 1B (up and gate side by side).
EXPERTS = ((34, 2, 2048, 4672), (64, 8, 768, 768), (64, 8, 2048, 2048))


def groups(bench: Bench) -> Iterator[Item]:
    for n_tokens in (1, 8) if bench.tiny else (16, 1, 64, 4096, 256):
        for n_experts, top_k, d_in, d_out in ((4, 2, 32, 48),) if bench.tiny else EXPERTS:
            name = f"{n_tokens} tokens, {top_k} of {n_experts} experts of {d_in} x {d_out}"
            yield Item(name, partial(grouped, n_tokens, n_experts, top_k, d_in, d_out))


LOOKUP = Part("lookup", "gpu_speed", "table lookups as a share of copy bandwidth", 45.0, lookups)
RETRIEVAL = Part("retrieval", "gpu_speed", "TDQKR retrieval", 30.0, retrievals)
PRODUCTS = Part("products", "gpu_speed", "grouped products against torch._grouped_mm", 60.0, groups)
