"""The coordinate check: what it measures, and that it sees learning rates that do not suit the width."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from evals.claims.widths import slopes
from evals.records import schema
from evals.records.errors import UserError
from models.match import match
from workflows import coordinates
from workflows.coordinates import STEPS, WIDTH_RULES
from workflows.matched import match_rule, prototype
from workflows.optim import Optimizers
from workflows.presets import load_preset

TINY = (32, 64, 128)  # below 32 a step's part that averages out in wide layers still shows


class Planted(Optimizers):
    """Learning rates that grow with the width on top of what they should be."""

    def __init__(self, model, cfg):
        super().__init__(model, cfg)
        self.width = model.cfg.d_model

    def set_lr(self, step):
        lr = super().set_lr(step)
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] *= self.width / TINY[0]
        return lr


@pytest.fixture(scope="module")
def measured():
    """At a rate of its own: how far ten steps go, and so what one seed shows, must not hang on the preset's present recipe."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        own = coordinates.recipe
        patch.setattr(coordinates, "recipe", lambda *args: replace(own(*args), lr=0.009, weight_decay=0.1))
        return pd.DataFrame(coordinates.measure(("dense",), TINY, seeds=(0,)))


def of(frame, rule, step=STEPS):
    found = slopes(frame)
    return found[(found.width_rule == rule) & (found.step == step)].set_index("where")


def test_every_place_is_measured_at_every_width_before_and_after(measured, tmp_path):
    schema.write(tmp_path / "coordinates.csv", "coordinates", measured)
    frame = schema.read(tmp_path / "coordinates.csv", "coordinates")
    places = {"embedding", "residual", "logits"} | {f"{part}.{layer}" for part in ("attention", "ffn") for layer in range(4)}
    for _, group in frame.groupby(["width_rule", "d_model", "step"]):
        assert set(group["where"]) == places
        assert (group.value > 0).all()
    assert set(frame.d_model) == set(TINY)
    assert set(frame.step) == {0, STEPS}
    assert set(frame.width_rule) == set(WIDTH_RULES)


@pytest.mark.parametrize("arch", ["moe8", "ultramem"])
def test_values_are_those_of_the_modules(arch):
    preset = coordinates.widths_of(load_preset("smoke"), (32,))
    cfg = match({arch: prototype(preset, arch, "d32")}, match_rule(preset))[arch]
    torch.manual_seed(0)
    model, (tokens_BT, targets_BT) = cfg.build().eval(), coordinates.batch(0)
    found = coordinates.activations(model, tokens_BT)
    with torch.no_grad():
        x_BTD = model.embedding(tokens_BT)
        assert found["embedding"] == pytest.approx(x_BTD.square().mean().sqrt().item())
        assert found["logits"] == pytest.approx(model.logits(tokens_BT).square().mean().sqrt().item())
        block = model.blocks[0]
        x_BTD = x_BTD + block.attention(block.attention_norm(x_BTD), model.cos_TK[:64], model.sin_TK[:64])
        z_BTD = block.ffn_norm(x_BTD)
        assert found["ffn.0"] == pytest.approx(block.ffn(z_BTD)[0].square().mean().sqrt().item(), rel=1e-5)
        for memory, (read_at, _) in zip(model.memories[:1], model.placement[:1], strict=True):
            assert found[f"memory.{read_at}"] == pytest.approx(memory(z_BTD)[0].square().mean().sqrt().item(), rel=1e-5)
    assert sum(where.startswith("memory.") for where in found) == len(model.memories)
    assert not any(module._forward_hooks for module in model.modules())
    followed = {(a, b) for a, b in zip(tokens_BT.flatten().tolist(), targets_BT.flatten().tolist(), strict=True)}
    assert len(followed) < 0.8 * tokens_BT.numel()  # there is something to learn


@pytest.mark.parametrize("rule", WIDTH_RULES)
def test_the_residual_stream_is_as_large_at_every_width_where_rates_follow_the_width(measured, rule):
    assert of(measured, rule, step=0).flat["residual"]
    assert of(measured, rule).flat["residual"] == (rule == "scaled")
    if rule == "flat":
        assert of(measured, rule).slope["residual"] > 0


def test_rates_that_grow_with_the_width_are_seen(measured, monkeypatch):
    monkeypatch.setattr(coordinates, "Optimizers", Planted)
    planted = pd.DataFrame(coordinates.measure(("dense",), TINY, seeds=(0,)))
    found, before = of(planted, "scaled"), of(measured, "scaled")
    assert not found.flat["residual"]
    assert found.slope["residual"] > before.slope["residual"] + 0.5


def test_slopes_are_powers_of_the_width():
    made = [
        {"arch": "dense", "width_rule": "flat", "d_model": d, "step": 10, "where": where, "value": 3 * d**power}
        for where, power in (("residual", 0.5), ("logits", -0.26), ("ffn.0", 0.25 - 1e-9), ("embedding", 0.0))
        for d in (32, 64, 256)
    ]
    found = slopes(pd.DataFrame(made)).set_index("where")
    assert found.slope.to_dict() == pytest.approx({"residual": 0.5, "logits": -0.26, "ffn.0": 0.25, "embedding": 0.0}, abs=1e-6)
    assert found.flat.to_dict() == {"residual": False, "logits": False, "ffn.0": True, "embedding": True}
    with pytest.raises(UserError, match="takes two widths or more, and there is only d_model 32"):
        slopes(pd.DataFrame(made).query("d_model == 32"))


@pytest.mark.parametrize("widths", [["64"], ["64", "64"], ["64", "20"], ["-8", "64"]])
def test_widths_that_cannot_be_are_refused_in_one_sentence(widths, refusal_of, tmp_path):
    said = refusal_of(coordinates.main, "--out", tmp_path / "c.csv", "--widths", *widths)
    assert "two different multiples of 8 or more" in said
    assert not (tmp_path / "c.csv").exists()


def test_the_command_writes_and_names_what_is_not_flat(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["coordinates", "--out", str(tmp_path / "c.csv"), "--widths", "16", "32", "--archs", "dense"]
    )
    coordinates.main()
    frame = schema.read(tmp_path / "c.csv", "coordinates")
    said = capsys.readouterr().out
    for rule in WIDTH_RULES:
        steep = of(frame, rule).query("not flat")
        (line,) = [line for line in said.splitlines() if f"{rule:6s} step {STEPS}" in line]
        assert all(f"{where} {row.slope:+.2f}" in line for where, row in steep.iterrows())
        assert math.isfinite(steep.slope.sum())
