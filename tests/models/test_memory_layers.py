"""The contract of every memory layer, its fields, its place in the Transformer and its state at initialisation."""

import itertools
from dataclasses import replace

import pytest
import torch
from memory_layers import CONFIGS, NEUTRAL, PLACE, SIZES, D, L, each_config, each_layer, layer_of, model_of

from evals.records.recipe import Train
from models.memory import permutation
from models.pkm import PKMConfig
from models.tucker import Tucker
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config
from workflows.optim import Optimizers


@each_config
def test_cost_counts_every_parameter_without_allocating(cfg):
    with torch.device("meta"):
        built = model_of(cfg).build()
    assert sum(p.numel() for p in built.parameters()) == model_of(cfg).cost().params
    tables = sum(p.numel() for p in built.value_parameters())
    assert tables == cfg.cost(D, L).only("table").params == cfg.cost(D, L).sparse_params


@each_config
def test_every_parameter_learns(cfg):
    torch.manual_seed(0)
    model = model_of(cfg).build()
    ce, aux = model.loss(*torch.randint(0, 64, (2, 8, 16)))
    (ce + aux).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@each_layer
def test_a_token_sees_no_other_beyond_the_causal_window_of_the_query_convolution(cfg):
    layer = layer_of(cfg).eval()
    x_BTD = torch.randn(2, 7, D, requires_grad=True)
    layer(x_BTD)[0][0, 4].sum().backward()
    seen_BT = (x_BTD.grad != 0).any(-1)
    window = range(4 - cfg.query_conv + 1, 5)
    assert seen_BT[0].tolist() == [t in window if cfg.query_conv == 1 else t == 4 for t in range(7)]
    assert not seen_BT[1].any()


def test_the_query_convolution_is_causal_and_reads_its_taps():
    layer = layer_of(CONFIGS["pkm-bag"]).eval()
    torch.nn.init.normal_(layer.conv.weight_kD)
    x_BTD = torch.randn(1, 7, D, requires_grad=True)
    layer(x_BTD)[0][0, 4].sum().backward()
    assert (x_BTD.grad[0] != 0).any(-1).tolist() == [False, False, True, True, True, False, False]


@each_layer
def test_a_batch_of_two_equals_two_batches_of_one(cfg):
    layer = layer_of(cfg).double().eval()
    x_BTD = torch.randn(2, 5, D, dtype=torch.float64)
    both_BTD = layer(x_BTD)[0]
    assert torch.allclose(both_BTD, torch.cat([layer(x[None])[0] for x in x_BTD]), rtol=1e-12, atol=1e-14)


@each_layer
def test_decoding_token_by_token_equals_the_whole_sequence(cfg):
    torch.manual_seed(0)
    model = model_of(cfg).build().double().eval()
    for memory in model.memories:
        if memory.conv is not None:
            torch.nn.init.normal_(memory.conv.weight_kD)
    tokens_BT = torch.randint(0, 64, (2, 9))
    cache = model.decode_state(2, 9)
    with torch.no_grad():
        steps = [model.logits(part, cache) for part in tokens_BT.split((4, 1, 1, 2, 1), dim=1)]
        assert torch.allclose(torch.cat(steps, 1), model.logits(tokens_BT), rtol=1e-9, atol=1e-11)


@each_config
def test_scores_are_float32_under_bfloat16_autocast(cfg):
    layer = layer_of(cfg)
    x_BTD = torch.randn(1, 6, D)
    with torch.autocast("cpu", torch.bfloat16):
        row_THnr, col_THnr = layer.scores(x_BTD)
        score_THmh, _ = layer.select(row_THnr, col_THnr)
    assert row_THnr.dtype == col_THnr.dtype == score_THmh.dtype == torch.float32
    # Only the projection may lose digits: the scores of a bfloat16 query are exact to float32.
    layer.query.weight.data = layer.query.weight.data.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded_THnr = layer.scores(x_BTD)[0]
    query_TX = (x_BTD if layer.conv is None else layer.conv(x_BTD)).bfloat16() @ layer.query.weight.bfloat16().T
    layer.query.forward = lambda _: query_TX.float()
    assert torch.allclose(rounded_THnr, layer.scores(x_BTD)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pkm", "ultramem", "v2"])
def test_kept_keys_follow_every_change_of_the_weights(name):
    layer, other = layer_of(CONFIGS[name]).eval(), layer_of(CONFIGS[name], seed=1)
    x_BTD = torch.randn(1, 4, D)

    def now():
        with torch.no_grad():
            return layer(x_BTD)[0]

    seen = [now()]
    assert torch.equal(now(), seen[0])
    with torch.no_grad():
        layer.keys_cHngQ.mul_(-1)
    seen.append(now())
    if layer.key_norm.weight is not None:
        torch.nn.init.normal_(layer.key_norm.weight)
        seen.append(now())
    layer.load_state_dict(other.state_dict())
    seen.append(now())
    layer.train()
    layer.keys_cHngQ.data.mul_(-1)
    layer.eval()
    seen.append(now())
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))
    layer(x_BTD)[0].sum().backward()
    assert layer.keys_cHngQ.grad.abs().max() > 0


