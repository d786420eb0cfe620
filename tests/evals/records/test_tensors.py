"""Tensors on disk: read as written, or not at all."""

import numpy as np
import pytest
import torch

from evals.records import tensors
from evals.records.errors import UserError


def test_weights_changed_in_place_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    given = {"a": torch.arange(50.0), "b": torch.ones(3, 2, dtype=torch.bfloat16), "c": torch.tensor(7)}
    tensors.write_tensors(path, given, {"step": 3})
    read, note = tensors.read_tensors(path)
    assert note == {"step": 3}
    assert all(torch.equal(read[name], given[name]) and read[name].dtype == given[name].dtype for name in given)
    whole = path.read_bytes()
    for old, new in [(np.float32(33).tobytes(), np.float32(34).tobytes()), (b'step\\": 3', b'step\\": 4')]:
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=r"model.safetensors is not what was written \(another sha256\)"):
            tensors.read_tensors(path)
