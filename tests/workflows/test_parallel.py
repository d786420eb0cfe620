"""The sharded engine: any number of workers gives what one gives, from any number's checkpoint, in its share of memory."""

import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from groups import together
from scored_models import SPARSE, TINY
from sent_bytes import Sent
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from training_runs import NoStop, make_run, trainer

from evals.access.partition import Lookup, by_dimension, by_number_pooled, experts
from evals.records import runs, tensors
from evals.records.errors import UserError
from models import ARCHS
from models.feed_forward import DenseConfig
from models.hybrid import HybridConfig
from models.memory_plus import MemoryPlusConfig
from models.moe import MoEConfig
from models.peer import PEERConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config
from workflows.parallel.experts import SpreadExperts
from workflows.parallel.settings import Parallel
from workflows.parallel.spread import Spreading
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
    """Losses, weights, health and rows' reads of two runs; Adam magnifies what rounding does to small gradients."""
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


def test_in_bfloat16_too(tmp_path, corpus):
    """Weights gathered and rows exchanged in bfloat16: near, not equal."""
    model = model_of(CONFIGS["ultramem_v2"])
    half = SMALL | {"precision": "bf16"}
    one = alone(make_run(tmp_path / "one", corpus, model, **half))
    two = make_run(tmp_path / "two", corpus, model, workers=2, **half)
    together(2, lambda rank: spread(two, Parallel(gather="bf16")))
    a, b = (pd.read_csv(folder / "train.csv").loss for folder in (one, two))
    np.testing.assert_allclose(a, b, rtol=5e-3)
    assert (a != b).any()


BALANCED = {"ultramem_v2": {"balance_loss": 0.01}, "moe": {}}


@pytest.mark.parametrize(
    ("arch", "values", "recompute"),
    [("moe", "number", True), ("ultramem_v2", "dimension", True), ("ultramem_v2", "number", False)],
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
            assert {path.suffix for path in kept.iterdir()} == {".safetensors", ".json"}
            assert len(list(kept.glob("*.safetensors"))) == workers
    assert_same(folder, one)
    assert not list(folder.glob("*checkpoint*"))


WIDE = {**TINY, "n_keys": 32, "n_mem_heads": 2, "top_m": 16}
ASKED = {
    "ultramem": UltraMemConfig(**WIDE, d_value=32),
    "ultramem_v2": UltraMemV2Config(**WIDE, d_value=32, d_pre_value=16),
    "moe": MoEConfig(n_experts=8, top_k=2, d_expert=8),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [2, 4])
def test_bytes_are_those_of_the_formulas(workers, precision):
    """Evenly spread picks, as the formulas have them; forward and backward of one layer, a token's share."""
    T, size = 256, 4 if precision == "fp32" else 2

    def sent(arch, values="number"):
        torch.manual_seed(0)
        model = model_of(ASKED[arch]).build()
        Spreading(model, init_device_mesh("cpu", (workers,)), Parallel(values=values), precision)
        torch.manual_seed(1 + dist.get_rank())
        if arch == "moe":
            x_TD = torch.randn(T, 32, requires_grad=True)
            moe, chosen = model.blocks[0].ffn, torch.rand(T, 8).topk(2)[1]
            with Sent() as counted:
                SpreadExperts(moe, torch.bfloat16 if size == 2 else None).experts(
                    x_TD, chosen, torch.ones(T, 2)
                ).sum().backward()
            return counted.total / T
        memory, cfg = model.memories[0], ASKED[arch]
        row_TM = torch.randint(memory.window.rows, (T, 32))
        block_TM = torch.randint(cfg.blocks, (T, 32))
        weight_TMh = torch.randn(T, 32, cfg.n_cores, requires_grad=True)
        met_TV = torch.randn(T, 16, requires_grad=True) if arch == "ultramem_v2" else None
        with Sent() as counted:
            memory.folded.pool(row_TM, block_TM, weight_TMh, met_TV).sum().backward()
        return counted.total / T

    def work(rank):
        for arch, cfg in ASKED.items():
            if arch == "moe":
                assert sent(arch) == pytest.approx(experts(2, 32, workers, backward=True, itemsize=size), rel=0.05)
                continue
            ask = Lookup(32, 32, cfg.n_cores, cfg.blocks, 16 if arch == "ultramem_v2" else 0, size)
            for values, formula in (("number", by_number_pooled), ("dimension", by_dimension)):
                assert sent(arch, values) == pytest.approx(formula(ask, workers, backward=True), rel=0.05), (arch, values)

    together(workers, work)


@pytest.mark.parametrize(
    ("arch", "values"), [("dense", "number"), ("moe", "number"), ("ultramem", "number"), ("ultramem", "dimension")]
)
def test_a_worker_holds_its_share(tmp_path, corpus, arch, values):
    """Parameters, gradients and both moments: what lies everywhere, and 1/P of the rest."""
    model = ModelConfig(vocab_size=256, d_model=32, n_layers=2, n_heads=2, seq_len=32, arch=(ASKED | CONFIGS)[arch])
    folder = make_run(tmp_path / "run", corpus, model, workers=4, **SMALL)

    def work(rank):
        run = SpreadTrainer(folder, runs.load_run(folder), "cpu", Parallel(values=values))
        run.model.train()
        run.gradients(*run.windows.batch(0))
        everywhere = sum(p.numel() for p in run.spreading.replicated)
        total = sum(p.numel() for p in model.build().parameters())
        held = 0
        for parameter in run.model.parameters():
            moments = [t for t in run.optimizers.state[parameter].values() if t.ndim]
            for tensor in (parameter, parameter.grad, *moments):
                tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                held += tensor.numel() * tensor.element_size()
        assert held == pytest.approx(4 * 4 * (everywhere + (total - everywhere) / 4), rel=0.1)

    together(4, work)


def test_what_cannot_be_split_is_refused():
    def work(rank):
        with pytest.raises(UserError, match=r"4 columns of each of 2 cores do not split evenly over 3 .* divides 4"):
            Spreading(
                model_of(CONFIGS["ultramem"]).build(), init_device_mesh("cpu", (3,)), Parallel(values="dimension"), "fp32"
            )

    together(3, work)


def test_a_checkpoint_of_something_else_or_damaged_is_refused(tmp_path, corpus):
    model = model_of(CONFIGS["dense"])
    folder = make_run(tmp_path / "run", corpus, model, workers=2, **SMALL)
    together(2, lambda rank: spread(folder, Parallel(), StopAt(3)))
    other = make_run(tmp_path / "other", corpus, model, workers=2, **SMALL | {"lr": 1e-4})
    (kept,) = folder.glob("checkpoint-*")

    def refused(where, reason):
        def work(rank):
            run = SpreadTrainer(where, runs.load_run(where), "cpu", Parallel())
            with pytest.raises(UserError, match=reason):
                run.restore()

        together(2, work)

    shutil.copytree(kept, other / kept.name)
    refused(other, "was made by another config; delete it")
    next(kept.glob("*.safetensors")).unlink()
    refused(folder, "is damaged .*; delete it to start again")
