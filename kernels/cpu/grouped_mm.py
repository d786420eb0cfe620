"""The matrix products of a mixture of experts that decodes: weights read once in C++ (`src/linear.cpp`), or a torch.mm each.

See `kernels`. Letters as in reference.py.
"""

from torch import Tensor

from kernels import reference
from kernels.cpu.call import SUFFIX, call, needs_grad
from kernels.cpu.linear import laid_out_for_decoding


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    if needs_grad(x_SD, weight_EDF) or not laid_out_for_decoding(weight_EDF) or x_SD.dtype not in SUFFIX:
        return reference.grouped_mm(x_SD, weight_EDF, counts_E)
    reference.check_counts(x_SD, counts_E)
    (E, D, F), y_SF = weight_EDF.shape, x_SD.new_empty(len(x_SD), weight_EDF.shape[2])
    call(f"linear_{SUFFIX[x_SD.dtype]}", x_SD.contiguous(), weight_EDF, counts_E.long(), E, D, F, y_SF, work=F // 64)
    return y_SF
