"""Triton kernels of the mixture of experts: one matrix product per expert over rows sorted by expert, and its gradients.

A dropless grouped GEMM (Gale 2022, MegaBlocks, arXiv 2211.15841): every program finds its expert and rows from the
counts themselves, so the host neither reads them nor pads; programs beyond the last tile leave. The grid is the largest
that S rows over E experts can need. Sums run in float32; float32 inputs are multiplied in full precision, without TF32.
Widths are compile-time constants: a model has few, and only so does the compiler see that those of 8 bfloat16 or 4
float32 numbers and their multiples can be copied 128 bits at a time. Others are right, but slower.

Letters: S rows sorted by expert, E experts, D in, F out; within a kernel K is the width summed over, N the one kept.
"""

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.triton.launch import INTERPRETED, launch
from kernels.triton.tune import choose


class Tile(NamedTuple):
    """Rows x columns of one program's output, width of one step of the sum, warps, stages of the load pipeline."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int


TILES = {
    2: [Tile(16, 128, 64, 4, 4), Tile(32, 128, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3)],
    # 64 and 128 rows at a step of 64 spill in float32 on sm_80 and sm_90.
    4: [Tile(16, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3)],
}
WEIGHT_TILE = {2: Tile(128, 128, 64, 8, 3), 4: Tile(64, 64, 32, 4, 3)}


def tile_for(n_rows: int, n_experts: int, itemsize: int) -> Tile:
    """The smallest tile that holds an expert's mean share of the rows, or the largest there is.

    Small batches read each expert for a handful of rows: a taller tile multiplies padding, a shorter one reads the
    expert again for every tile.
    """
    share = triton.cdiv(n_rows, n_experts)
    return next((tile for tile in TILES[itemsize] if tile.rows >= share), TILES[itemsize][-1])


def tiles_to_try(n_rows: int, n_experts: int, itemsize: int) -> list[Tile]:
    """Tiles that may beat `tile_for` on some device: its height and the next, at widths and steps around its own.

    With few rows, narrow tiles put more programs on a weight that one program would read for long, and long steps keep
    more of it in flight.
    """
    usual, tallest = tile_for(n_rows, n_experts, itemsize), TILES[itemsize][-1]
    heights = sorted({usual.rows, min(2 * usual.rows, tallest.rows)})
    shapes = itertools.product(heights, (32, 64, 128), {2: (64, 128), 4: (32, 64)}[itemsize])
    return [Tile(rows, columns, step, 8 if rows * columns > 64 * 128 else 4, 3) for rows, columns, step in shapes]


@triton.jit
def _find_rows(counts, E, tile, BM: tl.constexpr, EB: tl.constexpr):
    """Expert of the tile (E when there is none), its first row and the end of the expert's rows."""
    e = tl.arange(0, EB)
    count = tl.load(counts + e, mask=e < E, other=0).to(tl.int32)
    tiles = (count + BM - 1) // BM
    expert = tl.sum(((tl.cumsum(tiles, 0) <= tile) & (e < E)).to(tl.int32), 0)
    begin = tl.sum(tl.where(e < expert, count, 0), 0)
    first = begin + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BM
    return expert, first, tl.sum(tl.where(e <= expert, count, 0), 0)


