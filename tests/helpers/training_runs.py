"""A corpus that can be learnt; a small run: its folder, the command that trains it in a process of its own, its trainer."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import yaml
from repository import ENV

from evals.records import runs
from evals.records.recipe import Train
from workflows import train


def make_corpus(folder):
    """Shards of a text that can be learnt: a noisy cycle through the vocabulary."""
    rng = np.random.default_rng(0)
    lengths = {"train": 40_000, "validation": 4_000, "test": 4_000}
    for split, length in lengths.items():
        steps = rng.integers(1, 4, size=length)
        (np.cumsum(steps) % 200 + 1).astype("<u2").tofile(folder / f"{split}.bin")
    meta = {
        "vocab_size": 256,
        "dtype": "<u2",
        "end_of_text": 0,
        "sources": {"cycle": {"tokens": lengths, "bytes": {k: 3 * v for k, v in lengths.items()}, "documents": lengths}},
        "segments": {split: {"cycle": [0, lengths[split]]} for split in ("validation", "test")},
        "sha256": {f"{s}.bin": hashlib.sha256((folder / f"{s}.bin").read_bytes()).hexdigest() for s in lengths},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def make_run(folder, corpus, model, **changes):
    recipe = Train(tokens=20 * 8 * 32, batch_size=8, seq_len=32, lr=3e-3, evaluate=2, validation_tokens=1024)
    recipe = replace(recipe, **{"health_tokens": 128, "precision": "fp32"} | changes)
    cfg = runs.RunConfig(
        run=folder.name, preset="test", arch="x", size="xs", seed=0, data=str(corpus), model=model, train=recipe
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg.as_dict()))
    return folder


def command(folder, module="workflows.train"):
    return [sys.executable, "-m", module, str(folder)]


def finish(folder):
    return subprocess.run(command(folder), capture_output=True, text=True, env=ENV)


def launch(folder, *options, workers=2, program=("-m", "workflows.worker"), arguments=()):
    """The command that trains a run by several workers of this machine."""
    launcher = [sys.executable, "-m", "workflows.launch", "--standalone", "--nproc-per-node", str(workers), *options]
    return [*launcher, *program, str(folder), *arguments]


def torchrun(folder, workers):
    done = subprocess.run(launch(folder, workers=workers), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stdout + done.stderr


def trainer(folder):
    return train.Trainer(folder, runs.load_run(folder), "cpu")


class NoStop:
    def requested(self):
        return 0
