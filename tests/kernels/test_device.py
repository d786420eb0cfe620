"""The kernels on a CUDA device, wherever one is: the checks of `python -m evals.gpu`."""

from pathlib import Path

import pytest
import torch

from evals.device import checks
from evals.device.parts import Bench

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("item", checks.items(Bench("cuda", Path(), tiny=False)), ids=lambda item: item.name)
def test_kernels_on_the_device(item, tmp_path):
    """Against float64, three times for equal bits, and on a table beyond 2^31 elements."""
    rows = item.measure(Bench("cuda", tmp_path, tiny=False))
    assert rows
    assert not [row for row in rows if not row["passed"]]


def test_the_device_is_served_by_triton():
    import kernels

    assert kernels.backend(torch.device("cuda")) == "triton"
