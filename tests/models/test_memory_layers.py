"""The contract of every architecture and memory layer; layers with neutral fields are those that they were made from."""

import itertools

import pytest
import torch
from memory_layers import (
    CONFIGS,
    MODELS,
    NEUTRAL,
    PLACE,
    SIZES,
    D,
    L,
    built,
    each_config,
    each_layer,
    each_model,
    layer_of,
    model_of,
    stir,
    tokens,
)

from models.moe import MoEConfig
from models.pkm import PKMConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config


@each_config
def test_cost_counts_every_parameter_without_allocating(cfg):
    with torch.device("meta"):
        model = model_of(cfg).build()
    assert sum(p.numel() for p in model.parameters()) == model_of(cfg).cost().params
    tables = sum(p.numel() for table in model.tables() for p in table.parameters())
    assert tables == cfg.cost(D, L).only("table").params == cfg.cost(D, L).sparse_params


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_learns(cfg):
    model = built(model_of(cfg)).train()
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
    stir(layer)
    x_BTD = torch.randn(1, 7, D, requires_grad=True)
    layer(x_BTD)[0][0, 4].sum().backward()
    assert (x_BTD.grad[0] != 0).any(-1).tolist() == [False, False, True, True, True, False, False]


@each_model
@pytest.mark.parametrize("n_kv_heads", [None, 1])
@torch.no_grad()
def test_tokens_one_by_one_and_sequences_one_by_one_equal_the_whole_batch(cfg, n_kv_heads):
    model, tokens_BT = built(model_of(cfg, n_kv_heads=n_kv_heads)).double(), tokens(2, 9, vocab=64)
    whole_BTV = model.logits(tokens_BT)
    cache = model.decode_state(2, 9)
    steps = [model.logits(part, cache) for part in tokens_BT.split((4, 1, 1, 2, 1), dim=1)]
    assert cache.length == 9
    rtol = 1e-5 if isinstance(cfg, MoEConfig) else 1e-9  # experts are weighed in float32
    torch.testing.assert_close(torch.cat(steps, 1), whole_BTV, rtol=rtol, atol=0.1 * rtol)
    alone_BTV = torch.cat([model.logits(row[None]) for row in tokens_BT])
    torch.testing.assert_close(alone_BTV, whole_BTV, rtol=rtol, atol=0.1 * rtol)


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
