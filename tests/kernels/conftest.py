"""What the files of interpreted Triton kernels share."""

import numpy as np
import pytest
import torch


@pytest.fixture
def rounding_as_on_a_gpu(monkeypatch):
    """The interpreter cuts float32 off to bfloat16; a GPU rounds to nearest even, and so does torch."""
    from triton.runtime import interpreter  # where a test that asks for this runs: a system may have no triton

    convert = interpreter._convert_float

    def rounded(data, source, target, mode):
        if source.is_fp32() and target.is_bf16():
            tensor = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
            return tensor.bfloat16().view(torch.uint16).numpy().reshape(data.shape)
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    torch.manual_seed(0)
