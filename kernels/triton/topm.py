"""Triton kernels of retrieval: exact top-m of a product or Tucker grid, from scores per axis (P1 sec. 3.1, eq. 4-12).

One program per token and head: (1) keep the best K = min(m, n) rows and columns; (2) score the K x K cross; (3) keep its
best m; (4) put them in order and score them per core. Each selection is a threshold search: 31 counting steps find the
m-th largest of int32 keys that sort as the scores do, a running sum compacts what lies above. No sorting network, so a
kernel compiles in a second and holds one key per cell. Candidates stay in index order throughout, which makes "lowest
index among equals" free. Scores are compared in float32; NaN counts as the largest, as in torch.sort; -0 equals +0.

A value read by another thread than wrote it passes through `scratch`, private to the program, behind a barrier.

Letters: T tokens, H heads, n keys per axis, m picks, K = min(m, n), r Tucker rank, h cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.triton.launch import launch

MOST_PICKS = 128  # the cross then puts 32 keys in every thread of 16 warps: about what the registers hold


@triton.jit
def sort_key(score, valid):  # noqa: ANN201  a jit function
    """int32 that compares as the float32 score does; what is not valid comes last."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(score != score, 0x7FFFFFFF, key)
    return tl.where(valid, key, -0x80000000)


@triton.jit
def select_topm(key, m):  # noqa: ANN201  a jit function
    """Marks the m largest keys, the first among equals, and numbers them in order of position."""
    floor = tl.where(tl.sum((key >= 0).to(tl.int32), 0) >= m, 0, -0x80000000)
    for step in range(31):
        higher = floor | (1 << (30 - step))
        floor = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= m, higher, floor)
    above = (key > floor).to(tl.int32)
    equal = (key == floor).to(tl.int32)
    # One running sum for both marks: how many above (high half) and how many equal (low half) come up to each position.
    upto = tl.cumsum((above << 16) + equal, 0)
    room = m - tl.sum(above, 0)
    equal_upto = upto & 0xFFFF
    take = (above > 0) | ((equal > 0) & (equal_upto <= room))
    return take, (upto >> 16) + tl.minimum(equal_upto, room) - 1


@triton.jit
def _keep_best(kept, score, filter, n, K: tl.constexpr, R: tl.constexpr, CORES: tl.constexpr, NB: tl.constexpr):
    """Writes the positions of the K best entries of one axis, in index order."""
    at = tl.arange(0, NB)
    if CORES == 0:
        value = tl.load(score + at, mask=at < n, other=0.0).to(tl.float32)
    else:
        value = tl.zeros([NB], tl.float32)
        for r in tl.static_range(R):
            part = tl.load(score + at * R + r, mask=at < n, other=0.0).to(tl.float32)
            value += part * tl.load(filter + r).to(tl.float32)
    take, slot = select_topm(sort_key(value, at < n), K)
    tl.store(kept + slot, at, mask=take)


@triton.jit
def _cell_score(row, col, core, i, j, valid_i, valid_j, H, R: tl.constexpr, CORES: tl.constexpr):
    """Score of cells (i, j), summed over cores; `core` points at this head's matrix of the first core. i and j may be
    the sides of a cross: they are loaded before they meet."""
    if CORES == 0:
        x = tl.load(row + i, mask=valid_i, other=0.0).to(tl.float32)
        total = x + tl.load(col + j, mask=valid_j, other=0.0).to(tl.float32)
    else:
        total = tl.zeros_like(i + j).to(tl.float32)
        for r in tl.static_range(R):
            x = tl.load(row + i * R + r, mask=valid_i, other=0.0).to(tl.float32)
            weighted = tl.zeros_like(j).to(tl.float32)
            for s in tl.static_range(R):
                c = tl.load(core + r * R + s).to(tl.float32)
                for k in tl.static_range(1, CORES):
                    c += tl.load(core + k * H * R * R + r * R + s).to(tl.float32)
                weighted += c * tl.load(col + j * R + s, mask=valid_j, other=0.0).to(tl.float32)
            total += x * weighted
    return total


