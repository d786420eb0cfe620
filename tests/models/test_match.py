"""The compute gate: what is matched is really equal, and a planted mismatch stops everything."""

from dataclasses import replace

import pytest
import torch

from models.match import MatchError, flops, gate, match, nearest, params, spread
from workflows import matched as matching
from workflows.presets import load_preset

SIZES = ("d40", "d64", "d128")


@pytest.fixture(scope="module")
def matched():
    preset = load_preset("cpu")
    return {size: matching.match_size(preset, size) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_counts_of_the_built_models_agree(matched, size):
    """Not the declared numbers but the tensors themselves: FLOPs within 1 %, sparse totals within 2 %."""
    built = {}
    for name, model in matched[size].yardsticks.items():
        with torch.device("meta"):
            module = model.build()
        built[name] = sum(p.numel() for p in module.parameters()) - module.embedding.weight.numel()
        assert built[name] == params(model)
    assert spread([flops(model) for model in matched[size].yardsticks.values()]) <= 0.01
    sparse = [count for name, count in built.items() if name != "dense"]
    assert len(sparse) == 5
    assert spread(sparse) <= 0.02
    assert sum(sparse) / 5 / (flops(matched[size].models["dense"]) / 2) == pytest.approx(6, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_retrieval_takes_at_most_a_quarter(matched, size):
    for name in ("pkm", "ultramem", "ultramem_v2"):
        assert 0.05 < matched[size].models[name].cost().memory_share <= 0.25


@pytest.mark.parametrize(("field", "word"), [("d_ff", "FLOPs"), ("n_keys", "total parameters"), ("d_key", "retrieval")])
def test_planted_mismatch_stops_the_run(matched, field, word):
    models = dict(matched["d64"].yardsticks)
    model = models["ultramem"]
    models["ultramem"] = replace(model, arch=replace(model.arch, **{field: round(getattr(model.arch, field) * 2)}))
    rule = matched["d64"].rule
    if field == "d_key":
        rule = replace(rule, flops_tolerance=10.0, max_memory_share=0.24)
    elif field == "n_keys":
        rule = replace(rule, flops_tolerance=10.0)
    with pytest.raises(MatchError, match=word) as error:
        gate(models, rule)
    assert "ultramem" in str(error.value)


def test_nearest_is_nearest():
    assert nearest(10.4, lambda n: n * n, low=1, high=100) == 3
    assert nearest(12.6, lambda n: n * n, low=1, high=100) == 4
    assert nearest(-5, lambda n: n, low=2, high=9) == 2


def test_impossible_match_says_why():
    preset = load_preset("cpu")
    models = {"ultramem": matching.prototype(preset, "ultramem", "d64")}
    rule = replace(matching.match_rule(preset), max_memory_share=0.01)
    with pytest.raises(MatchError, match=r"retrieval takes .* even with d_key 4"):
        match(models, rule)
