"""Configs are strict: what does not fit is refused with the key and what is allowed; deltas must change something."""

import json
from dataclasses import dataclass, replace

import pytest
import yaml

from evals import harness
from evals.memory_tasks import MixtureConfig
from models.match import flops, params
from workflows import ablate, matched, presets, resolve, runs, strict
from workflows.errors import UserError
from workflows.presets import Chain, Step, load_chains, load_preset


@dataclass(frozen=True)
class Toy:
    lr: float
    steps: int = 3
    names: tuple[str, ...] = ()
    maybe: int | None = None


def test_fields_are_read_as_their_types():
    assert strict.build(Toy, {"lr": 1, "names": ["a"], "maybe": None}, "toy") == Toy(1.0, 3, ("a",), None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"lr": 0.1, "stpes": 4}, ["stpes", "did you mean steps", "lr, steps, names, maybe"]),
        ({"lr": "0.1"}, ["toy.lr", "float", "'0.1'"]),
        ({"lr": 0.1, "steps": 2.5}, ["toy.steps", "int"]),
        ({"lr": 0.1, "steps": True}, ["toy.steps", "int"]),
        ({"lr": 0.1, "names": "a"}, ["toy.names", "list"]),
        ({}, ["missing lr"]),
    ],
)
def test_misfits_are_named(data, words):
    with pytest.raises(UserError) as error:
        strict.build(Toy, data, "toy")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"presett": "cpu"}, ["presett", "did you mean preset"]),
        ({"tokens": "many"}, ["tokens", "int", "many"]),
        ({"archs": ["dens"]}, ["dens", "dense"]),
        ({"sizes": "xxl"}, ["xxl", "d40"]),
    ],
)
def test_command_line_is_checked(overrides, words):
    with pytest.raises(UserError) as error:
        load_preset("cpu", overrides)
    assert all(word in str(error.value) for word in words)


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(UserError, match=r"nope.*cpu.*smoke"):
        load_preset("nope")


def test_override_reaches_the_grid():
    assert load_preset("cpu", {"seeds": [3, 4]}).grid.seeds == (3, 4)
    assert load_preset("cpu", {"tokens": 4096}).train["tokens"] == 4096


@pytest.fixture(scope="module")
def smoke():
    preset = load_preset("smoke")
    return preset, matched.match_size(preset, "xs")


def chain(*steps, kind="cumulative", arch="ultramem"):
    return Chain(title="", kind=kind, base=Step(id="base", label="base", arch=arch), steps=steps)


def arm(smoke, chain_, row):
    preset, group = smoke
    _, deltas = presets_arms(chain_)[row]
    return ablate.resolve_arm(preset, group, "xs", chain_, deltas, "test")


def presets_arms(chain_):
    return ablate.chain_arms(chain_)


def test_cumulative_row_holds_all_deltas_before_it(smoke):
    steps = (Step(id="a", label="a", set={"top_m": 8}), Step(id="b", label="b", set={"query_conv": 1}))
    assert smoke[1].models["ultramem"].arch.top_m == 32
    _, model, _ = arm(smoke, chain(*steps), 2)
    assert (model.arch.top_m, model.arch.query_conv) == (8, 1)
    _, model, _ = arm(smoke, chain(*steps, kind="sweep"), 2)
    assert (model.arch.top_m, model.arch.query_conv) == (32, 1)
    _, model, _ = arm(smoke, chain(*steps, kind="leave-one-out"), 1)
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
    _, base, _ = arm(smoke, chain(), 0)
    _, wider, _ = arm(smoke, chain(Step(id="a", label="a", set={"d_value": 24, "expansion": 1})), 1)
    assert flops(wider) == pytest.approx(flops(base), rel=0.01)
    assert params(wider) == pytest.approx(params(base), rel=0.02)


