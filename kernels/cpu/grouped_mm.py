"""The matrix products of a mixture of experts that decodes: weights read once in C++ (`src/linear.cpp`), or a torch.mm each.

See `kernels`. Letters as in reference.py.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import laid_out_for_decoding, streams

# oneDNN compiles a kernel for every number of rows (about 3 ms), and an expert's changes every step: rows are filled up to a
# multiple of this.
GRAIN = 32


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    if needs_grad(x_SD, weight_EDF) or not laid_out_for_decoding(weight_EDF) or x_SD.dtype not in SUFFIX:
        return reference.grouped_mm(x_SD, weight_EDF, counts_E)
    counts = reference.check_counts(x_SD, counts_E)
    (E, D, F), y_SF = weight_EDF.shape, x_SD.new_empty(len(x_SD), weight_EDF.shape[2])
    # Experts are many shapes of few rows: their width does not matter.
    if streams(x_SD.dtype, len(x_SD) // max(1, E - counts.count(0)), 1 << 30):
        call(f"linear_{SUFFIX[x_SD.dtype]}", x_SD.contiguous(), weight_EDF, counts_E.long(), E, D, F, y_SF, work=F // 64)
        return y_SF
    start = 0
    for count, weight_DF in zip(counts, weight_EDF.unbind(), strict=True):
        if count:
            rows, stop = -(-count // GRAIN) * GRAIN, start + count
            if start + rows <= len(x_SD):  # what runs into the next experts' rows is written again by them
                torch.mm(x_SD[start : start + rows], weight_DF, out=y_SF[start : start + rows])
            else:
                filled_RD = x_SD.new_zeros(rows, D)
                filled_RD[:count] = x_SD[start:stop]
                y_SF[start:stop] = torch.mm(filled_RD, weight_DF)[:count]
            start = stop
    return y_SF
