"""What the disk gives: pages read at random, one or as many at a time as a layer asks for, and in order. Not from memory.

Reads go past the page cache (O_DIRECT); where a file system refuses that, the file is dropped from it first. Random reads are
of whole pages, for a page is the least that a mapped row costs.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from models.rows import PAGE

IN_ORDER = 1 << 20  # bytes of one read


def opened(path: Path) -> tuple[int, str]:
    """A file descriptor, and how its reads are kept from being served from memory."""
    try:
        descriptor, how = os.open(path, os.O_RDONLY | os.O_DIRECT), "O_DIRECT"
        os.preadv(descriptor, [mmap.mmap(-1, PAGE)], 0)
    except OSError:
        descriptor, how = os.open(path, os.O_RDONLY), "page cache dropped"
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor, how


def rate(descriptor: int, places: np.ndarray, size: int, depth: int, budget_s: float) -> tuple[float, int]:
    """Bytes per second of reading `size` bytes at each of these places, `depth` reads at a time, for `budget_s` at most."""
    start = time.perf_counter()

    def reads(own: list[int]) -> int:
        buffer, done = [mmap.mmap(-1, size)], 0
        for place in own:
            if time.perf_counter() - start > budget_s:
                break
            os.preadv(descriptor, buffer, place)
            done += 1
        return done

    with ThreadPoolExecutor(depth) as threads:
        done = sum(threads.map(reads, [places[i::depth].tolist() for i in range(depth)]))
    return size * done / (time.perf_counter() - start), done


def rows(path: Path, depths: tuple[int, ...], device: str, budget_s: float = 3.0, seed: int = 0) -> Iterator[dict]:
    """Rows of the table `offload_disk`."""
    descriptor, how = opened(path)
    pages, rng = os.path.getsize(path) // PAGE, np.random.default_rng(seed)
    try:
        for pattern, size, depth in (*(("random", PAGE, depth) for depth in depths), ("in order", IN_ORDER, 1)):
            count = max(1, min(pages * PAGE // size, 1 << 17))
            places = rng.integers(pages, size=count) * PAGE if pattern == "random" else np.arange(count) * size
            if pattern == "in order" and pages * PAGE < size:
                size, places = PAGE, np.arange(pages) * PAGE
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            speed, done = rate(descriptor, places, size, depth, budget_s)
            yield {
                "device": device,
                "pattern": pattern,
                "bytes_each": size,
                "depth": depth,
                "how": how,
                "bytes_per_s": speed,
                "n_reads": done,
                "file_bytes": os.path.getsize(path),
            }
    finally:
        os.close(descriptor)
