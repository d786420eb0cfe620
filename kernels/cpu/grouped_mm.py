"""The matrix products of a mixture of experts: C++ (`src/grouped_mm.cpp`, `src/linear.cpp`) or one torch.mm per expert.

See `kernels`. Letters as in reference.py.
"""

import torch
from torch import Tensor

from kernels.cpu.build import loaded
from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import streams

# Where the C++ product beats one torch.mm per expert: narrow experts always, wider ones up to these mean rows (decoding).
GROUPED_NARROW, GROUPED_WIDE = 64, 512
GROUPED_FEW_ROWS = {torch.float32: 2, torch.bfloat16: 8}


def _turned(weight_EDF):
    """Whether every output's weights lie together, as in nn.Linear."""
    return weight_EDF.mT.is_contiguous() and not weight_EDF.is_contiguous()


def _small_tiles(weight_EDF, n_rows):
    """Suffix of the C++ product that serves these experts, None where one torch.mm per expert does."""
    (E, D, F), dtype = weight_EDF.shape, weight_EDF.dtype
    level = {torch.float32: 1, torch.bfloat16: 2}.get(dtype, 3)
    if loaded().grouped_level() < level or (dtype == torch.bfloat16 and (D % 2 or F % 2)):
        return None
    few_rows = max(D, F) <= GROUPED_WIDE and n_rows <= GROUPED_FEW_ROWS[dtype] * E
    return SUFFIX[dtype] if few_rows or max(D, F) <= GROUPED_NARROW else None


def _grain(dtype):
    """Row counts are rounded up to multiples of this: oneDNN, which serves bf16, compiles a kernel per shape (about 3 ms),
    and an expert's count changes every step; the BLAS that serves float32 does not care."""
    return 32 if dtype == torch.bfloat16 else 1


def _rows_times(x_SD, weights, counts, out_SF, grain):
    """out = rows of x times the weight of their expert. A rounded product runs into the next experts' rows, which are
    written after it; where none are left it gets a copy of its own."""
    start = 0
    for count, weight in zip(counts, weights, strict=True):
        if not count:
            continue
        wide, stop = -(-count // grain) * grain, start + count
        if start + wide <= len(x_SD):
            torch.mm(x_SD[start : start + wide], weight, out=out_SF[start : start + wide])
        else:
            rows = x_SD.new_zeros(wide, x_SD.shape[1])
            rows[:count] = x_SD[start:stop]
            out_SF[start:stop] = torch.mm(rows, weight)[:count]
        start = stop


def _padded(x_SD, counts_E, grain):
    """x with every expert's rows filled up with zeros to a multiple of `grain`, and the filled counts."""
    wide_E = (counts_E + grain - 1) // grain * grain
    shift_E = (wide_E - counts_E).cumsum(0) - (wide_E - counts_E)
    place_S = torch.arange(len(x_SD)) + shift_E.repeat_interleave(counts_E)
    return x_SD.new_zeros(int(wide_E.sum()), x_SD.shape[1]).index_copy_(0, place_S, x_SD), wide_E.tolist()


def _grouped_mm(x_SD, weight_EDF, counts_E):
    E, D, F = weight_EDF.shape
    y_SF = x_SD.new_empty(len(x_SD), F)
    if _turned(weight_EDF):
        # Experts are many shapes of few rows, for each of which oneDNN would compile a kernel: their width does not matter.
        if streams(x_SD.dtype, len(x_SD) // max(1, int((counts_E > 0).sum())), 1 << 30):
            call(f"linear_{SUFFIX[x_SD.dtype]}", x_SD, weight_EDF, counts_E, E, D, F, y_SF, work=F // 64)
        else:
            _rows_times(x_SD, weight_EDF.unbind(), counts_E.tolist(), y_SF, _grain(x_SD.dtype))
    elif suffix := _small_tiles(weight_EDF, len(x_SD)):
        call(f"grouped_{suffix}", x_SD, weight_EDF, counts_E, E, D, F, y_SF, work=E)
    else:
        _rows_times(x_SD, weight_EDF.unbind(), counts_E.tolist(), y_SF, _grain(x_SD.dtype))
    return y_SF


class _GroupedMm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_SD, weight_EDF, counts_E):
        ctx.save_for_backward(x_SD, weight_EDF, counts_E)
        return _grouped_mm(x_SD, weight_EDF, counts_E)

    @staticmethod
    def backward(ctx, d_y_SF):
        x_SD, weight_EDF, counts_E = ctx.saved_tensors
        d_y_SF, (E, D, F), suffix = d_y_SF.contiguous(), weight_EDF.shape, _small_tiles(weight_EDF, len(x_SD))
        d_x_SD = torch.empty_like(x_SD) if ctx.needs_input_grad[0] else None
        d_weight_EDF = torch.empty_like(weight_EDF) if ctx.needs_input_grad[1] else None
        if suffix:
            if d_x_SD is not None:
                call(f"grouped_dx_{suffix}", d_y_SF, weight_EDF, counts_E, E, D, F, d_x_SD, work=E)
            if d_weight_EDF is not None:
                call(f"grouped_dw_{suffix}", x_SD, d_y_SF, counts_E, E, D, F, d_weight_EDF, work=E)
            return d_x_SD, d_weight_EDF, None
        grain = _grain(x_SD.dtype)
        if d_x_SD is not None:
            _rows_times(d_y_SF, weight_EDF.mT.unbind(), counts_E.tolist(), d_x_SD, grain)
        if d_weight_EDF is not None:
            counts = counts_E.tolist()
            if grain > 1:
                (x_SD, counts), (d_y_SF, _) = (_padded(rows, counts_E, grain) for rows in (x_SD, d_y_SF))
            d_weight_EDF[counts_E == 0] = 0
            for x, d_y, d_weight in zip(x_SD.split(counts), d_y_SF.split(counts), d_weight_EDF.unbind(), strict=True):
                if len(x):
                    torch.mm(x.T, d_y, out=d_weight)
        return d_x_SD, d_weight_EDF, None


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    counts_E = counts_E.long().contiguous()
    if int(counts_E.sum()) != len(x_SD) or bool((counts_E < 0).any()):
        raise ValueError(f"grouped_mm: counts must be >= 0 and add up to the {len(x_SD)} rows of x")
    if needs_grad(x_SD, weight_EDF):
        return _GroupedMm.apply(x_SD.contiguous(), weight_EDF.contiguous(), counts_E)
    return _grouped_mm(x_SD.contiguous(), weight_EDF if _turned(weight_EDF) else weight_EDF.contiguous(), counts_E)