def test_relative_values_fit_every_size(smoke):
    step = Step(id="a", label="a", set={"top_m": "x0.5", "d_value": "d_model/4", "placement": "grid:ultramem_v2"})
    _, model, _ = arm(smoke, chain(step), 1)
    assert (model.arch.top_m, model.arch.d_value, model.arch.placement) == (16, model.d_model // 4, ("all",))


def test_sparsity_is_a_delta_like_any_other(smoke):
    _, base, _ = arm(smoke, chain(), 0)
    _, sparser, _ = arm(smoke, chain(Step(id="a", label="a", set={"match.sparse_ratio": 8.0})), 1)
    assert params(sparser) == pytest.approx(2 * params(base), rel=0.03)


def test_equal_runs_are_one_run(tmp_path):
    preset = replace(load_preset("smoke"), chain_size="xs")
    same = Chain(title="", kind="sweep", base=Step(id="base", label="as in the grid", arch="ultramem"), steps=())
    plan, found = resolve.resolve(preset, {"same": same}, tmp_path)
    assert [row["run"] for row in plan["arms"]] == ["ultramem-xs-s0"]
    assert [run for run in found if not run.startswith("tuning.")] == plan["grid"]


def test_config_round_trips(tmp_path):
    plan = resolve.write_grid("smoke", {}, tmp_path)
    for run in plan["grid"]:
        folder = tmp_path / "smoke" / "runs" / run
        loaded = runs.load_run(folder)
        assert loaded.as_dict() == yaml.safe_load((folder / "config.yaml").read_text())
        assert loaded.sha == plan["runs"][run]["sha"]
    assert json.loads((tmp_path / "smoke" / "grid.json").read_text())["grid"] == plan["grid"]


@pytest.mark.parametrize("name", presets.preset_names())
def test_every_preset_and_chain_resolves(name, tmp_path):
    plan, _ = resolve.resolve(load_preset(name), load_chains(), tmp_path)
    assert set(plan["chains"]) <= {row["chain"] for row in plan["arms"]}
    assert plan["grid"]


@pytest.mark.parametrize("name", presets.preset_names())
def test_decode_models_are_matched_and_their_tables_dwarf_caches(name):
    preset = load_preset(name)
    rows = matched.decode_models(preset)
    for ratio in {row["sparse_ratio"] for row in rows}:
        models = {row["arch"]: row["model"] for row in rows if row["sparse_ratio"] == ratio}
        assert set(models) == set(preset.archs)
        spent = [flops(model) for model in models.values()]
        assert max(spent) < 1.01 * min(spent)
    own = [row["model"].cost().sparse_params for row in rows if row["sparse_ratio"] == rows[0]["sparse_ratio"]]
    assert min(filter(None, own)) > 64e6 or name == "smoke"


def test_controls_are_worse_and_better_by_construction(smoke):
    _, group = smoke
    chain = load_chains()["controls"]
    _, frozen_model, _ = arm(smoke, chain, 1)
    assert (frozen_model.arch.placebo, frozen_model.arch.name) == ("frozen-layer", "ultramem")
    assert flops(frozen_model) == pytest.approx(group.flops, rel=0.01)
    _, router_model, _ = arm(smoke, chain, 2)
    assert (router_model.arch.router_frozen, router_model.arch.name) == ("yes", "moe")
    _, dense_model, _ = arm(smoke, chain, 3)
    assert flops(dense_model) == pytest.approx(2 * group.flops, rel=0.01)


@pytest.mark.parametrize("name", presets.preset_names())
def test_evaluations_and_memory_tasks_of_a_preset_are_its_own(name):
    """Lists and numbers of the cpu preset would be inherited: limits for two cores, a mixture for its small corpus."""
    preset = load_preset(name)
    evals = preset.measure.evals
    for suite in evals.suites:
        task, limit = harness.limited(suite, evals.limit)
        assert task in ("perplexity", *harness.SUITES)
        assert limit == evals.limit or name in ("cpu", "reference")
    assert set(evals.online) <= set(harness.ONLINE)
    mix = strict.build(MixtureConfig, preset.data["memory_tasks"], name)
    share = {"cpu": 0.05, "reference": 0.05, "smoke": 0.05, "gpu1": 0.05, "paper": 0.0005}[name]
    corpus = {"cpu": 13.8e6, "reference": 13.8e6, "smoke": 5.84e5, "gpu1": 2.7e9, "paper": 9.3e11}[name]
    assert mix.n_tokens / (corpus + mix.n_tokens) == pytest.approx(share, rel=0.1)
