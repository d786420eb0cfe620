"""The matrix products of a mixture of experts that decodes: weights read once in C++ (`src/linear.cpp`), or a torch.mm each.

See `kernels`. Letters as in reference.py.
"""

from torch import Tensor

from kernels import reference
from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import streams


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    # Experts are many shapes of few rows, for each of which oneDNN would compile a kernel: their width does not matter.
    rows = len(x_SD) // max(1, int((counts_E > 0).sum()))
    together = weight_EDF.mT.is_contiguous() and not weight_EDF.is_contiguous()
    if needs_grad(x_SD, weight_EDF) or not (together and streams(x_SD.dtype, rows, 1 << 30)):
        return reference.grouped_mm(x_SD, weight_EDF, counts_E)
    reference.check_counts(x_SD, counts_E)
    (E, D, F), y_SF = weight_EDF.shape, x_SD.new_empty(len(x_SD), weight_EDF.shape[2])
    call(f"linear_{SUFFIX[x_SD.dtype]}", x_SD.contiguous(), weight_EDF, counts_E.long(), E, D, F, y_SF, work=F // 64)
    return y_SF
