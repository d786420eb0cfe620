"""The config of a model as a run's config.yaml holds it under `model`."""

from __future__ import annotations

from typing import Any

from models import arch_config
from models.transformer import ModelConfig


def model_config(data: dict[str, Any]) -> ModelConfig:
    """What `evals.records.runs.plain` made a dict of. Raises ValueError where that is no config of the present code."""
    fields = dict(data["arch"])
    cls = arch_config(fields.pop("name", None))
    try:
        arch = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
        return ModelConfig(**data | {"arch": arch})
    except TypeError as error:
        raise ValueError(f"the model's config does not fit the present code: {error}") from error
