"""The sharded engine: any number of workers gives what one gives, from any number's checkpoint, in as little memory as it says."""

import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from groups import together
from scored_models import SPARSE, TINY
from training_runs import NoStop, make_run, trainer

from evals.records import runs, tensors
from evals.records.errors import UserError
from models import ARCHS
from models.feed_forward import DenseConfig
from models.hybrid import HybridConfig
from models.memory_plus import MemoryPlusConfig
from models.peer import PEERConfig
from models.transformer import ModelConfig
from workflows.parallel.settings import Parallel
from workflows.parallel.trainer import SpreadTrainer

# Small steps: a tie between two scores that rounding decides otherwise would move a loss by 1e-4.
SMALL = {"lr": 3e-4, "validation_tokens": 512}
HYBRID = HybridConfig(n_experts=6, top_k=2, d_expert=8, d_key=4, memory={"name": "ultramem", "placement": ("0:1",), "top_m": 4})
PLUS = MemoryPlusConfig(**TINY | {"placement": ("0:0", "1:1")})
CONFIGS = {config.name: config for config in (DenseConfig(d_ff=48), *SPARSE, HYBRID, PLUS, PEERConfig(**TINY))}


def model_of(arch):
    return ModelConfig(vocab_size=256, d_model=32, n_layers=2, n_heads=2, seq_len=32, arch=arch)


class StopAt:
    """Asks to stop after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def requested(self):
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


def spread(folder, setting, stop=None):
    run = SpreadTrainer(folder, runs.load_run(folder), "cpu", setting)
    run.restore()
    if stop is None:
        run.train(NoStop())
        run.write()
    else:
        with pytest.raises(SystemExit):
            run.train(stop)
    return run


def alone(folder):
    run = trainer(folder)
    run.train(NoStop())
    run.write()
    return folder


def assert_same(folder, other, loss=1e-6, weights=1e-4):
    """Losses and rows' reads of two runs, and their weights and health; Adam magnifies what rounding does to small gradients."""
    a, b = (pd.read_csv(path / "train.csv") for path in (folder, other))
    assert a[["step", "split", "source"]].equals(b[["step", "split", "source"]])
    np.testing.assert_allclose(a.loss, b.loss, rtol=loss)
    np.testing.assert_allclose(a.aux_loss.dropna(), b.aux_loss.dropna(), rtol=1e-5)
    np.testing.assert_allclose(a.grad_norm.dropna(), b.grad_norm.dropna(), rtol=1e-4)
    mine, theirs = (tensors.read_tensors(path / "model.safetensors")[0] for path in (folder, other))
    assert mine.keys() == theirs.keys()
    for name in mine:
        error = (mine[name].float() - theirs[name].float()).norm()
        assert error <= weights * theirs[name].float().norm() + 1e-9, (name, error)
    health = [pd.read_csv(path / "health.csv") for path in (folder, other)]
    if len(health[0]):
        np.testing.assert_allclose(health[0].value, health[1].value, rtol=1e-2, atol=1e-4)
    tokens = [tensors.read_tensors(path / "tokens.safetensors")[0] for path in (folder, other)]
    for name in tokens[0]:
        torch.testing.assert_close(tokens[0][name], tokens[1][name], rtol=2e-3, atol=2e-3)


def test_every_architecture_is_covered():
    assert set(CONFIGS) == set(ARCHS)


@pytest.mark.parametrize("arch", CONFIGS)
def test_any_number_of_workers_trains_as_one(tmp_path, corpus, arch):
    model = model_of(CONFIGS[arch])
    one = alone(make_run(tmp_path / "one", corpus, model, **SMALL))
    held = model.build().memories
    ways = ("number", "dimension") if held else ("number",)
    for workers in (2, 4):
        folders = {way: make_run(tmp_path / f"{way}{workers}", corpus, model, workers=workers, **SMALL) for way in ways}
        together(workers, lambda rank, folders=folders: [spread(f, Parallel(values=w)) for w, f in folders.items()])
        for folder in folders.values():
            assert_same(folder, one)


BALANCED = {"ultramem_v2": {"balance_loss": 0.01}, "moe": {}}


@pytest.mark.parametrize(
    ("arch", "values", "recompute"),
    [("moe", "number", False), ("ultramem_v2", "dimension", True), ("ultramem_v2", "number", True)],
)
def test_rows_pieces_and_recomputing_change_nothing(tmp_path, corpus, arch, values, recompute):
    """Gradients accumulated over micro-batches, balance losses over the whole batch, rows alone updated, blocks run again."""
    model = model_of(replace(CONFIGS[arch], **BALANCED[arch]))
    one = alone(make_run(tmp_path / "one", corpus, model, value_optimizer="rows", **SMALL))
    two = make_run(tmp_path / "two", corpus, model, value_optimizer="rows", workers=2, micro_batch=2, **SMALL)
    together(2, lambda rank: spread(two, Parallel(values=values, recompute=recompute)))
    assert_same(two, one)


@pytest.mark.parametrize(("arch", "values"), [("moe", "number"), ("ultramem_v2", "dimension"), ("ultramem", "number")])
def test_a_run_goes_on_with_other_numbers_of_workers(tmp_path, corpus, arch, values):
    model = model_of(CONFIGS[arch])
    one = alone(make_run(tmp_path / "one", corpus, model, **SMALL))
    folder, setting = tmp_path / "run", Parallel(values=values)
    for workers, stop in ((2, StopAt(6)), (4, StopAt(6)), (1, None)):
        changed = make_run(tmp_path / f"as{workers}", corpus, model, workers=workers, **SMALL)
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text((changed / "config.yaml").read_text())
        together(workers, lambda rank, stop=stop: spread(folder, setting, stop))
        if stop:
            (kept,) = folder.glob("checkpoint-*")
            assert not list(kept.glob("*.metadata")) and len(list(kept.glob("*.safetensors"))) == workers
    assert_same(folder, one)
    assert not list(folder.glob("*checkpoint*"))
