"""Chains of deltas: each must change something, rows are matched, controls and the grid's own models are where they belong."""

from dataclasses import replace

import pytest
import torch

from evals.records.errors import UserError
from models.match import flops, params
from workflows import ablate, chains, matched, presets, resolve
from workflows.chains import Chain, Step, load_chains
from workflows.presets import load_preset


@pytest.fixture(scope="module")
def smoke():
    preset = load_preset("smoke")
    return preset, matched.match_size(preset, "xs")


def chain(*steps, kind="cumulative", arch="ultramem"):
    return Chain(title="", kind=kind, base=Step(id="base", label="base", arch=arch), steps=steps)


def arm(smoke, chain_, row):
    preset, group = smoke
    _, deltas = ablate.chain_arms(chain_)[row]
    return ablate.resolve_arm(preset, group, "xs", chain_, deltas, "test")[1]


def test_cumulative_row_holds_all_deltas_before_it(smoke):
    steps = (Step(id="a", label="a", set={"top_m": 8}), Step(id="b", label="b", set={"query_conv": 1}))
    assert smoke[1].models["ultramem"].arch.top_m == 32
    model = arm(smoke, chain(*steps), 2)
    assert (model.arch.top_m, model.arch.query_conv) == (8, 1)
    model = arm(smoke, chain(*steps, kind="sweep"), 2)
    assert (model.arch.top_m, model.arch.query_conv) == (32, 1)
    model = arm(smoke, chain(*steps, kind="leave-one-out"), 1)
    assert (model.arch.top_m, model.arch.query_conv) == (32, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_m": 32}, ["top_m", "changes nothing"]),
        ({"top_n": 8}, ["top_n", "did you mean top_m"]),
        ({"train.lrr": 0.1}, ["lrr", "did you mean lr"]),
        ({"data.x": 1}, ["data.x", "train. or match."]),
        ({}, ["changes nothing"]),
    ],
)
def test_delta_that_does_nothing_or_is_misspelt_is_refused(smoke, change, words):
    with pytest.raises(UserError) as error:
        arm(smoke, chain(Step(id="a", label="a", set=change)), 1)
    assert all(word in str(error.value) for word in words)


def test_rows_of_a_chain_have_equal_compute(smoke):
    base = arm(smoke, chain(), 0)
    wider = arm(smoke, chain(Step(id="a", label="a", set={"d_value": 24, "expansion": 1})), 1)
    assert flops(wider) == pytest.approx(flops(base), rel=0.01)
    assert params(wider) == pytest.approx(params(base), rel=0.02)


def test_relative_values_fit_every_size(smoke):
    step = Step(id="a", label="a", set={"top_m": "x0.5", "d_value": "d_model/4", "placement": "grid:ultramem_v2"})
    model = arm(smoke, chain(step), 1)
    assert (model.arch.top_m, model.arch.d_value, model.arch.placement) == (16, model.d_model // 4, ("all",))


def test_sparsity_is_a_delta_like_any_other(smoke):
    base = arm(smoke, chain(), 0)
    sparser = arm(smoke, chain(Step(id="a", label="a", set={"match.sparse_ratio": 8.0})), 1)
    assert params(sparser) == pytest.approx(2 * params(base), rel=0.03)


def test_equal_runs_are_one_run(tmp_path):
    preset = replace(load_preset("smoke"), chain_size="xs", step_rates={})
    same = Chain(title="", kind="sweep", base=Step(id="base", label="as in the grid", arch="ultramem"), steps=())
    plan, found = resolve.resolve(preset, {"same": same}, tmp_path)
    assert [row["run"] for row in plan["arms"]] == ["ultramem-xs-s0"]
    assert [run for run in found if not run.startswith("tuning.")] == plan["grid"]


def test_rows_of_a_tuned_chain_are_trained_with_every_rate(tmp_path):
    preset = replace(load_preset("smoke"), chain_size="xs", chain_rates=(0.001, 0.006), step_rates={})
    base = Step(id="base", label="as in the grid", arch="ultramem")
    chains = {"c": Chain(title="", kind="sweep", base=base, steps=(), tuned=True, seeds=(0, 1))}
    plan, found = resolve.resolve(preset, chains, tmp_path)
    trained = [(found[row["run"]].train.lr, found[row["run"]].seed) for row in plan["arms"]]
    assert trained == [(row["lr"], seed) for row, seed in zip(plan["arms"], (0, 1, 0, 1), strict=True)]
    assert [lr for lr, _ in trained] == [0.001, 0.001, 0.006, 0.006]
    of_its_own, _ = resolve.resolve(replace(preset, step_rates={"c": {"base": (0.002,)}}), chains, tmp_path)
    assert [row["lr"] for row in of_its_own["arms"]] == [0.002, 0.002]
    for wrong, said in (
        ({"d": {}}, "step_rates: unknown key 'd'"),
        ({"c": {"bas": (0.1,)}}, "step_rates.c: unknown key 'bas'"),
    ):
        with pytest.raises(UserError, match=said):
            resolve.resolve(replace(preset, step_rates=wrong), chains, tmp_path)


def test_main_chains_begin_and_end_at_the_grids_models():
    """evidence.md section 1.4: a base that is not the grid's own punishes or flatters every step."""
    preset, known = load_preset("cpu"), chains.load_chains()
    for name, first, last in (("ultramem", "pkm", "ultramem"), ("ultramem_v2", "ultramem", "ultramem_v2")):
        at, arms = preset.chain_sizes[name], ablate.chain_arms(known[name])
        group = matched.match_size(preset, at)
        models = [ablate.resolve_arm(preset, group, at, known[name], deltas, "t")[1] for _, deltas in arms]
        tensors = []
        for model in (models[0], group.models[first], models[-1], group.models[last]):
            torch.manual_seed(0)
            tensors.append(sorted((tuple(p.shape), p.sum().item()) for p in model.build().parameters()))
        assert tensors[0] == tensors[1], f"{name}: its base is not the grid's {first}"
        assert tensors[2] == tensors[3], f"{name}: its last row is not the grid's {last}"


def test_rates_at_the_transfer_size_carry_the_whole_recipe():
    preset = load_preset("cpu")
    for _, arch, size, setting in ablate.tuning_settings(preset, chains.load_tuning()):
        if size == preset.transfer_size:
            model = matched.prototype(preset, arch, size)
            _, train = ablate.tuned(preset, model, arch, size, setting)
            assert train.weight_decay == preset.recipes[arch]["weight_decay"], arch
            assert train.lr == setting["train.lr"]


@pytest.mark.parametrize("name", presets.preset_names())
def test_every_preset_and_chain_resolves(name, tmp_path):
    plan, _ = resolve.resolve(load_preset(name), load_chains(), tmp_path)
    assert set(plan["chains"]) <= {row["chain"] for row in plan["arms"]}
    assert plan["grid"]


def test_controls_are_worse_and_better_by_construction(smoke):
    _, group = smoke
    chain = load_chains()["controls"]
    frozen_model = arm(smoke, chain, 1)
    assert (frozen_model.arch.placebo, frozen_model.arch.name) == ("frozen-layer", "ultramem")
    assert flops(frozen_model) == pytest.approx(group.flops, rel=0.01)
    router_model = arm(smoke, chain, 2)
    assert (router_model.arch.router_frozen, router_model.arch.name) == ("yes", "moe")
    dense_model = arm(smoke, chain, 3)
    assert flops(dense_model) == pytest.approx(2 * group.flops, rel=0.01)
