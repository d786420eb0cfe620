"""The architectures of the smoke preset, matched."""

import pytest

from models.transformer import ModelConfig
from workflows import matched
from workflows.presets import load_preset


@pytest.fixture(scope="session")
def models() -> dict[str, ModelConfig]:
    return matched.match_size(load_preset("smoke"), "xs").models
