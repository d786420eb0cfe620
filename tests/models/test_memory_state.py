"""State of the memory layers: initialisation, filter pair, penalties, what training changes and what it leaves, health."""

from dataclasses import replace

import pytest
import torch
from memory_layers import CONFIGS, PLACE, SIZES, D, L, layer_of, model_of

from evals.records.recipe import Train
from models.tucker import Tucker
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config
from workflows.optim import Optimizers


def test_the_filter_pair_is_the_leading_singular_pair_from_the_start_and_keeps_its_sign():
    torch.manual_seed(0)
    tucker = Tucker(3, 2, 4, 0.001, 0.15)
    tucker.initialise()
    for step in range(20):
        core_Hrr, u_Hr, t_Hr = tucker.core_hHrr.detach().sum(0), tucker.u_Hr.clone(), tucker.t_Hr.clone()
        largest_H = torch.linalg.svdvals(core_Hrr)[:, 0]
        assert torch.allclose(torch.einsum("hr,hrs,hs->h", u_Hr, core_Hrr, t_Hr), largest_H, rtol=1e-5), step
        tucker.core_hHrr.data += 0.05 * torch.randn_like(tucker.core_hHrr)
        tucker.refresh()
        assert ((tucker.u_Hr * u_Hr).sum(-1) > 0).all()
        assert ((tucker.t_Hr * t_Hr).sum(-1) > 0).all()
    tucker.u_Hr[1] *= -1
    tucker.t_Hr[1] *= -1
    before = tucker.u_Hr.clone()
    tucker.refresh()
    assert ((tucker.u_Hr * before).sum(-1) > 0).all()  # each head follows its own previous sign


def test_penalty_is_the_mean_squared_excess_of_all_singular_values_but_the_first():
    tucker = Tucker(2, 1, 3, 0.001, 0.15)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    tucker.core_hHrr.data = torch.stack(
        [turn @ torch.diag(torch.tensor(values)) @ turn.T for values in ([2.0, 0.55, 0.1], [1.0, 0.35, 0.25])]
    )[None]
    expected = (0.4**2 + 0 + 0.2**2 + 0.1**2) / 4
    assert tucker.penalty().item() == pytest.approx(0.001 * expected, rel=1e-4)
    layer = layer_of(CONFIGS["ultramem"])
    x_BTD = torch.randn(1, 3, D)
    assert layer(x_BTD)[1] == layer.selector.penalty()
    assert layer.eval()(x_BTD)[1] == 0


