"""Triton kernels of the memory lookup: weighted sums of table rows, forward and backward (P1 eq. 13-17, P2 eq. 13-15).

One file above 300 lines, because the kernels share their tiles and backward is built of forward's pieces: one trilinear form
L = sum_tj weight[t,j] <values[row[t,j]], grad[t]> gives every operation here as a partial derivative:
  dL/dgrad    `_gather_sum`    forward of weighted_lookup; gradient of x in row_dot
  dL/dweight  `_gather_dot`    gradient of weight in weighted_lookup; forward of row_dot
  dL/dvalues  `_scatter_sum`   gradient of the table in both
MCS cuts the width in h slices with a weight each; IVE adds a group per pick, which selects the row of `grad` it meets.
Sums run in float32. Rows and groups out of range are not checked on the device. Widths and picks per token are compile-
time constants: a model has one of each, and only so does the compiler see that rows of 72 or 200 numbers are 16-byte
aligned and load them 128 bits at a time.

Letters: T tokens, M picks per token, X = T*M picks sorted by row, Y pieces of long runs, N table rows, C width, h cores,
P pre-value width, G groups; within a kernel S = C/h is the width of a slice.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.triton.launch import block, contiguous_table, launch

PICKS = 8  # rows in flight per program: 4 kB of bfloat16; an H100 needs about 16 kB in flight per multiprocessor (modelled)
TILE = 256  # columns per program
PIECE = 64  # longest run of one row that a single program sums: the serial tail under Zipf-distributed rows
ENOUGH_PROGRAMS = 512  # fill an H100 with such tiles (modelled); below it, a token's picks are split over programs


@triton.jit
def _columns(S: tl.constexpr, BD: tl.constexpr):
    """Core, columns within the row and their mask for this program's tile; a tile never straddles two cores."""
    tiles = tl.cdiv(S, BD)
    core = tl.program_id(1) // tiles
    d = (tl.program_id(1) % tiles) * BD + tl.arange(0, BD)
    return core, core * S + d, d < S


