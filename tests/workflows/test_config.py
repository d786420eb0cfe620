"""Presets and --config are strict: what does not fit is one sentence with the key; what a preset says reaches the grid."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from repository import snakemake

from evals.records import runs, strict
from evals.records.errors import UserError
from evals.scores import harness
from evals.scores.memory.mixture import MixtureConfig
from models.match import flops
from workflows import ablate, grid, matched, presets, resolve
from workflows.chains import load_chains
from workflows.presets import load_preset

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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preset": "nope"}, r"nope.*cpu.*smoke"),
        ({"presett": "cpu"}, r"presett.*did you mean preset"),
        ({"tokens": "many"}, r"tokens.*int.*many"),
        ({"archs": ["dens"]}, r"dens.*dense"),
        ({"sizes": "xxl"}, r"xxl.*d40"),
    ],
)
def test_command_line_is_checked(config, words):
    assert re.search(words, refusal(config))


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
    "measure.evals": ("limit", "perplexity_tokens", "together"),
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


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("top_m", "many", "int, found str 'many'"),
        ("top_m", True, "int, found bool True"),
        ("n_mem_heads", 1.5, "int, found float 1.5"),
        ("d_value", "d_model/x", "int or None, found str 'd_model/x'"),
        ("value_lr_multiplier", [4.0], "float, found list [4.0]"),
        ("placement", "every 2", "a list of str, found str 'every 2'"),
        ("placement", [1], "a list of str, found list [1]"),
    ],
)
def test_fields_of_the_memory_beside_experts_have_types(key, value, expected):
    preset = load_preset("cpu")
    hybrid = preset.archs["hybrid"]
    archs = preset.archs | {"hybrid": hybrid | {"memory": hybrid["memory"] | {key: value}}}
    recipes = {}  # they set fields of the memory too
    with pytest.raises(UserError) as error:
        matched.match_size(replace(preset, archs=archs, recipes=recipes), "d64")
    said = str(error.value)
    assert said == f"preset cpu: archs.hybrid.arch (hybrid): memory.{key}: expected {expected}"


def test_config_is_read_as_snakemake_passes_it():
    """Numbers of a list stay text, 1e6 becomes a float."""
    assert load_preset("cpu", {"seeds": [3, 4]}).grid.seeds == (3, 4)
    assert load_preset("cpu", {"seeds": ["3", "4"]}).grid.seeds == (3, 4)
    assert load_preset("cpu", {"tokens": 1e6}).train["tokens"] == 1_000_000
    assert load_preset("cpu", {"archs": ["pkm"]}).grid.archs == ("pkm",)


@pytest.mark.parametrize("value", ["corpus=$(touch pwned)", "tokens={a: -5}"])
def test_command_refuses_a_bad_config_before_any_job(tmp_path, value):
    done = snakemake(tmp_path, "--cores", "1", "--config", "preset=smoke", value, env=os.environ)
    assert done.returncode == 1
    assert f"--config {value.partition('=')[0]}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.rglob("pwned"))


def test_repeats_add_seeds_to_a_part_of_the_grid():
    grid = presets.load_preset("cpu").grid
    cells = grid.cells()
    assert len(cells) == len(set(cells)) == 3 * 6 + 4 * 2
    assert ("d48", "dense", 2) in cells
    assert ("d48", "pkm", 1) not in cells
    assert ("d40", "dense", 1) not in cells


def test_the_default_preset_trains_runs_of_the_reference(tmp_path):
    """`make` ends by comparing them: a run of both has one config."""
    own, reference = (resolve.resolve(load_preset(name), {}, tmp_path, tune=False)[1] for name in ("cpu", "reference"))
    assert {(run, config.sha) for run, config in own.items()} < {(run, config.sha) for run, config in reference.items()}


def test_a_preset_with_rates_of_its_own_inherits_no_rows_that_differ():
    assert load_preset("reference").step_rates == load_preset("cpu").step_rates != {}
    assert load_preset("gpu1").step_rates == {}


def spread_so(monkeypatch, size, **preset):
    """The smoke preset with these fields of `Parallel`, of its size xs and of its own."""
    data, read = presets.raw_preset("smoke") | {"parallel": preset}, presets.raw_preset
    data["sizes"]["xs"] |= {"train": {"workers": 4}, "parallel": size}
    monkeypatch.setattr(presets, "raw_preset", lambda name: data if name == "smoke" else read(name))
    return load_preset("smoke")


def test_how_runs_are_spread_is_of_a_size_and_reaches_no_config(monkeypatch, tmp_path):
    options = {"engine": "sharded", "values": "dimension", "recompute": True, "gather": "bf16", "async_save": False}
    before = resolve.resolve(spread_so(monkeypatch, {}), {}, tmp_path, tune=False)
    monkeypatch.undo()
    preset = spread_so(monkeypatch, {"nodes": 2, "timeout_s": 90}, nodes=1, restarts=2, **options)
    spread = preset.spread("xs")
    assert (spread.nodes, spread.per_node(4), spread.restarts, preset.spread("decode").nodes) == (2, 2, 2, 1)
    words = "--engine sharded --values dimension --recompute --gather bf16 --no-async-save --timeout 90"
    assert spread.options() == words.split()
    assert replace(spread, engine="replicated").options() == ["--timeout", "90"]
    assert type(spread)().options() == []
    grid, configs = resolve.resolve(preset, {}, tmp_path, tune=False)
    assert configs == before[1]
    entry = grid["runs"]["dense-xs-s0"]
    assert entry | {"parallel": {}} == before[0]["runs"]["dense-xs-s0"] | {"parallel": {}}
    assert type(spread)(**entry["parallel"]) == spread


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nodes": 3}, "nodes 3 must divide workers 4"),
        ({"engine": "fsdp"}, "'fsdp' is not one of replicated, sharded"),
        ({"recompute": 1}, "expected bool"),
        ({"timeout": 60}, "did you mean timeout_s"),
        ({"timeout_s": 0}, "must lie between"),
    ],
)
def test_how_runs_are_spread_is_checked(monkeypatch, fields, words):
    with pytest.raises(UserError, match=words) as error:
        spread_so(monkeypatch, fields)
    assert str(error.value).startswith("preset smoke: sizes.xs: parallel")
    assert is_one_sentence(str(error.value))


def test_tokens_follow_the_size_and_widths_carry_the_base():
    preset = load_preset("cpu")
    lengths = {size: matched.recipe(preset, "dense", size).tokens for size in preset.grid.sizes}
    assert lengths["d64"] == preset.train["tokens"]
    assert lengths["d64"] / lengths["d40"] == pytest.approx((64 / 40) ** 2, rel=0.01)
    assert {matched.prototype(preset, "dense", size).base_width for size in preset.grid.sizes} == {64}


def test_decay_keeps_its_time_constant_as_a_share_of_the_run():
    """At every size and budget, of grid and chain alike; where the preset does not say so it stays."""
    preset = load_preset("cpu")
    recipes = {size: matched.recipe(preset, "moe8", size) for size in preset.grid.sizes}
    of_run = preset.recipes["moe8"]["weight_decay"] * preset.decay_tokens
    assert [train.weight_decay * train.tokens for train in recipes.values()] == pytest.approx([of_run] * len(recipes))
    chain, group = load_chains()["scaling_tokens"], matched.match_size(preset, "d64")
    for step, deltas in ablate.chain_arms(chain):
        train = ablate.resolve_arm(preset, group, "d64", chain, deltas, step.id)[2]
        share = train.weight_decay * train.tokens / preset.recipes[deltas[-1].arch]["weight_decay"]
        assert share == pytest.approx(preset.decay_tokens), step.id
    assert matched.recipe(replace(preset, decay_tokens=0), "moe8", "d40").weight_decay == preset.recipes["moe8"]["weight_decay"]


def test_config_round_trips(tmp_path):
    plan = resolve.write_grid("smoke", {}, tmp_path)
    for run in plan["grid"]:
        folder = tmp_path / "smoke" / "runs" / run
        loaded = runs.load_run(folder)
        assert loaded.as_dict() == yaml.safe_load((folder / "config.yaml").read_text())
        assert loaded.sha == plan["runs"][run]["sha"]
    assert json.loads((tmp_path / "smoke" / "grid.json").read_text())["grid"] == plan["grid"]


@pytest.mark.parametrize("name", [name for name in presets.preset_names() if load_preset(name).measure.latency])
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
    preset = load_preset("cpu")  # whose grid repeats others, and has one beside it
    latency = replace(preset.measure.latency, archs=("dense", "moe8", "hybrid"), sparse_ratios=())
    rows = matched.decode_models(replace(preset, measure=replace(preset.measure, latency=latency)))
    assert [row["arch"] for row in rows] == ["dense", "moe8", "hybrid"]


@pytest.mark.parametrize("name", [name for name in presets.preset_names() if load_preset(name).measure.evals])
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
