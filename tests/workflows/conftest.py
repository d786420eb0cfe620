"""What several files of this folder start from: a corpus that can be learnt, and a small model of each architecture."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from workflows import matched
from workflows.presets import load_preset


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Shards of a text that can be learnt: a noisy cycle through the vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lengths = {"train": 40_000, "validation": 4_000, "test": 4_000}
    for split, length in lengths.items():
        steps = rng.integers(1, 4, size=length)
        (np.cumsum(steps) % 200 + 1).astype("<u2").tofile(folder / f"{split}.bin")
    meta = {
        "vocab_size": 256,
        "dtype": "<u2",
        "end_of_text": 0,
        "sources": {"cycle": {"tokens": lengths, "bytes": {k: 3 * v for k, v in lengths.items()}, "documents": lengths}},
        "segments": {split: {"cycle": [0, lengths[split]]} for split in ("validation", "test")},
        "sha256": {f"{s}.bin": hashlib.sha256((folder / f"{s}.bin").read_bytes()).hexdigest() for s in lengths},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="session")
def models():
    preset = replace(load_preset("smoke"), data={"corpus": "pypi", "vocab_size": 256})
    return matched.match_size(preset, "xs").models
