"""Placebos: memory layers that compute what a memory computes and lack one thing that it is said to give."""

from dataclasses import replace

import pytest
import torch
from memory_layers import CONFIGS, PLACEBOS, D, L, layer_of, model_of

from evals.records.recipe import Train
from models.match import flops, params
from workflows import ablate, checkpoint, matched
from workflows.chains import load_chains
from workflows.optim import Optimizers
from workflows.presets import load_preset

KINDS = ("one-row", "frozen", "shuffled", "scattered")
NAMES = ("pkm", "peer", "memory_plus", "ultramem", "v2", "v2-ring")
each_name = pytest.mark.parametrize("name", NAMES)


def rows_of(layer, T=6):
    """Rows of every cell of the grid at each of T positions (T, cells), of the window that the layer sees."""
    cells_TM = torch.arange(layer.axis**2).expand(T, -1)
    row_TM = layer.address(cells_TM, layer.jump(torch.zeros(1, T, D)))[0]
    return (row_TM - layer.window.offset) % layer.window.rows


@pytest.mark.parametrize("cfg", PLACEBOS.values(), ids=PLACEBOS.keys())
def test_cost_counts_what_is_stored_and_multiplied(cfg):
    with torch.device("meta"):
        built = model_of(cfg).build()
    plain = model_of(replace(cfg, placebo="none"))
    assert sum(p.numel() for p in built.parameters()) == model_of(cfg).cost().params
    assert flops(model_of(cfg)) == flops(plain)
    assert (model_of(cfg).cost() == plain.cost()) == (cfg.placebo != "one-row")


@each_name
@pytest.mark.parametrize("placebo", ["frozen", "shuffled", "scattered"])
def test_all_weights_start_as_without(name, placebo):
    models = []
    for cfg in (CONFIGS[name], PLACEBOS[f"{name}-{placebo}"]):
        torch.manual_seed(3)
        models.append(dict(model_of(cfg).build().named_parameters()))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(weight, models[1][key]) for key, weight in models[0].items())


@each_name
def test_one_row_serves_every_pick_and_starts_as_loud_as_a_table(name):
    cfg, x_BTD = PLACEBOS[f"{name}-one-row"], torch.randn(1, 256, D)
    plain, placebo = (layer_of(c, seed=1).eval() for c in (CONFIGS[name], cfg))
    assert [len(p) for p in placebo.table.parameters()] == [1] * len(placebo.table.value_names)
    assert not placebo.address(torch.arange(placebo.axis**2)[None])[0].any()
    picks = [layer.select(*layer.scores(x_BTD))[1] for layer in (plain, placebo)]
    assert picks[0].shape == picks[1].shape
    assert picks[1].unique().numel() > cfg.top_m  # it addresses as before
    loud = []
    for c in (CONFIGS[name], cfg):  # one row is one draw: the mean square over many
        draws = [layer_of(c, seed=seed).eval()(x_BTD)[0].square().mean().item() for seed in range(40)]
        loud.append(sum(draws) / len(draws))
    assert loud[1] == pytest.approx(loud[0], rel=0.5)
    assert placebo.health(x_BTD)["used_share"] == 1.0


@each_name
def test_shuffled_is_the_plain_layer_with_its_rows_in_another_order(name):
    plain = layer_of(CONFIGS[name], seed=1).double().eval()
    shuffled, other = (layer_of(PLACEBOS[f"{name}-shuffled"], seed=seed).double().eval() for seed in (1, 2))
    assert not torch.equal(rows_of(shuffled)[0], rows_of(other)[0])
    assert torch.equal(torch.bincount(rows_of(shuffled)[0]), torch.bincount(rows_of(plain)[0]))
    x_BTD = torch.randn(1, 20, D, dtype=torch.float64)
    assert not torch.allclose(shuffled(x_BTD)[0], plain(x_BTD)[0])
    if CONFIGS[name].expansion == 1:  # where cells and rows are one to one, the same numbers come out of the moved rows
        start = plain.window.offset
        moved, kept = (start + rows_of(layer)[0] for layer in (shuffled, plain))
        for key in plain.table.value_names:
            getattr(shuffled.table, key).data[moved] = getattr(plain.table, key).data[kept]
        torch.testing.assert_close(shuffled(x_BTD)[0], plain(x_BTD)[0], rtol=1e-12, atol=1e-14)


