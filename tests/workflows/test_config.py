"""Configs are strict: what does not fit is refused with the key and what is allowed; deltas must change something."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from repository import ROOT

from evals.records import runs, strict
from evals.records.errors import UserError
from evals.scores import harness
from evals.scores.memory.mixture import MixtureConfig
from models.match import flops, params
from workflows import ablate, grid, matched, presets, resolve
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


HUGE = 10**5000  # more digits than Python prints
BAD = [
    *({"tokens": value} for value in (0, -5, 10**30, HUGE, 1.5, float("nan"), float("inf"), -1e300, True, None, "", "1,000")),
    *({"tokens": value} for value in ([], [4096], {}, {"a": 1}, {"tokens": 4096}, "9" * 5000, "\u0661\u0662")),
    *({"seeds": value} for value in ([], -1, [0, -1], [1, 1], ["1", 1], 10**12, [HUGE], 0.5, True, "one", {}, {"0": 0}, [[0]])),
    *({"archs": value} for value in ([], "", ["dense", "dense"], "dense,pkm", [None], [["dense"]], {"dense": 1}, 3, "Dense")),
    *({"sizes": value} for value in ([], ["xs", "xs"], "xxl", [0], {"xs": {}}, None, "xs\nxs")),
    *({"corpus": value} for value in ("wikipedia", "../pypi", "/etc", "$(touch pwned)", "", None, 7, ["pypi"], {}, "hub")),
    *({"precision": value} for value in ("fp16", "", None, 32, ["bf16"], {"bf16": 1})),
    *({"preset": value} for value in ("nope", "../cpu", "", None, 7, ["cpu"], {}, "sources", "cpu.yaml", "\U0001f600")),
    *({key: "cpu"} for key in ("presett", "Tokens", "tokens ", "", "--tokens", "lr")),
]


def refusal(config):
    """What load_grid says of a --config; it must refuse it."""
    with pytest.raises(UserError) as error:
        grid.load_grid(config, Path("nowhere"))
    assert is_one_sentence(str(error.value))
    return str(error.value)


def is_one_sentence(said):
    return bool(said) and "\n" not in said and len(said) < 600


@pytest.mark.parametrize("config", BAD, ids=lambda config: strict.shown(config)[:40])
def test_bad_config_is_one_sentence_that_names_the_key(config):
    key = next(iter(config))
    assert key in refusal(config)
    if key in presets.OVERRIDES:
        assert re.search(rf"--config {key}|grid\.{key}", refusal(config))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18)
    | st.floats()
    | st.text()
    | st.sampled_from(["cpu", "smoke", "dense", "pkm", "xs", "m", "pypi", "c4", "bf16", "0", "1", 4096, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["preset", *presets.OVERRIDES]) | st.text() | st.integers(), VALUES, max_size=3))
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
def test_any_config_is_a_preset_or_one_sentence(config):
    config = dict(config)
    name = config.pop("preset", "smoke")
    try:
        preset = load_preset(name, config)
    except UserError as error:
        said = str(error)
        preset = None
    if preset is None:
        assert is_one_sentence(said)
        return
    assert preset.train["tokens"] >= 1
    assert preset.grid.seeds
    assert min(preset.grid.seeds) >= 0
    for chosen in (preset.grid.seeds, preset.grid.archs, preset.grid.sizes):
        assert len(set(chosen)) == len(chosen) > 0
    assert preset.data["corpus"] in presets.corpora()
    assert preset.train.get("precision", "bf16") in ("fp32", "bf16")


NUMBERS = {
    "train": ("tokens", "batch_size", "seq_len", "lr", "workers", "threads", "evaluate", "validation_tokens", "eps"),
    "sizes.xs": ("d_model", "n_layers", "n_heads", "n_kv_heads", "token_scale"),
    "measure.latency": ("context", "threads", "rounds", "budget_s"),
    "measure.evals": ("limit", "perplexity_tokens"),
}


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in NUMBERS.items() for key in keys])
@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), 10**400, True, "8", [8], {}])
def test_numbers_of_a_preset_file_have_ranges(monkeypatch, part, key, value):
    data, read = presets.raw_preset("smoke"), presets.raw_preset
    inner = data
    for name in part.split("."):
        inner = inner[name]
    inner[key] = value
    monkeypatch.setattr(presets, "raw_preset", lambda name: data if name == "smoke" else read(name))
    with pytest.raises(UserError, match=key) as error:
        load_preset("smoke")
    assert is_one_sentence(str(error.value))


def test_config_is_read_as_snakemake_passes_it():
    """Numbers of a list stay text, 1e6 becomes a float."""
    assert load_preset("cpu", {"seeds": ["3", "4"]}).grid.seeds == (3, 4)
    assert load_preset("cpu", {"tokens": 1e6}).train["tokens"] == 1_000_000
    assert load_preset("cpu", {"archs": ["pkm"]}).grid.archs == ("pkm",)


@pytest.mark.parametrize("value", ["corpus=$(touch pwned)", "tokens={a: -5}"])
def test_command_refuses_a_bad_config_before_any_job(tmp_path, value):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
    done = subprocess.run(
        [*command, "--config", "preset=smoke", value], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"--config {value.partition('=')[0]}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.rglob("pwned"))


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


def test_rows_of_a_tuned_chain_are_trained_with_every_rate(tmp_path):
    preset = replace(load_preset("smoke"), chain_size="xs", chain_rates=(0.001, 0.006))
    base = Step(id="base", label="as in the grid", arch="ultramem")
    chains = {"c": Chain(title="", kind="sweep", base=base, steps=(), tuned=True, seeds=(0, 1))}
    plan, found = resolve.resolve(preset, chains, tmp_path)
    assert [(found[row["run"]].train.lr, found[row["run"]].seed, row["lr"]) for row in plan["arms"]] == [
        (0.001, 0, 0.001),
        (0.001, 1, 0.001),
        (0.006, 0, 0.006),
        (0.006, 1, 0.006),
    ]


def test_main_chains_begin_and_end_at_the_grids_models():
    """evidence.md section 1.4: a base that is not the grid's own punishes or flatters every step."""
    preset, chains = load_preset("cpu"), presets.load_chains()
    for name, first, last in (("ultramem", "pkm", "ultramem"), ("ultramem_v2", "ultramem", "ultramem_v2")):
        at, arms = preset.chain_sizes[name], ablate.chain_arms(chains[name])
        group = matched.match_size(preset, at)
        models = [ablate.resolve_arm(preset, group, at, chains[name], deltas, "t")[1] for _, deltas in arms]
        tensors = []
        for model in (models[0], group.models[first], models[-1], group.models[last]):
            torch.manual_seed(0)
            tensors.append(sorted((tuple(p.shape), p.sum().item()) for p in model.build().parameters()))
        assert tensors[0] == tensors[1], f"{name}: its base is not the grid's {first}"
        assert tensors[2] == tensors[3], f"{name}: its last row is not the grid's {last}"


