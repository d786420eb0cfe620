"""A folder as it is carried to a GPU: the code, a made-up corpus, and one tiny run."""

import hashlib
import json

import numpy as np
import pytest
from training_runs import make_run

from evals.device import pack
from models.feed_forward import DenseConfig
from models.transformer import ModelConfig


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    lengths = {"train": 4_000, "validation": 1_500, "test": 1_500}
    for split, length in lengths.items():
        (np.arange(length) % 200 + 1).astype("<u2").tofile(corpus / f"{split}.bin")
    meta = {
        "sources": {"cycle": {"tokens": lengths, "bytes": {k: 3 * v for k, v in lengths.items()}}},
        "segments": {split: {"cycle": [0, lengths[split]]} for split in ("validation", "test")},
        "sha256": {f"{s}.bin": hashlib.sha256((corpus / f"{s}.bin").read_bytes()).hexdigest() for s in lengths},
    }
    (corpus / "meta.json").write_text(json.dumps(meta))
    model = ModelConfig(arch=DenseConfig(d_ff=16), vocab_size=256, d_model=16, n_layers=1, n_heads=2, seq_len=32)
    runs = tmp_path_factory.mktemp("runs")
    made = [make_run(runs / name, corpus, model, tokens=2 * 8 * 32, evaluate=1) for name in ("small", "large")]
    made[0].joinpath("config.yaml").write_text((made[0] / "config.yaml").read_text().replace("size: xs", "size: tiny"))
    folder = tmp_path_factory.mktemp("carried")
    n_bytes = pack.pack(folder, corpus, made)
    return folder, n_bytes, corpus
