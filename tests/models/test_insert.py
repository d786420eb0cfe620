"""Memory layers in somebody else's model: a tiny random Llama of transformers."""

import subprocess
import sys

import pytest
import torch
from repository import ENV
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from models import UltraMemConfig, UltraMemV2Config, auxiliary_loss, insert_memory, memory_layer, optimizer_groups, traceable
from models.memory import Memory

SIZES = {"d_ff": 0, "n_keys": 12, "d_key": 8, "top_m": 4, "d_value": 16}
V2 = UltraMemV2Config(**SIZES, placement=("0:0", "1:1"))
TOKENS = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))


def llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes))


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def trained(model, steps=25):
    """Losses of the steps, all on one batch."""
    optimizer, losses = torch.optim.AdamW(optimizer_groups(model.train(), lr=3e-3)), []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss + auxiliary_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("config", [V2, UltraMemConfig(**SIZES, placement=("1:1",), query_conv=1)], ids=lambda c: c.name)
def test_memory_beside_the_ffn_starts_silent_and_lowers_the_loss_on_its_own(config):
    model = llama()
    before = logits(model)
    slots = insert_memory(model, config)
    assert torch.equal(logits(model), before)
    assert not any(slot.training for slot in slots)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".memory." in name)
    losses = trained(model)
    assert losses[-1] < losses[0] - 0.3
    assert {group["name"] for group in optimizer_groups(model, lr=1.0)} == {"values", "matrices", "vectors"}
    assert (auxiliary_loss(model).item() > 0) == (config.tucker_penalty > 0)


def test_memory_instead_of_the_ffn_learns(tmp_path):
    model = llama()
    insert_memory(model, V2, instead=True)
    assert not any("gate_proj" in name for name, _ in model.named_parameters())
    losses = trained(model)
    assert losses[-1] < losses[0] - 0.5
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = llama(seed=1)
    insert_memory(other, V2, instead=True)
    assert not torch.equal(logits(other), logits(model))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(other), logits(model))
    options = {"max_new_tokens": 8, "do_sample": False}
    cached = other.generate(TOKENS[:1], **options)
    assert torch.equal(cached, other.generate(TOKENS[:1], use_cache=False, **options))


def test_value_tables_have_a_group_of_their_own():
    model = llama()
    insert_memory(model, V2)
    groups = {group["name"]: group for group in optimizer_groups(model, lr=0.5, weight_decay=0.2)}
    tables = {p for m in model.modules() if isinstance(m, Memory) for p in m.table.parameters()}
    assert len(tables) == 4
    assert set(groups["values"]["params"]) == tables
    assert (groups["values"]["lr"], groups["matrices"]["lr"]) == (2.0, 0.5)
    assert (groups["matrices"]["weight_decay"], groups["vectors"]["weight_decay"]) == (0.2, 0.0)
    every = [p for group in groups.values() for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (UltraMemConfig(**SIZES, placement=("0:0",)), {}, "query_conv 3 looks at earlier positions"),
        (UltraMemV2Config(**SIZES, placement=("0:1",)), {}, "placement 0:1 skips layers"),
        (UltraMemV2Config(**SIZES, placement=("2:2",)), {}, "n_layers = 2"),
        (V2, {"ffn": "feed_forward"}, "no list of layers with an FFN named 'feed_forward'"),
    ],
)
def test_what_cannot_be_inserted_is_said(config, fields, said):
    with pytest.raises(ValueError, match=said):
        insert_memory(llama(), config, **fields)


def test_configs_and_helpers_are_loaded_when_asked_for():
    code = (
        "import sys, models; assert 'torch' not in sys.modules; from models import PKMConfig, memory_layer; "
        "from models.pkm import PKMConfig as same; assert PKMConfig is same; models.NoConfig"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.stderr.strip().endswith("AttributeError: module 'models' has no attribute 'NoConfig'")


@pytest.mark.parametrize(
    "config", [UltraMemV2Config(**SIZES), UltraMemConfig(**SIZES, placement=("0:0",))], ids=lambda c: c.name
)
def test_a_layer_alone_is_exported_whole_in_plain_torch(config, monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")
    layer, x, y = memory_layer(config, d_model=32).eval(), torch.randn(2, 9, 32), torch.randn(3, 5, 32)
    expected = layer(y)[0]
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=3)}
    program = torch.export.export(traceable(layer), (x,), dynamic_shapes=(sizes,)).module()
    torch.testing.assert_close(program(y)[0], expected)


def test_a_layer_alone_is_compiled_around_its_kernels():
    layer, x = memory_layer(UltraMemV2Config(**SIZES), d_model=32), torch.randn(2, 9, 32)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    compiled(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(layer, backend="eager", fullgraph=True)(x)


def test_a_layer_alone_under_autocast():
    layer, x = memory_layer(UltraMemV2Config(**SIZES), d_model=32), torch.randn(2, 9, 32)
    expected = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).square().mean() < 1e-3 * expected.square().mean()
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
