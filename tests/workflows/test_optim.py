"""Learning rates by role, width and schedule; the update of touched rows; clipping."""

from dataclasses import replace

import pytest
import torch
from training_runs import NoStop, make_run, trainer

from evals.records.recipe import Train
from workflows import train
from workflows.optim import Optimizers, RowAdamW, cosine, parameter_roles, value_factor


def recipe(**changes):
    return Train(tokens=1000 * 8 * 32, batch_size=8, seq_len=32, lr=1.0, **changes)


def test_schedules():
    cfg = recipe(warmup=0.01)
    assert [cosine(step, cfg) for step in (0, 9)] == [0.1, 1.0]
    assert cosine(999, cfg) == pytest.approx(0.1, abs=1e-4)
    assert cosine(10 + 990 // 2, cfg) == pytest.approx(0.55)
    assert value_factor(505, cfg, 10.0, 0.0, "decay") == pytest.approx(10 * cosine(505, cfg))
    assert value_factor(505, cfg, 10.0, 0.5, "decay") == pytest.approx(cosine(505, cfg))
    assert value_factor(250, cfg, 10.0, 0.5, "decay") == pytest.approx(5.5 * cosine(250, cfg))
    assert value_factor(999, cfg, 3.0, 0.5, "constant") == 3.0


def test_values_have_their_own_learning_rate_and_vectors_do_not_decay(models):
    model = models["ultramem"].build()
    optimizers = Optimizers(model, recipe())
    optimizers.set_lr(500)
    (optimizer,) = optimizers.parts
    lr = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    values = {id(p) for table in model.tables() for p in table.parameters()}
    assert values
    base = cosine(500, recipe())
    for name, parameter in model.named_parameters():
        rate, decay = lr[id(parameter)]
        times = models["ultramem"].arch.value_lr_multiplier
        assert rate == pytest.approx(base * (1 + (times - 1) * 0.5) if id(parameter) in values else base), name
        assert decay == (0.1 if parameter.ndim >= 2 else 0.0), name


WIDTH = {"hidden": 0.5, "router": 0.5, "pre_values": 0.5, "embedding": 1.0, "vector": 1.0, "values": 1.0}


@pytest.mark.parametrize("arch", ["dense", "moe8", "ultramem_v2"])
def test_learning_rates_follow_the_width_by_role(models, arch):
    """muP: what reads d_model inputs learns at half the rate where d_model is twice the base width, and decays as before."""
    narrow = models[arch]
    rates = {}
    for base_width in (0, narrow.d_model // 2):
        model = replace(narrow, base_width=base_width).build()
        roles = parameter_roles(model)
        optimizers = Optimizers(model, recipe())
        optimizers.set_lr(500)
        groups = [group for part in optimizers.parts for group in part.param_groups]
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in groups:
            for parameter in group["params"]:
                rates.setdefault(names[parameter], []).append((roles[parameter], group["lr"], group["weight_decay"]))
    assert len(rates) == len(list(model.parameters()))
    seen = set()
    for name, ((role, flat, flat_decay), (_, scaled, decay)) in rates.items():
        seen.add(role)
        assert scaled == pytest.approx(flat * WIDTH[role]), name
        assert scaled * decay == pytest.approx(flat * flat_decay), name
    extra = {"dense": set(), "moe8": {"router"}, "ultramem_v2": {"values", "pre_values"}}[arch]
    assert seen == {"hidden", "embedding", "vector"} | extra


def test_roles_are_what_they_say(models):
    roles = {name: parameter_roles(model)[p] for model in [models["ultramem"].build()] for name, p in model.named_parameters()}
    assert roles["embedding.weight"] == "embedding"
    assert roles["memories.0.table.values_NC"] == "values"
    assert roles["memories.0.selector.core_hHrr"] == roles["memories.0.conv.weight_kD"] == roles["norm.weight"] == "vector"
    for name in ("blocks.0.attention.qkv.weight", "memories.0.keys_cHngQ", "memories.0.query.weight"):
        assert roles[name] == "hidden", name


def test_base_width_scales_logits_and_keeps_the_embedding_of_the_base(models):
    model = replace(models["dense"], base_width=2 * models["dense"].d_model)
    built, plain = model.build(), models["dense"].build()
    assert model.width_scale == 2.0
    assert built.embedding.weight.std().item() == pytest.approx(plain.embedding.weight.std().item() * 0.5**0.5, rel=0.1)
    built.load_state_dict(plain.state_dict())
    tokens = torch.randint(256, (1, 8))
    base = replace(models["dense"], base_width=0).build()
    base.load_state_dict(plain.state_dict())
    torch.testing.assert_close(built.logits(tokens), 2 * base.logits(tokens))
    assert models["dense"].width_scale == 1.0  # the base width itself: nothing changes


def test_row_update_is_adamw_where_every_row_is_touched():
    torch.manual_seed(0)
    start = torch.randn(6, 4)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    row, adam = RowAdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        grad = torch.randn(6, 4)
        theirs.grad, ours.grad = grad, grad.to_sparse(1)
        row.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_row_update_leaves_other_rows_alone():
    parameter = torch.nn.Parameter(torch.ones(5, 2))
    optimizer = RowAdamW([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    parameter.grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (5, 2))
    optimizer.step()
    assert (parameter[[0, 2, 4]] == 1).all()
    assert (parameter[[1, 3]] < 1).all()


@pytest.mark.parametrize("arch", ["pkm", "ultramem", "ultramem_v2"])
def test_sparse_gradients_are_the_dense_ones(tmp_path, corpus, models, arch):
    dense, rows = (trainer(make_run(tmp_path / how, corpus, models[arch], value_optimizer=how)) for how in ("dense", "rows"))
    batch = dense.windows.batch(0)
    for one in (dense, rows):
        one.model.refresh()
        one.gradients(*batch)
    assert all(p.grad.is_sparse for table in rows.model.tables() for p in table.parameters())
    norms = [train.clip_gradients(one.model, 0.01).item() for one in (dense, rows)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for (name, a), b in zip(dense.model.named_parameters(), rows.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad.to_dense() if b.grad.is_sparse else b.grad, rtol=1e-4, atol=1e-8, msg=name)


def test_row_update_trains(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["ultramem"], value_optimizer="rows", checkpoint_s=0.0)
    one = trainer(folder)
    one.train(NoStop())
    assert one.rows[-1]["loss"] < one.rows[0]["loss"] - 0.3
    again = trainer(folder)
    again.restore()
    state, restored = (t.optimizers.state for t in (one, again))
    assert {len(s) for s in restored.values()} == {len(s) for s in state.values()}


def test_clipping_is_torchs(models):
    model = models["dense"].build()
    model.loss(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))[0].backward()
    before = [p.grad.clone() for p in model.parameters()]
    norm = train.clip_gradients(model, 0.1)
    ours = [p.grad.clone() for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1), norm)
    torch.testing.assert_close(ours, [p.grad for p in model.parameters()])
