"""A folder as it is carried to a GPU: the code, a made-up corpus, and one tiny run."""

import pytest
from synthetic_corpus import corpus
from training_runs import make_run

from evals.device import pack
from models.feed_forward import DenseConfig
from models.transformer import ModelConfig


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    text = corpus(tmp_path_factory.mktemp("corpus"))
    model = ModelConfig(arch=DenseConfig(d_ff=16), vocab_size=256, d_model=16, n_layers=1, n_heads=2, seq_len=32)
    runs = tmp_path_factory.mktemp("runs")
    made = [make_run(runs / name, text, model, tokens=2 * 8 * 32, evaluate=1) for name in ("small", "large")]
    made[0].joinpath("config.yaml").write_text((made[0] / "config.yaml").read_text().replace("size: xs", "size: tiny"))
    folder = tmp_path_factory.mktemp("carried")
    n_bytes = pack.pack(folder, text, made)
    return folder, n_bytes, text
