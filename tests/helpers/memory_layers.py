"""Every architecture in small, memory layers with their placebos, and one layer or a model of them."""

from dataclasses import replace

import pytest
import torch

from models.feed_forward import DenseConfig
from models.hybrid import HybridConfig
from models.memory_plus import MemoryPlusConfig
from models.moe import MoEConfig
from models.peer import PEERConfig
from models.pkm import PKMConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config

D, L = 32, 4
SIZES = {"d_ff": 24, "n_keys": 12, "d_key": 8, "top_m": 4}
PLACE = {"placement": ("0:1", "2:2")}
BAG = {"score_fn": "none", "d_value": 16, "share_query": "heads", "qk_norm": "layer", "query_conv": 3, "expansion": 4}
NEUTRAL = {
    **{"retrieval": "product", "n_cores": 1, "score_fn": "softmax", "share_query": "none", "qk_norm": "none"},
    **{"query_conv": 1, "expansion": 1, "init": "lample"},
}
CONFIGS = {
    "pkm": PKMConfig(**SIZES, **PLACE),
    "pkm-bag": PKMConfig(**SIZES, **PLACE, **BAG),
    "peer": PEERConfig(**SIZES, **PLACE),
    "memory_plus": MemoryPlusConfig(**SIZES, **PLACE),
    "ultramem": UltraMemConfig(**SIZES, **PLACE, d_value=16),
    "ultramem-code": UltraMemConfig(**SIZES, **PLACE, d_value=16, variant="code"),
    "ultramem-r4-h4-E9": UltraMemConfig(**SIZES, **PLACE, d_value=16, tucker_rank=4, n_cores=4, expansion=9),
    "ultramem-own": UltraMemConfig(**SIZES, **PLACE, d_value=16, rank_query="own", share_query="none"),
    "v2": UltraMemV2Config(**SIZES, d_value=8),
    "v2-plain": UltraMemV2Config(**SIZES, d_value=8, d_pre_value=0, expansion=4),
    "v2-ring": UltraMemV2Config(**SIZES, d_value=8, share="ring", share_ratio=0.5, expansion=4, projection="each"),
    "v2-block": UltraMemV2Config(**SIZES, d_value=8, share="block", share_ratio=0.5, activation="gelu", n_mem_heads=2),
    "v2-balance": UltraMemV2Config(**SIZES, d_value=8, balance_loss=0.01, tucker_penalty=0.001),
    "v2-code": UltraMemV2Config(**SIZES, d_value=8, variant="code"),
}
PLACEBOS = {
    f"{name}-{placebo}": replace(CONFIGS[name], placebo=placebo)
    for name in ("pkm", "peer", "memory_plus", "ultramem", "v2", "v2-ring")
    for placebo in ("one-row", "frozen", "shuffled", "scattered")
}
EXPERTS = {"n_experts": 8, "top_k": 2, "d_expert": 8}
MODELS = CONFIGS | {
    "dense": DenseConfig(d_ff=24),
    "moe": MoEConfig(**EXPERTS),
    "moe-gelu": MoEConfig(**EXPERTS, glu=False, d_shared=8, weights="renormalised", scale="variance"),
    "hybrid": HybridConfig(**EXPERTS, d_key=8),
}
each_model = pytest.mark.parametrize("cfg", (MODELS | PLACEBOS).values(), ids=(MODELS | PLACEBOS).keys())
each_config = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS.keys())
each_layer = pytest.mark.parametrize("cfg", (CONFIGS | PLACEBOS).values(), ids=(CONFIGS | PLACEBOS).keys())


def model_of(arch, **fields):
    sizes = {"vocab_size": 64, "d_model": D, "n_layers": L, "n_heads": 4, "seq_len": 16} | fields
    return ModelConfig(arch=arch, **sizes)


def layer_of(cfg, d_model=D, n_layers=L, number=0, seed=0):
    torch.manual_seed(seed)
    return cfg.memories(d_model, n_layers)[number].module


def built(cfg, seed=0):
    """A model in eval mode, whose query convolutions are more than the identity that they start as."""
    torch.manual_seed(seed)
    model = cfg.build().eval()
    for memory in model.memories:
        stir(memory)
    return model


def stir(layer):
    if layer.conv is not None:
        torch.nn.init.normal_(layer.conv.weight_kD)


def tokens(B, T, vocab=1024, seed=1):
    return torch.randint(vocab, (B, T), generator=torch.Generator().manual_seed(seed))
