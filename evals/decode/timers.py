"""Times one step on a CPU or a CUDA device, and measures what the device can do: the yardsticks of the decode benchmark.

A step is a function without arguments that repeats the same work on the same memory. On CUDA it is captured into a graph,
so that what is timed is the device and not Python. By default the caches are flushed before every timed step: the models
timed here stand for larger ones, of whose weights none would survive in the cache from one step to the next.

    from evals.decode.timers import timer
    clock = timer("cuda")
    timed = clock.prepare(step)
    seconds = [timed() for _ in range(9)]
    clock.read_bandwidth(torch.bfloat16), clock.gather_bandwidth(torch.bfloat16, 512), clock.overhead()
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.triton.tune import tuning

Step = Callable[[], object]
CACHES_COVERED = 8  # yardsticks read this many times the last-level cache: what is left in it from before is a small share
CPU_CACHE = 32 << 20  # where the system does not say
WARM_UPS = 3
BUDGET_S = 0.1  # of one median, beside the first call
PICKS = 64  # gathered rows summed into one, about what a token of a memory layer reads


class Timer(ABC):
    """Seconds of a step, and medians of the device's own speeds. CPU figures are for `torch.get_num_threads()` threads.

    Args:
        device: where the steps and yardsticks run.
        flush: whether a timed step starts with cold caches.
    """

    flops_at_once: float  # of products timed together, so that one reading of the clock weighs little

    def __init__(self, device: torch.device, flush: bool):
        self.device, self.flush = device, flush

    @abstractmethod
    def cache_bytes(self) -> int:
        """Size of the last-level cache."""

    @abstractmethod
    def prepare(self, step: Step) -> Callable[[], float]:
        """A function that runs the step once and returns its seconds. The step itself runs here, to warm up."""

    @functools.cached_property
    def _evictor(self) -> Tensor:
        return torch.ones(2 * self.cache_bytes() // 4, device=self.device)

    def _empty_caches(self) -> None:
        # Reading leaves clean lines. Written ones would have to go to memory during the step that is timed.
        self._evictor.sum()

    def median(self, step: Step) -> float:
        """Median seconds of the step with the caches as its last repetition left them."""
        timed = type(self)(self.device, flush=False).prepare(step)
        timed()
        end = time.perf_counter() + BUDGET_S
        seconds: list[float] = []
        while len(seconds) < 3 or (time.perf_counter() < end and len(seconds) < 100):
            seconds.append(timed())
        return statistics.median(seconds)

    def overhead(self, calls: int = 100) -> float:
        """Seconds of an operation that does next to nothing: torch's dispatch on a CPU, a node of a graph on CUDA."""
        nothing = torch.zeros(1, device=self.device)

        def step() -> None:
            for _ in range(calls):
                nothing.add_(1)

        return self.median(step) / calls

    def read_bandwidth(self, dtype: torch.dtype, n_bytes: int = 0) -> float:
        """Bytes per second of reading `n_bytes` (by default `CACHES_COVERED` caches) in order, the fastest of several ways.

        A sum and a dot product of the bytes taken as float32, and a matrix times a vector in `dtype`: a slow yardstick
        would flatter whatever is held against it.
        """
        width = 4096
        rows = max(1, (n_bytes or CACHES_COVERED * self.cache_bytes()) // (width * dtype.itemsize))
        data = torch.ones(rows, width, dtype=dtype, device=self.device)
        words, ones = data.view(torch.float32).flatten(), torch.ones(width, dtype=dtype, device=self.device)
        half = len(words) // 2
        ways: tuple[Step, ...] = (words.sum, lambda: torch.dot(words[:half], words[half:]), lambda: data @ ones)
        return data.nbytes / min(map(self.median, ways))

    def gather_bandwidth(self, dtype: torch.dtype, row_bytes: int) -> float:
        """Bytes per second of reading every row of `row_bytes` once, in random order, from `CACHES_COVERED` caches of them.

        By `kernels.weighted_lookup`, 64 rows to a sum: unlike `index_select` it writes next to nothing.

        Raises:
            ValueError: rows do not hold whole numbers of `dtype`.
        """
        width, rest = divmod(row_bytes, dtype.itemsize)
        if rest or not width:
            raise ValueError(f"a row of {row_bytes} bytes does not hold whole numbers of {dtype}")
        rows = CACHES_COVERED * self.cache_bytes() // (row_bytes * PICKS) * PICKS
        table = torch.ones(rows, width, dtype=dtype, device=self.device)
        picks = torch.randperm(rows, device=self.device).view(-1, PICKS)
        weight = torch.ones(*picks.shape, 1, dtype=dtype, device=self.device)
        return table.nbytes / self.median(lambda: kernels.weighted_lookup(table, picks, weight))

    def matmul_rate(self, dtype: torch.dtype, rows: int, d_in: int, d_out: int) -> float:
        """FLOPs per second of `rows` x `d_in` times `d_in` x `d_out`, weights warm, by the fastest product there is."""
        x = torch.ones(rows, d_in, dtype=dtype, device=self.device)
        weight = torch.ones(d_out, d_in, dtype=dtype, device=self.device)
        turned = weight.T.contiguous()
        flops = 2 * rows * d_in * d_out
        calls = max(1, min(100, round(self.flops_at_once / flops)))

        def repeated(product: Step) -> Step:
            return lambda: [product() for _ in range(calls)]

        ways = (lambda: F.linear(x, weight), lambda: torch.mm(x, turned), lambda: kernels.linear(x, weight))
        return calls * flops / min(self.median(repeated(way)) for way in ways)


class CpuTimer(Timer):
    """The clock around the call."""

    flops_at_once = 1e8

    def cache_bytes(self) -> int:
        return last_level_cache()

    def prepare(self, step: Step) -> Callable[[], float]:
        step()

        def timed() -> float:
            if self.flush:
                self._empty_caches()
            start = time.perf_counter()
            step()
            return time.perf_counter() - start

        return timed


class CudaTimer(Timer):
    """Replays of a CUDA graph between two events."""

    flops_at_once = 1e11

    def cache_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size

    def prepare(self, step: Step) -> Callable[[], float]:
        """As the base class says. Kernels with tunable launch settings are tuned in the first warm-up step.

        A step that cannot be captured is timed as it is, launches included, and stderr says so.
        """
        with torch.cuda.device(self.device):
            main, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                with tuning():
                    step()
                for _ in range(WARM_UPS - 1):
                    step()
            main.wait_stream(side)
            run = self._captured(step)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            run()
            torch.cuda.synchronize()

        def timed() -> float:
            with torch.cuda.device(self.device):
                if self.flush:
                    self._empty_caches()
                start.record()
                run()
                end.record()
                end.synchronize()
                return start.elapsed_time(end) / 1e3

        return timed

    def _captured(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"a step could not be captured into a CUDA graph and is timed with its launches: {reason}", file=sys.stderr)
            torch.cuda.synchronize()
            return step
        return graph.replay


def timer(device: str | torch.device, flush: bool = True) -> Timer:
    """The timer of a device, "cpu" or "cuda[:n]"."""
    device = torch.device(device)
    return {"cpu": CpuTimer, "cuda": CudaTimer}[device.type](device, flush)


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache that serves the first core, `CPU_CACHE` where the system does not say."""
    sizes = [_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=CPU_CACHE)


def _size(path: Path) -> int:
    text = path.read_text().strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit
