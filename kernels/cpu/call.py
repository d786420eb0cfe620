"""Calls the C++ library with tensors, on torch.get_num_threads() threads.

float64 anywhere, float16 tables and grids of 2^32 cells or more are served by reference.py; scores and weights of half
precision are widened to float32, tables stay float32 or bfloat16.
"""

import ctypes

import torch
from torch import Tensor

from kernels.cpu.build import loaded

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}  # of a function that exists for both


def _kind(value):
    if isinstance(value, float):
        return ctypes.c_float
    return ctypes.c_int64 if isinstance(value, int) else ctypes.c_void_p


def _argument(value):
    if isinstance(value, Tensor):
        return value.data_ptr()
    return (ctypes.c_int64 * len(value))(*value) if isinstance(value, tuple) else value


def call(name: str, *arguments: object, work: int) -> int:
    """Run a library function; `work` counts the independent items: one item never wakes a second thread."""
    function = getattr(loaded(), name)
    if function.argtypes is None:
        function.argtypes = [*map(_kind, arguments), ctypes.c_int]
    return function(*map(_argument, arguments), max(1, min(torch.get_num_threads(), work)))


def checked(name: str, *arguments: object, work: int) -> None:
    """The same; raises IndexError when the function found a row or group out of range."""
    if call(name, *arguments, work=work):
        raise IndexError(f"{name}: a row or group number is out of range")


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