@triton.jit
def _topm(
    score, index, scratch, row, col, core, u, t, H, n, m,
    K: tl.constexpr, R: tl.constexpr, CORES: tl.constexpr,
    NB: tl.constexpr, KB: tl.constexpr, MB: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """CORES == 0: product keys, cell score row[i] + col[j]. Otherwise Tucker with that many cores."""
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(0) % H
    row += program * n * R
    col += program * n * R
    if CORES > 0:
        core += head * R * R
        u += head * R
        t += head * R
    rows = scratch + program * (2 * K + 2 * m)
    cols = rows + K
    cells = cols + K
    keys = cells + m
    _keep_best(rows, row, u, n, K, R, CORES, NB)
    _keep_best(cols, col, t, n, K, R, CORES, NB)
    tl.debug_barrier()

    at = tl.arange(0, KB)
    i = tl.load(rows + at, mask=at < K, other=0)[:, None]
    j = tl.load(cols + at, mask=at < K, other=0)[None, :]
    valid_i, valid_j = (at < K)[:, None], (at < K)[None, :]
    total = _cell_score(row, col, core, i, j, valid_i, valid_j, H, R, CORES)
    take, slot = select_topm(tl.reshape(sort_key(total, valid_i & valid_j), [KB * KB]), m)
    at = tl.arange(0, KB * KB)
    tl.store(cells + slot, at, mask=take)
    tl.debug_barrier()

    at = tl.arange(0, MB)
    valid = at < m
    cell = tl.load(cells + at, mask=valid, other=0)
    i = tl.load(rows + cell // KB, mask=valid, other=0)
    j = tl.load(cols + cell % KB, mask=valid, other=0)
    key = sort_key(_cell_score(row, col, core, i, j, valid, valid, H, R, CORES), valid)
    tl.store(keys + at, key, mask=valid)
    tl.debug_barrier()
    rank = tl.zeros([MB], tl.int32)
    for start in range(0, m, BC):
        other_at = start + tl.arange(0, BC)
        other = tl.load(keys + other_at, mask=other_at < m, other=-0x80000000)[None, :]
        earlier = (other == key[:, None]) & (other_at[None, :] < at[:, None])
        ahead = ((other > key[:, None]) | earlier) & (other_at[None, :] < m)
        rank += tl.sum(ahead.to(tl.int32), 1)
    out = program * m + rank
    tl.store(index + out, i.to(tl.int64) * n + j, mask=valid)
    if CORES == 0:
        tl.store(score + out, _cell_score(row, col, core, i, j, valid, valid, H, R, CORES), mask=valid)
    for k in tl.static_range(CORES):
        one = _cell_score(row, col, core + k * H * R * R, i, j, valid, valid, H, R, 1)
        tl.store(score + out * CORES + k, one, mask=valid)


@triton.jit
def _spread(grad_axis, at_axis, value, n, stride, BN: tl.constexpr):
    """grad_axis[k] = sum of the values whose pick lies at k, for every k: writes zeros too, adds in a fixed order."""
    for n0 in range(0, n, BN):
        k = n0 + tl.arange(0, BN)
        hit = at_axis[None, :] == k[:, None]
        total = tl.sum(tl.where(hit, value[None, :], 0.0), 1)
        tl.store(grad_axis + k * stride, total.to(grad_axis.dtype.element_ty), mask=k < n)


@triton.jit
def _topm_backward(
    grad_row, grad_col, grad_core, grad, index, row, col, core, H, n, m,
    R: tl.constexpr, CORES: tl.constexpr, MB: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients through the selected cells; grad_core holds one part per program, summed by the caller."""
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(0) % H
    at = tl.arange(0, MB)
    valid = at < m
    cell = tl.load(index + program * m + at, mask=valid, other=0).to(tl.int32)
    i = tl.where(valid, cell // n, -1)
    j = tl.where(valid, cell % n, -1)
    if CORES == 0:
        g = tl.load(grad + program * m + at, mask=valid, other=0.0).to(tl.float32)
        _spread(grad_row + program * n, i, g, n, 1, BN)
        _spread(grad_col + program * n, j, g, n, 1, BN)
    else:
        row += program * n * R
        col += program * n * R
        core += head * R * R
        grad += (program * m + at) * CORES
        for r in tl.static_range(R):
            x = tl.load(row + i * R + r, mask=valid, other=0.0).to(tl.float32)
            to_x = tl.zeros([MB], tl.float32)
            to_y = tl.zeros([MB], tl.float32)
            for k in tl.static_range(CORES):
                g = tl.load(grad + k, mask=valid, other=0.0).to(tl.float32)
                for s in tl.static_range(R):
                    y_s = tl.load(col + j * R + s, mask=valid, other=0.0).to(tl.float32)
                    x_s = tl.load(row + i * R + s, mask=valid, other=0.0).to(tl.float32)
                    to_x += g * y_s * tl.load(core + (k * H * R + r) * R + s).to(tl.float32)
                    to_y += g * x_s * tl.load(core + (k * H * R + s) * R + r).to(tl.float32)
                    tl.store(grad_core + ((program * CORES + k) * R + r) * R + s, tl.sum(g * x * y_s, 0))
            _spread(grad_row + program * n * R + r, i, to_x, n, R, BN)
            _spread(grad_col + program * n * R + r, j, to_y, n, R, BN)


def _forward(row_THX, col_THX, core_hHrr, u_Hr, t_Hr, n, rank, n_cores, m):
    n_tokens, n_heads = row_THX.shape[:2]
    kept = min(m, n)
    if m > MOST_PICKS:
        raise ValueError(f"top-m: the Triton kernel selects at most {MOST_PICKS} cells per head, not m={m}")
    if n * n >= 1 << 31:
        raise ValueError(f"top-m: {n} keys per axis make {n * n} cells; the Triton kernel numbers them in 31 bits")
    score_THX = row_THX.new_empty(n_tokens, n_heads, m, max(1, n_cores), dtype=torch.float32)
    index_THm = row_THX.new_empty(n_tokens, n_heads, m, dtype=torch.int64)
    scratch = row_THX.new_empty(n_tokens * n_heads, 2 * kept + 2 * m, dtype=torch.int32)
    side = triton.next_power_of_2(kept)
    launch(
        _topm, (n_tokens * n_heads,),
        score_THX, index_THm, scratch, row_THX, col_THX, core_hHrr, u_Hr, t_Hr, n_heads, n, m,
        kept, rank, n_cores, triton.next_power_of_2(n), side, triton.next_power_of_2(m), 16,
        num_warps=min(16, max(4, side**2 // 512)), num_stages=1,
    )  # fmt: skip
    return score_THX, index_THm


def _backward(grad_THX, index_THm, row_THX, col_THX, core_hHrr, n, rank, n_cores):
    n_tokens, n_heads, m = index_THm.shape
    grad_row, grad_col = torch.empty_like(row_THX), torch.empty_like(col_THX)
    core_parts = row_THX.new_empty(n_tokens, n_heads, n_cores, rank, rank, dtype=torch.float32)
    block = triton.next_power_of_2(m)
    launch(
        _topm_backward, (n_tokens * n_heads,),
        grad_row, grad_col, core_parts, grad_THX.contiguous(), index_THm, row_THX, col_THX, core_hHrr, n_heads, n, m,
        rank, n_cores, block, max(1, 2048 // block), num_warps=4, num_stages=1,
    )  # fmt: skip
    return grad_row, grad_col, core_parts


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THn, col_THn, m):
        score_THm1, index_THm = _forward(row_THn, col_THn, None, None, None, row_THn.shape[-1], 1, 0, m)
        ctx.save_for_backward(row_THn, col_THn, index_THm)
        ctx.mark_non_differentiable(index_THm)
        return score_THm1[..., 0], index_THm

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_THm, _):
        row_THn, col_THn, index_THm = ctx.saved_tensors
        grad_row, grad_col, _ = _backward(grad_THm, index_THm, row_THn, col_THn, None, row_THn.shape[-1], 1, 0)
        return grad_row, grad_col, None


class _Tucker(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
        sizes = (*row_THnr.shape[2:], core_hHrr.shape[0])
        score_THmh, index_THm = _forward(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, *sizes, m)
        ctx.save_for_backward(row_THnr, col_THnr, core_hHrr, index_THm)
        ctx.mark_non_differentiable(index_THm)
        return score_THmh, index_THm

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_THmh, _):
        row_THnr, col_THnr, core_hHrr, index_THm = ctx.saved_tensors
        sizes = (*row_THnr.shape[2:], core_hHrr.shape[0])
        grad_row, grad_col, parts = _backward(grad_THmh, index_THm, row_THnr, col_THnr, core_hHrr, *sizes)
        return grad_row, grad_col, parts.sum(0).transpose(0, 1).to(core_hHrr.dtype), None, None, None


def product_topm(row_THn: Tensor, col_THn: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Exact top-m of row[i] + col[j] over all n*n cells; see `kernels`. Returns (T, H, m) float32 scores, int64 cells.

    Raises ValueError when m exceeds 128 or n*n cells do not fit in 31 bits.
    """
    return _Product.apply(row_THn.contiguous(), col_THn.contiguous(), m)


def tucker_topm(
    row_THnr: Tensor, col_THnr: Tensor, core_hHrr: Tensor, u_Hr: Tensor, t_Hr: Tensor, m: int
) -> tuple[Tensor, Tensor]:
    """Filter each axis by u and t, re-score the cross exactly, keep the top-m by the sum over cores; see `kernels`.

    Returns (T, H, m, h) float32 scores per core, best sum first, and (T, H, m) int64 cells. Raises ValueError as above.
    """
    return _Tucker.apply(*(x.contiguous() for x in (row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr)), m)