@triton.jit
def _gather_sum(
    out, values, row, weight, group, SPAN,
    M: tl.constexpr, S: tl.constexpr, CORES: tl.constexpr, GROUPS: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out[split, t, g, slice] = sum over picks of the split in group g of weight * values[row, slice]."""
    t = tl.program_id(0).to(tl.int64)
    core, d, md = _columns(S, BD)
    g = tl.program_id(2) % GROUPS
    split = tl.program_id(2) // GROUPS
    end = tl.minimum((split + 1) * SPAN, M)
    total = tl.zeros([BD], tl.float32)
    for j0 in range(split * SPAN, end, BJ):
        j = t * M + j0 + tl.arange(0, BJ)
        mj = j0 + tl.arange(0, BJ) < end
        if GROUPS > 1:
            mj &= tl.load(group + j, mask=mj, other=-1) == g
        r = tl.load(row + j, mask=mj, other=0).to(tl.int64)
        w = tl.load(weight + j * CORES + core, mask=mj, other=0.0).to(tl.float32)
        v = tl.load(values + r[:, None] * (S * CORES) + d[None, :], mask=mj[:, None] & md[None, :], other=0.0)
        total += tl.sum(v.to(tl.float32) * w[:, None], 0)
    at = (split * tl.num_programs(0) + t) * GROUPS + g
    tl.store(out + at * (S * CORES) + d, total.to(out.dtype.element_ty), mask=md)


@triton.jit
def _gather_dot(
    out, values, row, grad, group,
    M: tl.constexpr, S: tl.constexpr, CORES: tl.constexpr, GROUPS: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out[t, j, core] = <values[row[t,j], slice], grad[t, group[t,j], slice]>."""
    t = tl.program_id(0).to(tl.int64)
    j = t * M + tl.program_id(1) * BJ + tl.arange(0, BJ)
    mj = tl.program_id(1) * BJ + tl.arange(0, BJ) < M
    core = tl.program_id(2)
    r = tl.load(row + j, mask=mj, other=0).to(tl.int64)
    total = tl.zeros([BJ], tl.float32)
    for d0 in range(0, S, BD):
        md = d0 + tl.arange(0, BD) < S
        d = core * S + d0 + tl.arange(0, BD)
        v = tl.load(values + r[:, None] * (S * CORES) + d[None, :], mask=mj[:, None] & md[None, :], other=0.0)
        if GROUPS > 1:
            source = t * GROUPS + tl.load(group + j, mask=mj, other=0).to(tl.int64)
            g = tl.load(grad + source[:, None] * (S * CORES) + d[None, :], mask=mj[:, None] & md[None, :], other=0.0)
            total += tl.sum(v.to(tl.float32) * g.to(tl.float32), 1)
        else:
            g = tl.load(grad + t * (S * CORES) + d, mask=md, other=0.0)
            total += tl.sum(v.to(tl.float32) * g.to(tl.float32)[None, :], 1)
    tl.store(out + j * CORES + core, total.to(out.dtype.element_ty), mask=mj)


@triton.jit
def _scatter_sum(
    out, partial, sorted_row, order, first, last, weight, grad, group,
    M: tl.constexpr, S: tl.constexpr, CORES: tl.constexpr, GROUPS: tl.constexpr,
    PIECE: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program per sorted pick; those that begin a piece (a run of one row, cut every PIECE picks) sum it, the others
    leave. A whole run goes to out[row]; a piece of a longer run to its slot of `partial`. Two long runs can begin and
    end within the same PIECE picks, hence two slots for each."""
    s = tl.program_id(0)
    begin = tl.load(first + s)
    end = tl.load(last + s)
    if (s - begin) % PIECE != 0:
        return
    core, d, md = _columns(S, BD)
    stop = tl.minimum(s + PIECE, end)
    total = tl.zeros([BD], tl.float32)
    for s0 in range(s, stop, BJ):
        at = s0 + tl.arange(0, BJ)
        ms = at < stop
        pick = tl.load(order + at, mask=ms, other=0).to(tl.int64)
        w = tl.load(weight + pick * CORES + core, mask=ms, other=0.0).to(tl.float32)
        source = pick // M * GROUPS
        if GROUPS > 1:
            source += tl.load(group + pick, mask=ms, other=0)
        g = tl.load(grad + source[:, None] * (S * CORES) + d[None, :], mask=ms[:, None] & md[None, :], other=0.0)
        total += tl.sum(g.to(tl.float32) * w[:, None], 0)
    if end - begin > PIECE:
        slot = (2 * (s // PIECE) + (s == begin).to(tl.int32)).to(tl.int64)
        tl.store(partial + slot * (S * CORES) + d, total, mask=md)
    else:
        r = tl.load(sorted_row + s).to(tl.int64)
        tl.store(out + r * (S * CORES) + d, total.to(out.dtype.element_ty), mask=md)


@triton.jit
def _join_pieces(
    out, partial, sorted_row, first, last, n_picks,
    S: tl.constexpr, CORES: tl.constexpr, PIECE: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Adds up the pieces of the long run, if any, that begins within this program's PIECE picks (no second can)."""
    at = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    begin = tl.load(first + at, mask=at < n_picks, other=-1)
    end = tl.load(last + at, mask=at < n_picks, other=-1)
    head = tl.max(tl.where((begin == at) & (end - begin > PIECE), at, -1), 0)
    if head < 0:
        return
    _, d, md = _columns(S, BD)
    n_pieces = tl.cdiv(tl.load(last + head) - head, PIECE)
    total = tl.zeros([BD], tl.float32)
    for k0 in range(0, n_pieces, BJ):
        k = k0 + tl.arange(0, BJ)
        slot = (2 * (tl.program_id(0) + k) + (k == 0).to(tl.int32)).to(tl.int64)
        mask = (k < n_pieces)[:, None] & md[None, :]
        total += tl.sum(tl.load(partial + slot[:, None] * (S * CORES) + d[None, :], mask=mask, other=0.0), 0)
    r = tl.load(sorted_row + head).to(tl.int64)
    tl.store(out + r * (S * CORES) + d, total.to(out.dtype.element_ty), mask=md)


@triton.jit
def _scatter_atomic(
    out, row, weight, grad, group,
    M: tl.constexpr, S: tl.constexpr, CORES: tl.constexpr, GROUPS: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out[row] += weight * grad by atomic addition, `out` in float32: no sort, but sums in arbitrary order."""
    t = tl.program_id(0).to(tl.int64)
    core, d, md = _columns(S, BD)
    for j0 in range(0, M, BJ):
        j = t * M + j0 + tl.arange(0, BJ)
        mj = j0 + tl.arange(0, BJ) < M
        r = tl.load(row + j, mask=mj, other=0).to(tl.int64)
        w = tl.load(weight + j * CORES + core, mask=mj, other=0.0).to(tl.float32)
        source = t * GROUPS + tl.zeros([BJ], tl.int64)
        if GROUPS > 1:
            source += tl.load(group + j, mask=mj, other=0)
        mask = mj[:, None] & md[None, :]
        g = tl.load(grad + source[:, None] * (S * CORES) + d[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.atomic_add(out + r[:, None] * (S * CORES) + d[None, :], g * w[:, None], mask=mask, sem="relaxed")


class _Shape(NamedTuple):
    """Sizes of one call, and the tiles that follow from them."""

    n_tokens: int
    n_picks: int
    width: int
    n_cores: int
    n_groups: int

    @property
    def slice(self):
        return self.width // self.n_cores

    @property
    def tile(self):
        return block(self.slice, TILE)

    @property
    def column_tiles(self):
        return self.n_cores * triton.cdiv(self.slice, self.tile)

    @property
    def span(self):
        """Picks per program: all of them, or fewer where tokens alone do not fill the device (decoding)."""
        programs = max(1, self.n_tokens * self.column_tiles * self.n_groups)
        splits = min(triton.cdiv(ENOUGH_PROGRAMS, programs), triton.cdiv(self.n_picks, PICKS))
        return triton.cdiv(triton.cdiv(self.n_picks, max(1, splits)), PICKS) * PICKS

    @property
    def splits(self):
        return triton.cdiv(self.n_picks, max(1, self.span))


def _sum_rows(values_NC, row_TM, weight_TMh, group_TM, n_groups, dtype):
    shape = _Shape(*row_TM.shape, values_NC.shape[1], weight_TMh.shape[2], n_groups)
    splits = max(1, shape.splits)
    # Splits are summed in float32 and in a fixed order, so the result does not depend on which program came first.
    out = row_TM.new_empty(splits, shape.n_tokens, n_groups, shape.width, dtype=dtype if splits == 1 else torch.float32)
    launch(
        _gather_sum, (shape.n_tokens, shape.column_tiles, n_groups * splits),
        out, values_NC, row_TM, weight_TMh, group_TM, shape.span,
        shape.n_picks, shape.slice, shape.n_cores, n_groups, PICKS, shape.tile, num_warps=1,
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0).to(dtype)


def _dot_rows(values_NC, row_TM, grad_TGC, group_TM, n_cores, dtype):
    shape = _Shape(*row_TM.shape, values_NC.shape[1], n_cores, grad_TGC.shape[1])
    out_TMh = row_TM.new_empty(*row_TM.shape, n_cores, dtype=dtype)
    launch(
        _gather_dot, (shape.n_tokens, triton.cdiv(shape.n_picks, PICKS), n_cores),
        out_TMh, values_NC, row_TM, grad_TGC, group_TM,
        shape.n_picks, shape.slice, n_cores, shape.n_groups, PICKS, shape.tile, num_warps=1,
    )  # fmt: skip
    return out_TMh


def _spread_rows(values_NC, row_TM, weight_TMh, grad_TGC, group_TM, deterministic):
    shape = _Shape(*row_TM.shape, values_NC.shape[1], weight_TMh.shape[2], grad_TGC.shape[1])
    sizes = (shape.n_picks, shape.slice, shape.n_cores, shape.n_groups)
    if not deterministic:
        out_NC = torch.zeros_like(values_NC, dtype=torch.float32)
        launch(
            _scatter_atomic, (shape.n_tokens, shape.column_tiles),
            out_NC, row_TM, weight_TMh, grad_TGC, group_TM,
            *sizes, PICKS // 2, shape.tile, num_warps=1,
        )  # fmt: skip
        return out_NC.to(values_NC.dtype)
    # Only shapes known on the host: no unique(), whose size would make the host wait for the device.
    sorted_X, order_X = row_TM.flatten().sort(stable=True)
    first_X, last_X = (torch.searchsorted(sorted_X, sorted_X, right=right, out_int32=True) for right in (False, True))
    n_blocks = triton.cdiv(len(sorted_X), PIECE)
    partial_YC = row_TM.new_empty(2 * n_blocks, shape.width, dtype=torch.float32)
    out_NC = torch.zeros_like(values_NC)
    launch(
        _scatter_sum, (len(sorted_X), shape.column_tiles),
        out_NC, partial_YC, sorted_X, order_X, first_X, last_X, weight_TMh, grad_TGC, group_TM,
        *sizes, PIECE, PICKS, shape.tile, num_warps=1,
    )  # fmt: skip
    launch(
        _join_pieces, (n_blocks, shape.column_tiles),
        out_NC, partial_YC, sorted_X, first_X, last_X, len(sorted_X),
        shape.slice, shape.n_cores, PIECE, PICKS, shape.tile, num_warps=1,
    )  # fmt: skip
    return out_NC


class _WeightedLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_NC, row_TM, weight_TMh, group_TM, n_groups, deterministic):
        ctx.save_for_backward(values_NC, row_TM, weight_TMh, group_TM)
        ctx.deterministic = deterministic
        return _sum_rows(values_NC, row_TM, weight_TMh, group_TM, n_groups, values_NC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TGC):
        values_NC, row_TM, weight_TMh, group_TM = ctx.saved_tensors
        grad_TGC = grad_TGC.contiguous()
        to_values = to_weight = None
        if ctx.needs_input_grad[0]:
            to_values = _spread_rows(values_NC, row_TM, weight_TMh, grad_TGC, group_TM, ctx.deterministic)
        if ctx.needs_input_grad[2]:
            to_weight = _dot_rows(values_NC, row_TM, grad_TGC, group_TM, weight_TMh.shape[2], weight_TMh.dtype)
        return to_values, None, to_weight, None, None, None


class _RowDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_NP, row_TM, x_TP, deterministic):
        ctx.save_for_backward(table_NP, row_TM, x_TP)
        ctx.deterministic = deterministic
        dtype = torch.promote_types(table_NP.dtype, x_TP.dtype)
        return _dot_rows(table_NP, row_TM, x_TP[:, None], None, 1, dtype)[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TM):
        table_NP, row_TM, x_TP = ctx.saved_tensors
        weight_TM1 = grad_TM.contiguous()[..., None]
        to_table = to_x = None
        if ctx.needs_input_grad[0]:
            to_table = _spread_rows(table_NP, row_TM, weight_TM1, x_TP[:, None], None, ctx.deterministic)
        if ctx.needs_input_grad[2]:
            to_x = _sum_rows(table_NP, row_TM, weight_TM1, None, 1, x_TP.dtype)[:, 0]
        return to_table, None, to_x, None


def weighted_lookup(
    values_NC: Tensor,
    row_TM: Tensor,
    weight_TMh: Tensor,
    group_TM: Tensor | None = None,
    n_groups: int = 1,
    *,
    deterministic: bool = True,
) -> Tensor:
    """out[t, g, slice k] = sum over picks of group g of weight[t, pick, k] * values[row, slice k]; see `kernels`.

    Returns (T, n_groups, C) in the table's dtype. Gradient: values (dense), weight. `deterministic=False` adds the
    gradient of values by float32 atomics: no sort, twice the table in float32, another rounding in every run.
    Raises ValueError when the table is not contiguous.
    """
    contiguous_table("weighted_lookup", values_NC)
    group_TM = group_TM.contiguous() if n_groups > 1 else None  # type: ignore[union-attr]  # `kernels` asks for groups
    weight_TMh, row_TM = weight_TMh.contiguous(), row_TM.contiguous()
    return _WeightedLookup.apply(values_NC, row_TM, weight_TMh, group_TM, n_groups, deterministic)


def row_dot(table_NP: Tensor, row_TM: Tensor, x_TP: Tensor, *, deterministic: bool = True) -> Tensor:
    """<table[row], x> for every pick (P2 eq. 13-15); see `kernels`. Returns (T, M) in the wider of the two dtypes.

    Gradient: table (dense), x; `deterministic` as in weighted_lookup. Raises ValueError when the table is not contiguous.
    """
    contiguous_table("row_dot", table_NP)
    return _RowDot.apply(table_NP, row_TM.contiguous(), x_TP.contiguous(), deterministic)
