"""Keeps freed memory in the process: a training step allocates and frees the same large tensors again and again.

glibc hands blocks above 32 MB back to the kernel at once and takes them anew, page fault by page fault, at the next step;
measured here, that took a seventh of a dense step. Other allocators and CUDA are left alone.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def keep_memory(keep: bool = True) -> bool:
    """Turns the habit off (`keep`) or back to glibc's defaults; returns whether this platform listened."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    keys = (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD)
    settings = (1 << 30, (1 << 31) - 1, 1 << 26) if keep else (128 << 10, 128 << 10, 128 << 10)
    return all(mallopt(key, value) for key, value in zip(keys, settings, strict=True))
