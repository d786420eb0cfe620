"""Open a prepared corpus (workflows/prepare.py writes it), every file checked: tokens, held-out text per source, facts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from evals.records.errors import UserError
from evals.records.sources import sha256_file

TOKEN = np.dtype("<u2")
HELDOUT = ("validation", "test")


@dataclass(frozen=True)
class Shards:
    """A prepared corpus, opened. Held-out tokens are per source."""

    path: Path
    train: np.ndarray
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    meta: dict

    @property
    def align(self) -> int:
        """Training windows begin at multiples of this, so that the documents of the memory tasks lie whole in them."""
        return self.meta["config"]["align"] if self.meta.get("memory_tasks") else 1

    def verify(self) -> None:
        """Compare every file with the sha256 in meta.json (reads all of them).

        Raises:
            UserError: a file is missing or differs.
        """
        for name, expected in self.meta["sha256"].items():
            if not (self.path / name).is_file() or sha256_file(self.path / name) != expected:
                raise UserError(
                    f"{self.path / name} is damaged or missing (its sha256 is not that of meta.json): "
                    f"delete {self.path} and prepare it again"
                )

    def facts(self, split: str = "train") -> list[dict[str, str]]:
        """Closed-book facts. Only those of `train` were read in training; the others are a control."""
        with (self.path / "facts.jsonl").open(encoding="utf-8") as file:
            # A line is parsed only if it can be of the split: parsing is what takes the time.
            facts = (json.loads(line) for line in file if f'"{split}"' in line)
            return [fact for fact in facts if fact["split"] == split]


def load_shards(path: Path) -> Shards:
    """Open a prepared corpus: hashes every file once (30 MB take 30 ms), then memory-maps the tokens.

    Raises:
        UserError: the folder is no prepared corpus, or a file is not the one whose sha256 meta.json holds.
    """
    path = Path(path)
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        counts = {s: sum(source["tokens"][s] for source in meta["sources"].values()) for s in ("train", *HELDOUT)}
        segments = {split: meta["segments"][split] for split in HELDOUT}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no prepared corpus: make it with python -m workflows.prepare --out {path}") from None
    tokens = {}
    for split, count in counts.items():
        shard = path / f"{split}.bin"
        if not shard.is_file() or shard.stat().st_size != count * TOKEN.itemsize:
            raise UserError(f"{shard} does not hold the {count} tokens of its meta.json: prepare the corpus again")
        tokens[split] = np.memmap(shard, dtype=TOKEN, mode="r")
    heldout = {s: {name: tokens[s][start:stop] for name, (start, stop) in segments[s].items()} for s in HELDOUT}
    shards = Shards(path, tokens["train"], heldout["validation"], heldout["test"], meta)
    shards.verify()
    return shards


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token between documents. UserError: the tokenizer has none."""
    end = tokenizer.token_to_id("<|endoftext|>")
    if end is None:
        raise UserError("the tokenizer has no <|endoftext|> token: build it with `python -m workflows.prepare`")
    return end
