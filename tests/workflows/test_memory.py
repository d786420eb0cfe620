"""Estimated memory: weights, moments, copies and activations; in parts each worker holds its share of all but the latter."""

import dataclasses

import pytest
import torch

from evals.access.partition import by_dimension, experts
from models.transformer import ModelConfig
from workflows import dry_run, memory, resolve
from workflows.matched import match_size
from workflows.parallel.settings import Parallel
from workflows.presets import Grid, Measure, Size, load_preset

ARCHS = ("dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2")
ALONE = {"chain_size": None, "tuning_size": None, "transfer_size": None}
BENCH = {"grid": Grid(sizes=("bench",), archs=ARCHS, seeds=(0,)), **ALONE, "chain_sizes": {}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of the smoke preset's grid, by name."""
    return resolve.resolve(load_preset("smoke"), {}, tmp_path_factory.mktemp("resolved"), tune=False)[1]


def test_memory_is_weights_gradients_moments_copies_and_activations(trained):
    run = trained["pkm-xs-s0"]
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=1, seq_len=8, precision="fp32"))
    values = [part for part in run.model.cost().parts if part.name == "values"]
    activations = 2 * memory.ACTIVATION_BYTES * 8 * run.model.n_layers * run.model.d_model
    assert memory.replicated_bytes(run) == 16 * run.model.cost().params + activations
    rows = dataclasses.replace(run, train=dataclasses.replace(run.train, value_optimizer="rows"))
    unread = sum((part.rows - min(part.rows, 8 * part.reads)) * part.width for part in values)
    assert unread > 0
    assert memory.replicated_bytes(run) - memory.replicated_bytes(rows) == 4 * unread


def saved_per_token(model: ModelConfig) -> float:
    """Bytes that autograd keeps for the backward pass, a token more, under bf16 autocast."""
    layers, sizes = model.build().train(), []
    weights = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    for batch in (1, 2):
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        tokens = torch.randint(model.vocab_size, (batch, 65))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            layers.loss(tokens[:, :-1], tokens[:, 1:], "bf16")
        sizes.append(sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in weights))
    return (sizes[1] - sizes[0]) / 64


def test_activations_are_what_autograd_keeps(monkeypatch):
    """Of plain torch, as on a GPU; the C++ of a CPU keeps less."""
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")
    preset = load_preset("cpu")
    size = {"bench": Size(d_model=128, n_layers=4, n_heads=4)}
    models = match_size(dataclasses.replace(preset, sizes=size, measure=Measure(), **BENCH), "bench").models
    found = {arch: saved_per_token(models[arch]) / (4 * 128) for arch in ARCHS}
    assert max(found.values()) < memory.ACTIVATION_BYTES, found
    assert max(found.values()) > 0.8 * memory.ACTIVATION_BYTES, found


PARTS = Parallel(engine="sharded", recompute=True, gather="bf16")


@pytest.mark.parametrize("arch", ["dense", "moe8", "ultramem_v2"])
def test_in_parts_a_worker_holds_its_share(trained, arch):
    model, workers = memory.Sized(trained[f"{arch}-xs-s0"].model), 4
    way = model.partition(PARTS)
    held = memory.sharded_bytes(model, way, workers, 64, PARTS)
    assert sum(held[kind] for kind in ("parameters", "gradients", "moments")) == 16 * model.cfg.cost().params / workers
    kept = memory.sharded_bytes(model, way, workers, 64, dataclasses.replace(PARTS, recompute=False))["activations"]
    assert kept > (model.cfg.n_layers - 1) * memory.ACTIVATION_BYTES * 64 * model.cfg.d_model
    assert held["activations"] < 0.8 * kept
    wide = memory.sharded_bytes(model, way, workers, 64, dataclasses.replace(PARTS, gather="fp32"))["buffers"]
    assert wide > held["buffers"]


def test_a_run_is_planned_by_the_engine_that_trains_it(trained):
    run = trained["ultramem-xs-s0"]
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, workers=2, micro_batch=1))
    model = memory.Sized(run.model)
    whole, parts = (memory.training_bytes(run, spread, model) for spread in (Parallel(), PARTS))
    assert whole == memory.replicated_bytes(run) > parts
    by_rows = memory.training_bytes(run, dataclasses.replace(PARTS, values="number"), model)
    by_columns = memory.training_bytes(run, dataclasses.replace(PARTS, values="dimension"), model)
    assert by_rows != by_columns


def test_experts_and_memory_side_by_side_are_both_counted():
    preset = load_preset("cpu")
    model = memory.Sized(match_size(preset, "d64").models["hybrid"])
    assert min(model.experts, model.tables) > 0
    assert model.tables + model.experts == model.cfg.cost().only("table").params
    of_memory = len(model.built.memories) * by_dimension(model.ask, 8, backward=True)
    of_experts = model.cfg.n_layers * experts(model.cfg.arch.top_k, model.cfg.d_model, 8, backward=True)
    assert dry_run.sparse_traffic(model, "dimension", 8) == of_memory + of_experts
