"""Equal tuning: as many settings for each architecture, and the presets use what the committed sweep chose."""

import json
from pathlib import Path

import pytest

from evals import schema
from workflows import presets
from workflows.errors import UserError

SWEEP = schema.read(Path(__file__).parent.parent / "results/reference/tuning.csv", "tuning")
PRESET = presets.load_preset("cpu")
TUNED = SWEEP[SWEEP["size"] == PRESET.tuning_size]


def test_sweep_is_what_the_config_says():
    tuning = presets.load_tuning()
    assert {arch: tuple(json.loads(s) for s in rows.setting) for arch, rows in TUNED.groupby("arch")} == {
        arch: tries.settings for arch, tries in tuning.items()
    }


@pytest.mark.parametrize("arch", sorted(set(SWEEP.arch)))
def test_recipe_is_the_winner_and_lies_inside_the_sweep(arch):
    rows = TUNED[TUNED.arch == arch]
    best = json.loads(rows.loc[rows.val_loss.idxmin()].setting)
    recipe = dict(PRESET.recipes[arch])
    fields = recipe.pop("arch", {})
    assert {f"train.{key}": value for key, value in recipe.items()} | fields == best
    assert rows[rows.chosen].setting.tolist() == [json.dumps(best)]
    assert rows.lr.min() < best["train.lr"] < rows.lr.max(), "the best rate is on the edge of the sweep: widen it"


@pytest.mark.parametrize(
    ("moe2", "what"),
    [
        ("{settings: [{train.lr: 0.1}, {train.lr: 0.2}]}", "settings"),
        ("{settings: [{train.lr: 0.1}], transfer: [1.0]}", "transfer"),
    ],
)
def test_unequal_tuning_is_refused(monkeypatch, tmp_path, moe2, what):
    (tmp_path / "tuning.yaml").write_text(f"dense: {{settings: [{{train.lr: 0.1}}]}}\nmoe2: {moe2}\n")
    monkeypatch.setattr(presets, "CONFIGS", tmp_path)
    with pytest.raises(UserError, match=rf"equally many {what}, but the counts are .*'moe2'"):
        presets.load_tuning()