@each_name
def test_scattered_moves_every_cell_by_position_and_none_onto_another(name):
    layer, other = (layer_of(PLACEBOS[f"{name}-scattered"], seed=seed) for seed in (1, 2))
    row_TM = rows_of(layer)
    use_TN = torch.stack([torch.bincount(row_M, minlength=layer.window.side**2) for row_M in row_TM])
    assert (use_TN == CONFIGS[name].expansion).all()  # a bijection of stored rows at each position
    assert not any(torch.equal(a, b) for i, a in enumerate(row_TM) for b in row_TM[:i])
    assert not torch.equal(row_TM, rows_of(other))
    x_BTD = torch.randn(1, 1, D).expand(2, 6, D)  # one content at all positions of two sequences
    y_BTD = layer.eval()(x_BTD)[0]
    assert torch.equal(y_BTD[0], y_BTD[1])
    assert not torch.allclose(y_BTD[0, -1], y_BTD[0, -2])


def test_positions_beyond_the_drawn_jumps_go_round():
    layer = layer_of(PLACEBOS["v2-scattered"])
    count = len(layer.jumps)
    jump_T1 = layer.jump(torch.zeros(1, count + 2, 1))
    assert torch.equal(jump_T1[count:], jump_T1[:2])


@each_name
@pytest.mark.parametrize("placebo", ["shuffled", "scattered"])
def test_a_checkpoint_brings_the_addresses_back(name, placebo, tmp_path):
    """A model of another seed that takes the checkpoint is the one that was saved, bit for bit."""
    cfg = Train(tokens=64, batch_size=2, seq_len=16, lr=0.01, precision="fp32")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(model_of(PLACEBOS[f"{name}-{placebo}"]).build().eval())
    parts = [Optimizers(model, cfg) for model in models]
    tokens_BT = torch.randint(0, 64, (2, 16))
    with torch.no_grad():
        expected = models[0].logits(tokens_BT)
        assert not torch.equal(models[1].logits(tokens_BT), expected)
        checkpoint.save(tmp_path / "saved", models[0], parts[0], {}, {"identity": {}})
        checkpoint.restore(tmp_path / "saved", models[1], parts[1], {}, "cpu", {})
        assert torch.equal(models[1].logits(tokens_BT), expected)


def test_addresses_of_layers_and_runs_differ_and_are_the_seeds():
    def drawn(seed, placebo, key):
        torch.manual_seed(seed)
        return [getattr(placed.module, key).tolist() for placed in PLACEBOS[f"v2-{placebo}"].memories(D, L)]

    for placebo, key in (("shuffled", "shuffle"), ("scattered", "jumps")):
        assert drawn(5, placebo, key) == drawn(5, placebo, key)
        layers = drawn(5, placebo, key) + drawn(6, placebo, key)
        assert all(a != b for i, a in enumerate(layers) for b in layers[:i])


def test_arms_of_the_chain_keep_the_grids_sizes():
    preset, chain = load_preset("smoke"), load_chains()["placebos"]
    group = matched.match_size(preset, "xs")
    arms = ablate.chain_arms(chain)
    expected = {f"{a}{p}" for a in ("pkm", "ultramem", "ultramem_v2") for p in ("", *(f"-{x}" for x in KINDS))}
    assert {step.id for step, _ in arms} == expected
    for step, deltas in arms:
        arch, model, train = ablate.resolve_arm(preset, group, "xs", chain, deltas, "test")
        placebo = step.id.removeprefix(arch).removeprefix("-") or "none"
        assert model == replace(group.models[arch], arch=replace(group.models[arch].arch, placebo=placebo))
        assert train == matched.recipe(preset, arch, "xs")
        assert flops(model) == flops(group.models[arch])
        assert (params(model) < 0.5 * params(group.models[arch])) == (placebo == "one-row")
