"""Folded tables compute what the projectors do, cost what the config says, and leave the plain model alone."""

from dataclasses import replace

import pytest
import torch

import kernels
from models.feed_forward import DenseConfig
from models.fold import FoldedConfig, fold
from models.hybrid import HybridConfig
from models.memory_plus import MemoryPlusConfig
from models.overlap import Overlap
from models.pkm import PKMConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config

SIZES = {"d_ff": 24, "n_keys": 12, "d_key": 8, "top_m": 4}
PLACE = {"placement": ("0:1", "2:2")}
CONFIGS = {
    "pkm": PKMConfig(**SIZES, **PLACE, d_value=16),
    "pkm-ive": PKMConfig(**SIZES, **PLACE, expansion=4),
    "ultramem": UltraMemConfig(**SIZES, **PLACE, d_value=16),
    "ultramem-h4-E9": UltraMemConfig(**SIZES, **PLACE, d_value=16, tucker_rank=4, n_cores=4, expansion=9),
    "v2": UltraMemV2Config(**SIZES, d_value=8),
    "v2-plain": UltraMemV2Config(**SIZES, d_value=8, d_pre_value=0, expansion=4),
    "v2-ring": UltraMemV2Config(**SIZES, d_value=8, share="ring", share_ratio=0.5, expansion=4, projection="each"),
    "v2-block": UltraMemV2Config(**SIZES, d_value=8, share="block", share_ratio=0.5, activation="gelu", n_mem_heads=2),
}
HYBRID = HybridConfig(
    n_experts=16,
    top_k=2,
    d_expert=16,
    d_key=8,
    memory={"name": "ultramem", "placement": ("every 2",), "top_m": 4, "d_value": 16},
)
each_config = pytest.mark.parametrize("arch", CONFIGS.values(), ids=CONFIGS.keys())


def config(arch) -> ModelConfig:
    return ModelConfig(arch=arch, vocab_size=64, d_model=32, n_layers=4, n_heads=4, seq_len=16)


def built(arch, dtype=torch.float32):
    torch.manual_seed(0)
    return config(arch).build().to(dtype).eval()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@each_config
def test_folded_layers_compute_the_same(arch, dtype, tolerance):
    model = built(arch, dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    x_BTD = torch.randn(2, 9, 32, dtype=dtype)
    for plain, layer in zip(model.memories, folded.memories, strict=True):
        expected = plain(x_BTD)[0]
        assert (layer(x_BTD)[0] - expected).abs().max() <= tolerance * expected.abs().max()
        assert layer.output is None
        assert layer.table.values_NC is None
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    folded.overlap = Overlap()
    torch.testing.assert_close(folded.logits(torch.arange(9)[None]), model.logits(torch.arange(9)[None]), rtol=1e-4, atol=1e-5)


@each_config
def test_the_cost_of_folding_is_declared(arch):
    folded = fold(built(arch))
    cost = folded.cfg.cost()
    assert sum(p.numel() for p in folded.parameters()) == cost.params
    assert sum(p.numel() for table in folded.tables() for p in table.parameters()) == cost.only("table").params
    assert "output" not in {part.name for part in cost.parts}
    with torch.device("meta"):
        fresh = config(FoldedConfig(arch=arch)).build()
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in folded.named_parameters()}
    assert folded.cfg.arch.name == arch.name


@torch.no_grad()
@each_config
def test_declared_reads_are_those_of_the_lookup(arch, monkeypatch):
    folded, read = fold(built(arch)), []
    lookup, dot = kernels.weighted_lookup, kernels.row_dot
    monkeypatch.setattr(kernels, "weighted_lookup", lambda v, row, *rest: read.append((v, row)) or lookup(v, row, *rest))
    monkeypatch.setattr(kernels, "row_dot", lambda p, row, x: read.append((p, row)) or dot(p, row, x))
    folded.hidden(torch.randint(0, 64, (1, 1)))
    assert sum(table.shape[1] * row.numel() for table, row in read) == sum(
        part.reads * part.width for part in folded.cfg.cost().only("table").parts
    )


def test_ive_folds_to_e_times_the_storage_and_cores_and_wide_models_to_more():
    def growth(arch):
        plain, folded = config(arch).cost(), config(FoldedConfig(arch=arch)).cost()
        return folded.only("table").params / plain.only("table").params

    assert growth(CONFIGS["pkm-ive"]) == 4
    assert growth(replace(CONFIGS["ultramem"], d_value=32)) == 4 * 2
    assert growth(CONFIGS["ultramem"]) == 4 * 2 * (32 // 16)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (MemoryPlusConfig(**SIZES, **PLACE), "memory_plus has no output projector that"),
        (PKMConfig(**SIZES, **PLACE), "pkm has no output projector that"),
        (DenseConfig(d_ff=8), "dense has no memory layers to fold"),
        (HYBRID, "hybrid has more than memory layers"),
    ],
)
def test_what_cannot_be_folded_is_refused(arch, words):
    with pytest.raises(ValueError, match=words):
        fold(built(arch))