@triton.jit
def _rows_times_weight(
    out, x, weight, counts, E, K: tl.constexpr, N: tl.constexpr,
    TRANSPOSED: tl.constexpr, EB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """out[s] = x[s] @ weight[expert of s]; weight is (E, K, N), or (E, N, K) when TRANSPOSED. Tiles of one row block are
    neighbours in the grid, so that they share x in the cache while the expert's columns stream by."""
    tiles_n = tl.cdiv(N, BN)
    expert, first, end = _find_rows(counts, E, tl.program_id(0) // tiles_n, BM, EB)
    if expert >= E:
        return
    s = first + tl.arange(0, BM)
    n = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x += s.to(tl.int64)[:, None] * K
    weight += expert.to(tl.int64) * K * N
    total = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        mk = k0 + k < K
        a = tl.load(x + (k0 + k)[None, :], mask=(s < end)[:, None] & mk[None, :], other=0.0)
        at = n[None, :] * K + (k0 + k)[:, None] if TRANSPOSED else (k0 + k)[:, None] * N + n[None, :]
        b = tl.load(weight + at, mask=mk[:, None] & (n < N)[None, :], other=0.0)
        if F32:  # the interpreter holds bfloat16 as raw bits and would multiply those
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    mask = (s < end)[:, None] & (n < N)[None, :]
    tl.store(out + s.to(tl.int64)[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rows_times_rows(
    out, x, grad, counts, E, D: tl.constexpr, F: tl.constexpr,
    EB: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """out[e] = x[rows of e]^T @ grad[rows of e]; an expert without rows gets zeros."""
    tiles_f = tl.cdiv(F, BF)
    tiles = tl.cdiv(D, BD) * tiles_f
    expert = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    e = tl.arange(0, EB)
    count = tl.load(counts + e, mask=e < E, other=0).to(tl.int32)
    end = tl.sum(tl.where(e <= expert, count, 0), 0)
    begin = end - tl.sum(tl.where(e == expert, count, 0), 0)
    d = (tile // tiles_f) * BD + tl.arange(0, BD)
    f = (tile % tiles_f) * BF + tl.arange(0, BF)
    total = tl.zeros([BD, BF], tl.float32)
    for s0 in range(begin, end, BS):
        s = s0 + tl.arange(0, BS)
        at = s.to(tl.int64)[:, None]
        a = tl.load(x + at * D + d[None, :], mask=(s < end)[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(grad + at * F + f[None, :], mask=(s < end)[:, None] & (f < F)[None, :], other=0.0)
        if F32:  # as above
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(tl.trans(a), b, total, input_precision="ieee")
    at = (expert.to(tl.int64) * D + d[:, None]) * F + f[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(d < D)[:, None] & (f < F)[None, :])


def _multiply(x_SK, weight, counts_E, width_N, transposed, tile):
    (n_rows, width_K), n_experts, itemsize = x_SK.shape, len(counts_E), x_SK.element_size()
    out_SN = x_SK.new_empty(n_rows, width_N)

    def start(tile):
        most_tiles = n_rows // tile.rows + min(n_experts, n_rows)
        launch(
            _rows_times_weight, (most_tiles * triton.cdiv(width_N, tile.columns),),
            out_SN, x_SK, weight, counts_E, n_experts, width_K, width_N,
            transposed, triton.next_power_of_2(n_experts), *tile[:3], INTERPRETED,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    start(tile or choose(
        ("grouped_mm", x_SK.device, x_SK.dtype, triton.next_power_of_2(n_rows), n_experts, width_K, width_N, transposed),
        tile_for(n_rows, n_experts, itemsize),
        lambda: tiles_to_try(n_rows, n_experts, itemsize),
        start,
    ))  # fmt: skip
    return out_SN


def _weight_gradient(x_SD, grad_SF, counts_E):
    (_, width_D), (_, width_F), n_experts = x_SD.shape, grad_SF.shape, len(counts_E)
    tile = WEIGHT_TILE[x_SD.element_size()]
    out_EDF = x_SD.new_empty(n_experts, width_D, width_F)
    launch(
        _rows_times_rows, (n_experts * triton.cdiv(width_D, tile.rows) * triton.cdiv(width_F, tile.columns),),
        out_EDF, x_SD, grad_SF, counts_E, n_experts, width_D, width_F,
        triton.next_power_of_2(n_experts), *tile[:3], INTERPRETED,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out_EDF


class _GroupedMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_SD, weight_EDF, counts_E, tile):
        ctx.save_for_backward(x_SD, weight_EDF, counts_E)
        ctx.tile = tile
        return _multiply(x_SD, weight_EDF, counts_E, weight_EDF.shape[2], False, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_SF):
        x_SD, weight_EDF, counts_E = ctx.saved_tensors
        grad_SF = grad_SF.contiguous()
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _multiply(grad_SF, weight_EDF, counts_E, x_SD.shape[1], True, ctx.tile)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(x_SD, grad_SF, counts_E)
        return to_x, to_weight, None, None


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor, *, tile: Tile | None = None) -> Tensor:
    """x[rows of expert e] @ weight[e]; see `kernels`. Returns (S, F) in x's dtype. Gradient: x, weight (dense).

    tile: a Tile to use instead of the one that `kernels.triton.tune` has found or else `tile_for` gives. Raises ValueError when
    the experts' weights are not contiguous or the dtype is neither 16 nor 32 bits wide. That the counts add up to S is
    not checked: it would stop the device.
    """
    if not weight_EDF.is_contiguous():
        raise ValueError("grouped_mm: weight must be contiguous (E, D, F); store experts in the layout they are used in")
    if x_SD.element_size() not in TILES:
        raise ValueError(f"grouped_mm: dtype {x_SD.dtype} has no Triton kernel; use float32, bfloat16 or float16")
    return _GroupedMM.apply(x_SD.contiguous(), weight_EDF, counts_E, tile)