@each_config
def test_a_bfloat16_model_computes_what_a_float32_one_does_with_the_same_picks(cfg):
    layer = layer_of(cfg).eval()
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    x_BTD = torch.randn(2, 16, D).bfloat16()
    score_THmh, index_THm = layer.select(*layer.scores(x_BTD.float()))
    expected_BTD = layer(x_BTD.float())[0]
    layer = layer.bfloat16()
    layer.select = lambda *_: (score_THmh, index_THm)
    error = (layer(x_BTD)[0].float() - expected_BTD).square().mean() / expected_BTD.square().mean()
    assert error.sqrt() < 0.01


def outputs(cfg, x_BTD):
    """Output, auxiliary loss and gradients of all memory layers of a seeded model."""
    torch.manual_seed(7)
    found = []
    for placed in cfg.memories(D, L):
        y_BTD, aux = placed.module(x_BTD)
        grads = torch.autograd.grad(y_BTD.square().sum() + aux, list(placed.module.parameters()))
        found += [y_BTD, aux, *grads]
    return found


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_ultramem_with_neutral_values_is_pkm_bit_for_bit():
    x_BTD = torch.randn(2, 5, D)
    plain = outputs(PKMConfig(**SIZES, **PLACE), x_BTD)
    assert same(plain, outputs(UltraMemConfig(**SIZES, **PLACE, **NEUTRAL), x_BTD))
    assert not same(plain, outputs(UltraMemConfig(**SIZES, **PLACE, **NEUTRAL | {"score_fn": "none"}), x_BTD))


def test_v2_with_neutral_values_is_ultramem_bit_for_bit():
    x_BTD = torch.randn(2, 5, D)
    back = {"projection": "each", "d_pre_value": 0, "n_mem_heads": 2, "query_conv": 3, "expansion": 4, "qk_norm": "layer"}
    back |= {"init": "ultramem", "rank_query": "split", "tucker_penalty": 0.001}
    first = outputs(UltraMemConfig(**SIZES, **PLACE, d_value=16), x_BTD)
    assert same(first, outputs(UltraMemV2Config(**SIZES, **PLACE, d_value=16, **back), x_BTD))
    assert not same(first, outputs(UltraMemV2Config(**SIZES, **PLACE, d_value=16, **back | {"projection": "one"}), x_BTD))


# P1 table 2 (spec F.2 and A.2): row, fields it changes, published dense parameters in M, sparse in G.
CHAIN = [
    ("PKM-151M-x10", {"n_keys": 1224, "d_key": 2448, "placement": ("5:5",)}, 173.01, 1.534),
    ("+rm softmax", {"score_fn": "none"}, 173.01, 1.534),
    ("+half vdim+proj", {"d_value": 512, "n_keys": 1728}, 178.47, 1.529),
    ("+share query", {"share_query": "heads"}, 173.46, 1.529),
    ("+split big mem&skip", {"placement": ("2:4", "5:7", "8:10"), "n_keys": 1000, "d_key": 500}, 161.64, 1.536),
    ("+query/key LN", {"qk_norm": "layer"}, 161.64, 1.536),
    ("+IVE", {"expansion": 4}, 172.37, 1.536),
    ("+TDQKR", {"retrieval": "tucker"}, 172.37, 1.536),
    ("+MCS", {"n_cores": 2}, 172.37, 1.536),
    ("+improved init", {"init": "ultramem"}, 172.37, 1.536),
    ("+value lr decay", {"value_lr_multiplier": 10.0, "value_lr_decay_fraction": 1.0}, 172.37, 1.536),
    ("+query conv", {"query_conv": 3}, 172.38, 1.536),
]


def test_the_papers_twelve_ablation_rows_are_deltas_of_one_config_and_their_counts_close():
    cfg = UltraMemConfig(
        **{"d_ff": 4096, "glu": False, "n_keys": 1224, "d_key": 2448, "top_m": 42, "placement": ("5:5",)},
        **NEUTRAL,
        **{"value_lr_multiplier": 1.0, "value_lr_decay_fraction": 0.0},
    )
    for row, delta, dense_m, sparse_g in CHAIN:
        before, cfg = cfg, replace(cfg, **delta)
        assert row == "PKM-151M-x10" or cfg != before, row
        # 50.33M of attention complete the 151M backbone (12 layers of 4 d_model^2).
        cost = cfg.cost(1024, 12)
        dense = (cost.params - cost.sparse_params + 12 * 4 * 1024**2) / 1e6
        assert dense == pytest.approx(dense_m, abs=0.0131), row
        assert cost.sparse_params / 1e9 == pytest.approx(sparse_g, abs=5e-4), row
    assert replace(cfg, init="variant", qk_norm="variant").choice("init") == cfg.init


