"""Equal tuning: as many settings for each architecture, and the presets use what the committed sweep chose."""

import json

import pytest
from repository import ROOT

from evals.records import schema
from evals.records.errors import UserError
from evals.stats.seeds import TIE
from workflows import chains, presets

SWEEP = schema.read(ROOT / "results/reference/tuning.csv", "tuning")
PRESET = presets.load_preset("cpu")
TUNED = SWEEP[SWEEP["size"] == PRESET.tuning_size]
# Of recipes that another replaced (chain `rates`): what is undone to have the tuned one.
FIRST = {step.arch: step for step in chains.load_chains()["rates"].steps if step.id.endswith("-first")}


def test_sweep_is_what_the_config_says():
    tuning = chains.load_tuning()
    assert {arch: tuple(json.loads(s) for s in rows.setting) for arch, rows in TUNED.groupby("arch")} == {
        arch: tries.settings for arch, tries in tuning.items()
    }
    wider = SWEEP[SWEEP["size"] == PRESET.transfer_size]
    assert {arch: tuple(rows.lr) for arch, rows in wider.groupby("arch")} == {a: t.transfer for a, t in tuning.items()}


@pytest.mark.parametrize("arch", sorted(set(SWEEP.arch)))
def test_recipe_is_the_winner_and_lies_inside_the_sweep(arch):
    """The lowest rate within 0.02 nats of the lowest loss, and its best setting; a replaced one is in the chain rates."""
    rows = TUNED[TUNED.arch == arch]
    equals = rows[rows.val_loss <= rows.val_loss.min() + 0.02]
    best = json.loads(equals.sort_values(["lr", "val_loss"]).iloc[0].setting)
    recipe = dict(PRESET.recipes[arch])
    fields = recipe.pop("arch", {})
    first = FIRST[arch].set if arch in FIRST else {}
    assert {f"train.{key}": value for key, value in recipe.items()} | fields | first == best
    assert rows[rows.chosen].setting.tolist() == [json.dumps(best)]
    assert not rows.edge.any(), "the best setting is on an edge of the sweep: widen it"


@pytest.mark.parametrize("arch", sorted(PRESET.grid.archs))
def test_a_recipe_is_replaced_where_more_tokens_want_another(arch):
    """By more than tuning's tie, of validation loss with one seed: neither without that reason, nor in spite of it."""
    arms = schema.read(ROOT / "results/reference/arms.csv", "arms").query("chain == 'rates'")
    runs = schema.read(ROOT / "results/reference/runs.csv", "runs").set_index("run")
    losses = dict(zip(arms["step"], runs.loc[arms["run"], "val_loss"], strict=True))
    name = arch.replace("ultramem_v2", "v2")
    beside = [losses[step] for step in losses if step.startswith(f"{name}-") and not step.endswith("-first")]
    assert min(beside) > losses[arch] - TIE, "another setting is better: replace the recipe"
    if arch in FIRST:
        assert losses[f"{name}-first"] > losses[arch] + TIE


@pytest.mark.parametrize("arch", sorted(set(SWEEP.arch)))
def test_the_best_rate_is_the_same_at_twice_the_width(arch):
    """Within a factor 1.5, the step of the sweep."""
    wider = SWEEP[(SWEEP.arch == arch) & (SWEEP["size"] == PRESET.transfer_size)]
    best = wider.loc[wider.val_loss.idxmin()].lr
    assert 1 / 1.51 < best / PRESET.recipes[arch]["lr"] < 1.51
    assert not wider.edge.any(), "the best rate is on an edge at the wider size: try further"


def test_unequal_tuning_is_refused(monkeypatch, tmp_path):
    moe2 = "{settings: [{train.lr: 0.1}, {train.lr: 0.2}]}"
    (tmp_path / "tuning.yaml").write_text(f"dense: {{settings: [{{train.lr: 0.1}}]}}\nmoe2: {moe2}\n")
    monkeypatch.setattr(chains, "CONFIGS", tmp_path)
    with pytest.raises(UserError, match=r"equally many settings, but the counts are .*'moe2'"):
        chains.load_tuning()
