"""A prepared corpus of a few thousand made-up tokens: what a trainer and the folder for a GPU open."""

import hashlib
import json
from pathlib import Path

import numpy as np

LENGTHS = {"train": 4_000, "validation": 1_500, "test": 1_500}


def corpus(folder: Path) -> Path:
    """Writes it into `folder`, which may hold other files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, length in LENGTHS.items():
        (np.arange(length) % 200 + 1).astype("<u2").tofile(folder / f"{split}.bin")
    meta = {
        "sources": {"cycle": {"tokens": LENGTHS, "bytes": {split: 3 * length for split, length in LENGTHS.items()}}},
        "segments": {split: {"cycle": [0, LENGTHS[split]]} for split in ("validation", "test")},
        "sha256": {f"{s}.bin": hashlib.sha256((folder / f"{s}.bin").read_bytes()).hexdigest() for s in LENGTHS},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder
