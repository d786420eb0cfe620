"""What a run is: the config that determines it, and how it is written to and read from `config.yaml`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evals.records import strict
from evals.records.errors import UserError
from evals.records.provenance import sha
from evals.records.recipe import Train
from models import arch_config
from models.transformer import ModelConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run. `seed` gives the three seeds of data order, initialisation and the rest."""

    run: str
    preset: str
    arch: str
    size: str
    seed: int
    data: str
    model: ModelConfig
    train: Train

    @property
    def seeds(self) -> dict[str, int]:
        return {"data": 1000 + self.seed, "init": 2000 + self.seed, "rest": 3000 + self.seed}

    def as_dict(self) -> dict[str, Any]:
        return plain(self)

    @property
    def sha(self) -> str:
        """Hash of what determines the result: not of the run's or the preset's name."""
        return sha({k: v for k, v in self.as_dict().items() if k not in ("run", "preset", "arch", "size")})


def plain(value: Any) -> Any:
    """Dataclasses as nested dicts of YAML types, architectures with their name."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        arch: Any = value
        return {"name": arch.name} | fields if hasattr(type(value), "width_knob") else fields
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def build_arch(data: dict[str, Any], where: str) -> Any:
    data = dict(data)
    name = data.pop("name", None)
    try:
        cls = arch_config(name)
    except ValueError as error:
        raise UserError(f"{where}.name: {error}") from error
    return strict.build(cls, data, f"{where} ({name})")


def build_model(data: dict[str, Any], where: str) -> ModelConfig:
    return strict.build(ModelConfig, data | {"arch": build_arch(data["arch"], f"{where}.arch")}, where)


def load_run(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises:
        UserError: the folder has no config, or one that does not fit the present code.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{path} does not exist; `snakemake` writes it, or `python -m workflows.resolve --preset NAME`")
    data = yaml.safe_load(path.read_text())
    return strict.build(RunConfig, data | {"model": build_model(data["model"], f"{path}: model")}, str(path))
