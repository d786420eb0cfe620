"""A small run: its folder, the command that trains it in a process of its own, and its trainer in this one."""

import subprocess
import sys
from dataclasses import replace

import yaml
from repository import ENV

from evals.records import runs
from evals.records.recipe import Train
from workflows import train


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
