"""What several files of this folder start from: a tokenizer, two small models, a wheel of evaluation sets."""

import pytest
import torch
from made_up_sets import write_wheel
from scored_models import TEXT, build

from evals.scores.lm import ModelLM
from workflows.prepare import train_bpe


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe([TEXT], 400)


@pytest.fixture(scope="session")
def lm(tokenizer):
    return ModelLM(build(tokenizer), tokenizer, batch_tokens=200)


@pytest.fixture(scope="session")
def uniform(tokenizer):
    model = build(tokenizer)
    torch.nn.init.zeros_(model.embedding.weight)
    return ModelLM(model, tokenizer)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return write_wheel(tmp_path_factory.mktemp("wheel") / "olmo.whl")
