"""Runs a memory layer beside the blocks between its read and its write (P1 section 3.2): in a thread, or on a CUDA stream.

A memory of placement i:j is started when block i has its FFN's input and finished when block j needs its output. On a CPU one
worker thread runs what is started, in order; give each side one intra-op thread (`torch.set_num_threads(1)`) and a core. On
CUDA a side stream does. The operations and their order within a layer are those of the plain path, so the outputs are too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache as remember

import torch
from torch import Tensor, nn

from models.decode import DecodeState

Finish = Callable[[], tuple[Tensor, Tensor]]


def at_once(memory: nn.Module, z_BTD: Tensor, cache: DecodeState | None) -> Finish:
    result = memory(z_BTD, cache)
    return lambda: result


@remember
def worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")


@remember
def side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Overlap:
    """What `Transformer.overlap` takes. An error of a memory layer is raised at the latest where its output is needed."""

    def start(self, memory: nn.Module, z_BTD: Tensor, cache: DecodeState | None) -> Finish:
        """Starts memory(z, cache) and returns what waits for its output."""
        return (self._on_stream if z_BTD.is_cuda else self._in_thread)(memory, z_BTD, cache)

    def _in_thread(self, memory: nn.Module, z_BTD: Tensor, cache: DecodeState | None) -> Finish:
        # Modes and the number of intra-op threads are a thread's own, so the worker is told those of the caller.
        kind, inference, n_threads = z_BTD.device.type, torch.is_inference_mode_enabled(), torch.get_num_threads()
        autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))

        def work() -> tuple[Tensor, Tensor]:
            if torch.get_num_threads() != n_threads:
                torch.set_num_threads(n_threads)
            with torch.inference_mode(inference), torch.no_grad(), autocast:
                return memory(z_BTD, cache)

        return worker().submit(work).result

    def _on_stream(self, memory: nn.Module, z_BTD: Tensor, cache: DecodeState | None) -> Finish:
        main, side = torch.cuda.current_stream(z_BTD.device), side_stream(z_BTD.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            result = memory(z_BTD, cache)
        done = side.record_event()

        def finish(held: Tensor = z_BTD) -> tuple[Tensor, Tensor]:
            # The allocator hands memory out again on the stream it came from: z, of `main`, is held until `main` waits for
            # its reader, and what the side stream made is marked as read by `main`.
            main.wait_event(done)
            for tensor in result:
                tensor.record_stream(main)
            return result

        return finish
