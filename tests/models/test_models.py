"""The contract that every architecture keeps, and the backbone's own."""

from dataclasses import replace

import pytest
import torch
from memory_layers import built, tokens
from torch.utils.flop_counter import FlopCounterMode

from models.feed_forward import FeedForward
from models.moe import MoE, MoEConfig
from models.transformer import ModelConfig
from workflows.presets import load_preset

ARCHS = tuple(load_preset("smoke").archs)


@pytest.mark.parametrize("arch", ARCHS)
def test_declared_parameters_are_the_tensors(models, arch):
    model = built(models[arch])
    assert models[arch].cost().params == sum(p.numel() for p in model.parameters())


def test_declared_flops_are_counted_flops(models, monkeypatch):
    """torch's counter over the matrix products, attention scores aside; it does not see products in C++."""
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")
    cfg = models["dense"]
    model, B, T = built(cfg), 4, 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.hidden(tokens(B, T))
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op))
    assert products == B * T * 2 * cfg.cost().without("embedding", "norm").active_params


@pytest.mark.parametrize("arch", ARCHS)
def test_no_token_sees_the_future(models, arch):
    """The loss at position t has exactly zero gradient in later inputs and not in its own."""
    model, t = built(models[arch]), 7
    x_BTD = torch.randn(2, 12, models[arch].d_model, requires_grad=True)
    model.embedding.forward = lambda _: x_BTD
    model.hidden(tokens(2, 12))[0][:, t].square().sum().backward()
    assert x_BTD.grad[:, t + 1 :].abs().max() == 0
    assert x_BTD.grad[:, : t + 1].abs().sum(-1).min() > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_loss_is_the_cross_entropy_of_the_logits(models, arch):
    model, x, y = built(models[arch]), tokens(3, 33), tokens(3, 33, seed=5)
    ce, _ = model.loss(x, y)
    expected = torch.nn.functional.cross_entropy(model.logits(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(ce, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_initial_loss_is_that_of_guessing(models, arch):
    """ln V, plus half the variance 2/5 of the logits that P2's tied embedding gives: no layer starts out loud."""
    ce, _ = built(models[arch]).loss(tokens(4, 64), tokens(4, 64, seed=3))
    assert ce.item() == pytest.approx(torch.tensor(1024.0).log().item() + 0.2, rel=0.02)


def test_grouped_queries_are_repeated_heads(models):
    grouped = replace(models["dense"], n_heads=4, n_kv_heads=2)
    full = replace(grouped, n_kv_heads=4)
    a, b = built(grouped), built(full)
    state = a.state_dict()
    for layer in range(grouped.n_layers):
        name, K = f"blocks.{layer}.attention.qkv.weight", grouped.d_head
        q, k, v = state[name].split((4 * K, 2 * K, 2 * K))
        state[name] = torch.cat([q, *(t.view(2, K, -1).repeat_interleave(2, 0).flatten(0, 1) for t in (k, v))])
    b.load_state_dict(state)
    torch.testing.assert_close(a.logits(tokens(2, 16)), b.logits(tokens(2, 16)))


def test_too_long_a_sequence_is_refused(models):
    with pytest.raises(ValueError, match=r"129 tokens do not fit into seq_len 128"):
        built(models["dense"]).logits(tokens(1, 129))


def moe_by_hand(moe: MoE, x_TD: torch.Tensor) -> torch.Tensor:
    """Every token through every one of its experts, one at a time."""
    out = torch.zeros_like(x_TD)
    for t, x_D in enumerate(x_TD):
        prob_E = (moe.router.weight @ x_D).softmax(0)
        chosen = prob_E.topk(moe.cfg.top_k).indices
        if moe.cfg.weights == "renormalised":
            prob_E = prob_E / prob_E[chosen].sum()
        for e in chosen:
            h_F = x_D @ moe.up_EDF[e]
            if moe.cfg.glu:
                gate, up = h_F.chunk(2)
                h_F = torch.nn.functional.silu(gate) * up
            else:
                h_F = torch.nn.functional.gelu(h_F)
            out[t] += prob_E[e] * (h_F @ moe.down_EFD[e])
        if moe.shared is not None:
            out[t] += moe.shared(x_D[None])[0][0]
    return out


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("d_shared", [0, 8])
@pytest.mark.parametrize("weights", ["softmax", "renormalised"])
def test_moe_is_the_sum_of_its_experts(glu, d_shared, weights):
    torch.manual_seed(0)
    moe = MoEConfig(n_experts=7, top_k=3, d_expert=6, glu=glu, d_shared=d_shared, weights=weights).feed_forward(16, 0, 2)
    moe.init_weights(0.5, 0.5)
    x_BTD = torch.randn(2, 9, 16)
    torch.testing.assert_close(moe(x_BTD)[0].flatten(0, 1), moe_by_hand(moe, x_BTD.flatten(0, 1)), rtol=1e-4, atol=1e-5)


def test_moe_gradients_match_autograd_of_the_plain_form():
    torch.manual_seed(0)
    moe = MoEConfig(n_experts=5, top_k=2, d_expert=6).feed_forward(8, 0, 2)
    moe.init_weights(0.5, 0.5)
    x, parameters = torch.randn(1, 11, 8, requires_grad=True), list(moe.parameters())
    weight = torch.randn(11, 8)
    ours = torch.autograd.grad((moe(x)[0][0] * weight).sum(), [x, *parameters])
    plain = torch.autograd.grad((moe_by_hand(moe, x[0]) * weight).sum(), [x, *parameters])
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_load_balance_is_one_when_balanced_and_n_when_collapsed():
    moe = MoEConfig(n_experts=4, top_k=1, d_expert=4, load_balance=1.0, router_z=0.0).feed_forward(8, 0, 1)
    uniform_TE, turns_Tk = torch.zeros(16, 4), torch.arange(16)[:, None] % 4
    assert moe.aux_loss(uniform_TE, turns_Tk).item() == pytest.approx(1.0)
    collapsed_TE = torch.tensor([[50.0, 0, 0, 0]]).repeat(16, 1)
    assert moe.aux_loss(collapsed_TE, torch.zeros(16, 1, dtype=torch.long)).item() == pytest.approx(4.0)


def test_auxiliary_loss_does_not_grow_with_depth():
    """evidence.md defect 1: summed over layers, a published weight became n_layers times as large."""
    aux = []
    for n_layers in (1, 8):
        torch.manual_seed(0)
        arch = MoEConfig(n_experts=8, top_k=2, d_expert=8)
        model = ModelConfig(arch=arch, vocab_size=64, d_model=32, n_layers=n_layers, n_heads=2, seq_len=64).build().train()
        aux.append(model.loss(tokens(8, 64, 64), tokens(8, 64, 64, seed=2))[1].item())
    assert aux[0] == pytest.approx(aux[1], rel=0.25)


@pytest.mark.parametrize("weights", ["softmax", "renormalised"])
@pytest.mark.parametrize("top_k", [2, 8])
def test_scaled_experts_start_as_loud_as_the_dense_ffn(weights, top_k):
    torch.manual_seed(0)
    x_BTD, std, out_std = torch.randn(4, 256, 64), 0.08, 0.03
    dense = FeedForward(64, 32 * top_k, glu=True)
    dense.init_weights(std, out_std)
    out = {}
    for scale in ("published", "variance"):
        moe = MoEConfig(n_experts=64, top_k=top_k, d_expert=32, weights=weights, scale=scale).feed_forward(64, 0, 2)
        moe.init_weights(std, out_std)
        out[scale] = (moe(x_BTD)[0].std() / dense(x_BTD)[0].std()).item()
    assert out["variance"] == pytest.approx(1.0, abs=0.1)
    assert out["published"] < 0.6


@pytest.mark.parametrize(("fields", "words"), [({"top_k": 9}, "top_k 9"), ({"router_init": 0.0}, "router_init 0.0")])
def test_moe_refuses_what_cannot_be(fields, words):
    with pytest.raises(ValueError, match=words):
        MoEConfig(**{"n_experts": 8, "top_k": 2, "d_expert": 4} | fields)


def test_a_blind_router_routes_any_tokens_alike():
    torch.manual_seed(0)
    x_TD, other_TD = torch.randn(2, 12, 16)
    fields = {"n_experts": 8, "top_k": 2, "d_expert": 4}
    blind, frozen = (MoE(16, MoEConfig(**fields, router_frozen=how)) for how in ("blind", "yes"))
    for layer in (blind, frozen):
        layer.init_weights(0.5, 0.5)
        assert not layer.router.weight.requires_grad
    assert torch.equal(blind.route(x_TD)[2], blind.route(other_TD)[2])
    assert not torch.equal(frozen.route(x_TD)[2], frozen.route(other_TD)[2])
    assert blind.route(x_TD)[2].unique().numel() > 2  # and not one expert for all
