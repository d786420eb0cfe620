"""What the Triton files share: how a kernel is started, and what it may assume about its arguments.

The ahead-of-time gate (`kernels.aot`) replaces `start` to learn what the wrappers launch, so that it compiles exactly that.
"""

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

if TYPE_CHECKING:
    from typing import Any

# True when TRITON_INTERPRET=1 was set before the first import of Triton: kernels then run as numpy, tensors lie on the CPU.
INTERPRETED = triton.knobs.runtime.interpret


def start(kernel: "Any", grid: tuple[int, ...], arguments: tuple, options: dict) -> None:
    kernel[grid](*arguments, **options)


def launch(kernel: "Any", grid: tuple[int, ...], *arguments: "Any", num_warps: int, num_stages: int = 3) -> None:
    """Starts `kernel` on the device of its first argument, a tensor.

    Fusing a*b+c is stated, not inherited: the default of TRITON_DEFAULT_FP_FUSION changes between Triton versions, and
    with it the machine code.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    with torch.cuda.device_of(arguments[0]):
        start(kernel, grid, arguments, options)


def contiguous_table(name: str, table: Tensor) -> Tensor:
    """The table itself. Copying gigabytes behind the caller's back is not an option: raises ValueError."""
    if not table.is_contiguous():
        raise ValueError(f"{name}: the table must be contiguous; call .contiguous() on it once, outside the step")
    return table


def block(n: int, at_most: int) -> int:
    """Power of two that covers n, cut off at `at_most` (at least 16, so that a row segment fills 128-bit loads)."""
    return max(16, min(at_most, triton.next_power_of_2(n)))
