"""Bytes that the Triton kernels' loads ask for, and must bring in or write at least once, per tensor, by formula.

The tracer counts the same (interpreted_tracer.py).
"""

import triton

from kernels.triton.grouped_mm import tile_for
from kernels.triton.lookup import _Shape


def lookup_requested(n_tokens, n_picks, width, n_cores=1, n_groups=1, itemsize=2):
    """Bytes that the loads of one weighted_lookup ask for, per tensor, caches ignored; weights as wide as values.

    values: T*M*C*itemsize, each picked row once. Every column tile reads the indices anew; with G > 1 groups each group
    reads all M group numbers (int64), but only its own picks' rows, rows' indices and weights.
    """
    tiles = _Shape(n_tokens, n_picks, width, n_cores, n_groups).column_tiles
    picks = n_tokens * n_picks
    return {
        "values": picks * width * itemsize,
        "row": picks * 8 * tiles,
        "weight": picks * itemsize * tiles,
        "group": picks * 8 * tiles * n_groups if n_groups > 1 else 0,
    }


def lookup_unique(row_TM, width, n_cores=1, n_groups=1, itemsize=2):
    """Bytes that one weighted_lookup must bring in at least once, per tensor: values count their distinct rows."""
    return {
        "values": row_TM.unique().numel() * width * itemsize,
        "row": row_TM.numel() * 8,
        "weight": row_TM.numel() * n_cores * itemsize,
        "group": row_TM.numel() * 8 if n_groups > 1 else 0,
    }


def topm_requested(n_tokens, n_heads, n, m, rank=1, n_cores=0, itemsize=4):
    """Bytes that one retrieval's loads ask for, per tensor, caches ignored; rank 1 and no cores for product keys.

    The filter reads the n entries of an axis, r numbers each; the cross its K rows and columns; the ordering, and then
    every core's score, the m cells. A column is read anew for each of the row's r numbers. Scratch is left out.
    """
    scored = min(m, n) + m * (1 + max(1, n_cores))
    per_side = {"row": (n + scored) * rank, "col": (n + scored * rank) * rank}
    return {name: n_tokens * n_heads * entries * itemsize for name, entries in per_side.items()}


def topm_unique(n_tokens, n_heads, n, m, rank=1, n_cores=0, itemsize=4):
    """Bytes that one retrieval must bring in (row, col) or write (score, index) at least once."""
    programs = n_tokens * n_heads
    axis = programs * n * rank * itemsize
    return {"row": axis, "col": axis, "score": programs * m * max(1, n_cores) * 4, "index": programs * m * 8}


def grouped_mm_requested(counts, width_in, width_out, itemsize=2, tile=None):
    """Bytes that the forward pass's loads ask for, per tensor; counts: rows of each expert.

    An expert is read once for every tile of its rows, a row once for every tile of columns.
    """
    tile = tile or tile_for(sum(counts), len(counts), itemsize)
    return {
        "weight": sum(triton.cdiv(count, tile.rows) for count in counts) * width_in * width_out * itemsize,
        "x": sum(counts) * width_in * itemsize * triton.cdiv(width_out, tile.columns),
    }


def grouped_mm_unique(counts, width_in, width_out, itemsize=2):
    """Bytes that the forward pass must bring in at least once: the experts that have rows, and the rows."""
    return {
        "weight": sum(count > 0 for count in counts) * width_in * width_out * itemsize,
        "x": sum(counts) * width_in * itemsize,
    }
