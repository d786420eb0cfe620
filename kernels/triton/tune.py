"""Picks the fastest of several launch settings, on the device at hand, once for each kind of call.

Nothing is tuned unless asked: within `tuning()` a call whose key is new times every candidate; outside, a call takes what
was found for its key, or its default. Training never asks, since another tile adds in another order and moves the last bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Setting = TypeVar("Setting")
found: dict[Hashable, object] = {}
_depth = 0


@contextlib.contextmanager
def tuning() -> Iterator[None]:
    """Within it, calls on a CUDA device tune their launch settings. It must not enclose the capture of a CUDA graph."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def choose(
    key: Hashable,
    default: Setting,
    candidates: Callable[[], Iterable[Setting]],
    call: Callable[[Setting], object],
) -> Setting:
    """The setting for a call of this kind.

    Args:
        key: what decides which setting is fastest: device, shapes, dtype.
        default: what an untuned call uses.
        candidates: gives the settings to try beside the default.
        call: runs the kernel with a setting.
    """
    if _depth and key not in found:
        found[key] = min((default, *candidates()), key=lambda setting: milliseconds(lambda: call(setting)))
    return found.get(key, default)  # type: ignore[return-value]  # what is found under a key is a setting of its kind


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a launch with a cold L2; infinite where the setting asks for more than the device has."""
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench

    try:
        return do_bench(call, warmup=2, rep=10, return_mode="median")
    except (OutOfResources, PTXASError):
        return math.inf
