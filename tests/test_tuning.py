"""Equal tuning: as many settings for each architecture, and the presets use what the committed sweep chose."""

import json
from pathlib import Path

import pytest

from evals import schema
from workflows import presets
from workflows.errors import UserError

SWEEP = schema.read(Path(__file__).parent.parent / "results/reference/tuning.csv", "tuning")


def test_sweep_is_what_the_config_says():
    tried = {arch: [json.loads(s) for s in rows.setting] for arch, rows in SWEEP.groupby("arch")}
    assert tried == presets.load_tuning()


@pytest.mark.parametrize("arch", sorted(set(SWEEP.arch)))
def test_recipe_is_the_winner(arch):
    rows = SWEEP[SWEEP.arch == arch]
    best = json.loads(rows.loc[rows.val_loss.idxmin()].setting)
    recipe = dict(presets.load_preset("cpu").recipes[arch])
    fields = recipe.pop("arch", {})
    assert {f"train.{key}": value for key, value in recipe.items()} | fields == best
    assert rows[rows.chosen].setting.tolist() == [json.dumps(best)]


def test_unequal_tuning_is_refused(monkeypatch, tmp_path):
    (tmp_path / "tuning.yaml").write_text("dense: [{train.lr: 0.1}]\nmoe2: [{train.lr: 0.1}, {train.lr: 0.2}]\n")
    monkeypatch.setattr(presets, "CONFIGS", tmp_path)
    with pytest.raises(UserError, match=r"tried equally often, but the counts are .*'moe2': 2"):
        presets.load_tuning()