def test_balance_loss_is_n_times_usage_times_probability_per_axis():
    layer = layer_of(replace(CONFIGS["v2-balance"], tucker_penalty=0.0, balance_loss=0.5))
    x_BTD = torch.randn(1, 40, D)
    row_THnr, col_THnr = layer.scores(x_BTD)
    _, index_THm = layer.select(row_THnr, col_THnr)
    expected = 0.0
    for side_THn, key_THm in zip(
        layer.selector.filter_scores(row_THnr, col_THnr), (index_THm // 12, index_THm % 12), strict=True
    ):
        use = [(key_THm == key).sum().item() / key_THm.numel() for key in range(12)]
        expected += 12 * sum(f * p for f, p in zip(use, side_THn.softmax(-1).mean((0, 1)).tolist(), strict=True))
    assert layer(x_BTD)[1].item() == pytest.approx(0.5 * expected, rel=1e-5)


INIT_SIZES = [(64, 4, 32, 8, 8, 32), (128, 6, 64, 32, 16, 64), (256, 6, 96, 64, 32, 128)]


@pytest.mark.parametrize(("d_model", "n_layers", "n_keys", "d_key", "top_m", "d_value"), INIT_SIZES)
@pytest.mark.parametrize("kind", ["ultramem", "ultramem_v2"])
def test_improved_initialisation_by_measurement(kind, d_model, n_layers, n_keys, d_key, top_m, d_value):
    sizes = {"d_ff": 4 * d_model, "n_keys": n_keys, "d_key": d_key, "top_m": top_m, "placement": ("0:1",)}
    if kind == "ultramem":
        cfg, target = UltraMemConfig(**sizes, d_value=d_value), 1 / (2 * n_layers)
    else:
        cfg, target = UltraMemV2Config(**sizes, d_value=d_value // 2), 0.064 * 4 / (2 * n_layers)
    score, variance = [], []
    for seed in range(3):
        layer = layer_of(cfg, d_model, n_layers, seed=seed).eval()
        x_BTD = torch.randn(1, 512, d_model)
        score.append(layer.health(x_BTD)["mean_score"])
        variance.append(layer(x_BTD)[0].var().item() / target)
    assert all(abs(s - 1) < 0.1 for s in score), score
    assert all(abs(v - 1) < 0.2 for v in variance), variance


def test_ultramem_values_start_at_the_papers_variance_up_to_the_measured_score_moment():
    layer = layer_of(UltraMemConfig(**SIZES | {"n_keys": 64, "top_m": 16}, **PLACE, d_value=16))
    moment = layer.weigh(layer.select(*layer.scores(torch.randn(1, 1024, D)))[0]).square().mean().item()
    expected = (4 / (2 * 16 * 2 * L * moment)) ** 0.5  # E / (2 m H L), P1 appendix A
    assert layer.table.values_NC.std().item() == pytest.approx(expected, rel=0.05)
    assert torch.allclose(layer.key_norm.weight, torch.tensor((8 / 2) ** -0.5))


def test_official_initialisation():
    layer = layer_of(replace(CONFIGS["v2-code"], n_keys=64))
    assert layer.table.values_NC.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.allclose(layer.query_norm.weight, torch.tensor(8**-0.4))
    assert torch.allclose(layer_of(CONFIGS["ultramem-code"]).key_norm.weight, torch.tensor(8**-0.33))
    grad = torch.autograd.grad(layer(torch.randn(1, 64, D))[0].sum(), layer.query.weight)[0]
    assert (grad[:16] != 0).all()
    assert (grad[16:] == 0).all()


def test_health_counts_use_and_scores():
    layer = layer_of(CONFIGS["pkm"]).eval()
    x_BTD = torch.randn(2, 50, D)
    score_THmh, index_THm = layer.select(*layer.scores(x_BTD))
    use = torch.bincount(index_THm.flatten(), minlength=144)
    share = use[use > 0] / use.sum()
    health = layer.health(x_BTD)
    assert health["used_share"] == pytest.approx((use > 0).sum().item() / 144)
    assert health["kl_uniform"] == pytest.approx((share * (share * 144).log()).sum().item(), rel=1e-5)
    assert health["top1_score"] == pytest.approx(score_THmh.softmax(2).amax(2).mean().item(), rel=1e-5)
    assert health["recall_grid"] == health["recall_quadrant"] == 1.0
    assert set(layer_of(CONFIGS["v2"]).health(x_BTD)) - set(health) == {"core_lambda1", "core_lambda2_over_1"}


def trained(arch, optimizer: str) -> tuple[set[str], set[str]]:
    """Parameters of the memory layers that two steps of training change, and that they leave."""
    torch.manual_seed(0)
    model = model_of(arch).build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cfg = Train(tokens=64, batch_size=2, seq_len=16, lr=0.01, value_optimizer=optimizer, precision="fp32")
    optimizers = Optimizers(model, cfg)
    for step in range(2):
        optimizers.set_lr(step)
        model.refresh()
        sum(model.loss(*torch.randint(0, 64, (2, 2, 16)))).backward()
        optimizers.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    inside = {name for name in before if name.startswith("memories.")}
    assert changed >= before.keys() - inside  # the backbone always learns
    return changed & inside, inside - changed


@pytest.mark.parametrize("optimizer", ["dense", "rows"])
@pytest.mark.parametrize("name", ["ultramem", "v2", "v2-ring", "memory_plus"])
def test_frozen_parts_keep_their_initialisation(name, optimizer):
    changed, kept = trained(CONFIGS[name], optimizer)
    assert kept == set()
    tables = {parameter for parameter in changed if "values_N" in parameter}
    outputs = {parameter for parameter in changed if parameter.endswith("output.weight")}
    assert trained(replace(CONFIGS[name], placebo="frozen"), optimizer) == (changed - tables, tables)
    assert trained(replace(CONFIGS[name], placebo="frozen-layer"), optimizer) == (outputs, changed - outputs)


def test_a_frozen_table_is_read_whole_whatever_its_optimizer():
    table, row_TM = layer_of(replace(CONFIGS["v2"], placebo="frozen")).table, torch.tensor([[3, 1, 3]])
    table.gradient = "rows"
    read_NC, place_TM = table.read("values_NC", row_TM)
    assert read_NC is table.values_NC
    assert place_TM is row_TM