def test_memory_is_read_at_block_i_and_written_after_block_j():
    torch.manual_seed(0)
    model = model_of(PKMConfig(**SIZES, placement=("0:2", "1:1"))).build().eval()
    inputs, outputs = {}, {}
    for layer, block in enumerate(model.blocks):
        block.attention_norm.register_forward_pre_hook(lambda _, x, layer=layer: inputs.__setitem__(layer, x[0]))
        block.ffn_norm.register_forward_hook(lambda _, x, z, layer=layer: outputs.__setitem__(layer, z))
    read = []

    def stub(shift):
        def forward(z_BTD, cache=None):
            read.append(z_BTD)
            return torch.full_like(z_BTD, shift), z_BTD.new_zeros(())

        return forward

    for memory, shift in zip(model.memories, (100.0, 1000.0), strict=True):
        memory.forward = stub(shift)
    tokens_BT = torch.randint(0, 64, (1, 6))
    with torch.no_grad():
        model.hidden(tokens_BT)
        assert torch.equal(read[0], outputs[0])
        assert torch.equal(read[1], outputs[1])
        jump = [(inputs[i + 1] - inputs[i]).mean().item() for i in range(L - 1)]
    assert jump == pytest.approx([0, 1000, 100], abs=2)


def test_placement_mistakes_are_one_sentence():
    for placement, words in (
        (("2:1",), "0 <= i <= j"),
        (("1:4",), "n_layers = 4"),
        (("1",), "must read i:j"),
        (("all", "1:1"), "i:j"),
    ):
        with pytest.raises(ValueError, match=words):
            PKMConfig(**SIZES, placement=placement).cost(D, L)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score_fn": "relu"}, "score_fn 'relu' is not one of softmax, none"),
        ({"tucker_rank": 3}, "d_key 8 is not divisible by the tucker_rank 3"),
        ({"expansion": 3}, "is not a square"),
        ({"d_value": 15}, "not divisible by n_cores 2"),
        ({"retrieval": "product"}, "n_cores 2 needs retrieval tucker"),
        ({"top_m": 577}, "exceeds the 576 cells"),
        ({"n_mem_heads": 0}, "n_mem_heads 0 must be at least 1"),
        ({"placebo": "sugar"}, "placebo 'sugar' is not one of none, one-row, frozen, frozen-layer, shuffled, scattered"),
    ],
)
def test_config_mistakes_name_the_field(fields, words):
    with pytest.raises(ValueError, match=words):
        UltraMemConfig(**SIZES | PLACE | fields)


def test_value_sharing_windows():
    def windows(**fields):
        cfg = UltraMemV2Config(**SIZES, d_value=8, **fields)
        modules = [placed.module for placed in cfg.memories(D, L)]
        return modules, [(id(m.table), *m.window[1:]) for m in modules]

    _, seen = windows()
    assert len({table for table, *_ in seen}) == L
    assert {tuple(rest) for _, *rest in seen} == {(144, 12, 0)}
    ring, seen = windows(share="ring", share_ratio=0.5)
    assert len({table for table, *_ in seen}) == 1
    assert [rest for _, *rest in seen] == [[4 * 144, 16, 144 * i] for i in range(L)]  # 16 = floor(sqrt(0.5 * 4 * 144))
    row_TM, _ = ring[3].address(torch.arange(ring[3].axis ** 2)[None])
    assert row_TM.unique().tolist() == sorted([*range(432, 576), *range(256 - 144)])  # own rows first, then around
    state = model_of(UltraMemV2Config(**SIZES, d_value=8, share="ring")).build().state_dict()
    assert sum("values_NC" in name and "pre" not in name for name in state) == 1  # one copy in a checkpoint
    _, seen = windows(share="block", share_ratio=0.5)
    assert [table == seen[0][0] for table, *_ in seen] == [True, True, False, False]
    assert {tuple(rest) for _, *rest in seen} == {(288, 16, 0)}
    reads = UltraMemV2Config(**SIZES, d_value=8, share="ring").cost(D, L).only("table").parts
    assert [part.reads for part in reads] == [L * 1 * 4]


def test_the_shuffle_is_fixed_scatters_a_values_copies_and_is_not_stored():
    layer = layer_of(CONFIGS["ultramem"])
    assert torch.equal(layer.shuffle, permutation(24**2))
    assert "shuffle" not in layer.state_dict()
    assert layer.shuffle.sort().values.tolist() == list(range(576))
    row_TM, block_TM = layer.address(torch.arange(576)[None])
    assert (torch.bincount(row_TM[0]) == 4).all()
    assert (torch.bincount(block_TM[0]) == 144).all()
    columns = [set((torch.nonzero(row_TM[0] == row)[:, 0] % 24).tolist()) for row in range(144)]
    assert sum(len(column) for column in columns) > 3.5 * 144  # plain concatenation would give 1 column per value


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