def test_rates_at_the_transfer_size_carry_the_whole_recipe():
    preset = load_preset("cpu")
    for _, arch, size, setting in ablate.tuning_settings(preset, presets.load_tuning()):
        if size == preset.transfer_size:
            model = matched.prototype(preset, arch, size)
            _, train = ablate.tuned(preset, model, arch, size, setting)
            assert train.weight_decay == preset.recipes[arch]["weight_decay"], arch
            assert train.lr == setting["train.lr"]


def test_repeats_add_seeds_to_a_part_of_the_grid():
    grid = presets.load_preset("cpu").grid
    cells = grid.cells()
    assert len(cells) == len(set(cells)) == 4 * 6 + 4 * 2
    assert ("d64", "dense", 2) in cells
    assert ("d64", "pkm", 1) not in cells
    assert ("d40", "dense", 1) not in cells


def test_tokens_follow_the_size_and_widths_carry_the_base():
    preset = load_preset("cpu")
    lengths = {size: matched.recipe(preset, "dense", size).tokens for size in preset.grid.sizes}
    assert lengths["d64"] == preset.train["tokens"]
    assert lengths["d80"] / lengths["d40"] == pytest.approx((80 / 40) ** 2, rel=0.01)
    assert {matched.prototype(preset, "dense", size).base_width for size in preset.grid.sizes} == {64}


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
        assert set(models) == set(preset.measure.latency.archs)
        spent = [flops(model) for model in models.values()]
        assert max(spent) < 1.01 * min(spent)
    own = [row["model"].cost().sparse_params for row in rows if row["sparse_ratio"] == rows[0]["sparse_ratio"]]
    assert min(filter(None, own)) > 64e6 or name == "smoke"


def test_decode_benchmark_takes_some_of_the_architectures():
    preset = load_preset("smoke")
    latency = replace(preset.measure.latency, archs=("dense", "ultramem"))
    rows = matched.decode_models(replace(preset, measure=replace(preset.measure, latency=latency)))
    assert [row["arch"] for row in rows] == ["dense", "ultramem"]


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
    tasks = [task for suite in harness.SUITES.values() for task in suite]
    for suite in evals.suites:
        task, limit = harness.limited(suite, evals.limit)
        assert task in ("perplexity", *harness.SUITES, *tasks)
        assert limit == evals.limit or name in ("cpu", "reference")
    assert set(evals.online) <= set(harness.ONLINE)
    mix = strict.build(MixtureConfig, preset.data["memory_tasks"], name)
    share = {"cpu": 0.05, "reference": 0.05, "smoke": 0.05, "gpu1": 0.05, "paper": 0.0005}[name]
    corpus = {"cpu": 13.8e6, "reference": 13.8e6, "smoke": 5.84e5, "gpu1": 2.7e9, "paper": 9.3e11}[name]
    assert mix.n_tokens / (corpus + mix.n_tokens) == pytest.approx(share, rel=0.1)
