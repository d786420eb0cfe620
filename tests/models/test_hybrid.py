"""A mixture of experts and memory under one budget: the split is what was asked, and 0 is the plain mixture."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import ARCHS, arch_config
from models.feed_forward import FeedForward
from models.hybrid import HybridConfig
from models.match import flops, params, solve
from models.memory_config import MemoryConfig
from models.moe import MoEConfig
from workflows import health
from workflows.matched import match_size
from workflows.presets import load_preset

MEMORIES = [name for name in ARCHS if issubclass(arch_config(name), MemoryConfig)]


@pytest.fixture(scope="module")
def group():
    return match_size(load_preset("cpu"), "d64")


def at(group, split: float):
    hybrid = group.models["hybrid"]
    return solve(replace(hybrid, arch=replace(hybrid.arch, split=split)), group.flops, group.params, group.rule)


def test_without_memory_it_is_the_mixture_bit_for_bit(group):
    mixture, hybrid = group.models["moe8"], at(group, 0.0)
    assert {name: getattr(hybrid.arch, name) for name in vars(mixture.arch)} == vars(mixture.arch)
    tokens_BT = torch.randint(1024, (2, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for cfg in (mixture, hybrid):
        torch.manual_seed(0)
        model = cfg.build()
        losses.append(sum(model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])))
    assert torch.equal(*losses)


def test_beside_the_others_it_moves_nobody(group):
    preset = load_preset("cpu")
    archs, recipes = ({arch: of[arch] for arch in of if arch not in preset.beside} for of in (preset.archs, preset.recipes))
    alone = match_size(replace(preset, archs=archs, recipes=recipes, beside=()), "d64")
    assert (alone.models, alone.flops, alone.params) == (group.yardsticks, group.flops, group.params)


@pytest.mark.parametrize("split", [0.25, 0.5, 0.75, 0.9, 1.0])
def test_memory_stores_its_share_at_equal_flops_and_parameters(group, split):
    model = at(group, split)
    stored = {"experts": 0, "values": 0}
    for part in model.cost().only("table").parts:
        stored[part.name] += part.params * part.sparse
    assert stored["values"] / sum(stored.values()) == pytest.approx(split, abs=0.01)
    assert flops(model) == pytest.approx(group.flops, rel=0.015)
    assert params(model) == pytest.approx(group.params, rel=0.01)
    built = model.build()
    assert sum(p.numel() for p in built.parameters()) == model.cost().params
    assert isinstance(built.blocks[0].ffn, FeedForward) == (split == 1)


@pytest.mark.parametrize("name", MEMORIES)
def test_any_memory_of_the_suite_stands_beside_experts(group, name):
    fields = {"name": name, "placement": ["1:2"], "top_m": 4}
    base = group.models["hybrid"]
    model = replace(base, arch=replace(base.arch, memory=fields, d_key=8, n_experts=32, d_expert=4))
    tokens_BT = torch.randint(1024, (2, 9), generator=torch.Generator().manual_seed(0))
    built = model.build()
    sum(built.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])).backward()
    assert built.tables()[0].values_NC.grad is not None
    assert sum(p.numel() for p in built.parameters()) == model.cost().params


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": 1.5}, "split 1.5 must lie between 0 and 1"),
        ({"memory": {"name": "dense"}}, "memory.name 'dense' is no memory layer"),
        ({"memory": {"name": "lru"}}, "architecture 'lru' is not one of"),
        ({"memory": {"name": "pkm", "placement": ["1:1"], "top_m": 4, "n_keys": 9}}, "memory.n_keys is no field of pkm"),
        ({"memory": {"name": "pkm", "placement": ["1:1"], "top_m": 4, "init": "x"}}, "init 'x'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, words):
    good = {"n_experts": 16, "top_k": 2, "d_expert": 8, "d_key": 8}
    with pytest.raises(ValueError, match=words):
        HybridConfig(**good | changes)


def test_one_expert_too_few_is_a_dense_network():
    cfg = HybridConfig(n_experts=16, top_k=4, d_expert=8, d_key=8, split=0.75)
    assert cfg.stored_experts == 0
    assert replace(cfg, split=0.65).slot() == MoEConfig(n_experts=6, top_k=4, d_expert=8)


def test_health_tells_experts_from_the_memory_beside_them(group):
    model = at(group, 0.5).build()
    found = health.measure(model, np.arange(600) % 50, 512, "cpu")
    keys = [(row["layer"], row["metric"]) for row in found]
    assert len(set(keys)) == len(keys)
    assert {metric for _, metric in keys} >= {"used_share", "memory.used_share", "memory.recall_grid"}
