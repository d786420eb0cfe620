"""Parameter counts of the papers' models: python -m models.count [NAME ...] prints CSV, built on the meta device.

The papers count differently, and so does the `counting` of each entry. P1 leaves out embeddings, norms and the values that
a token reads; P2 includes the tied embedding in the activated parameters of its 227M models and leaves embeddings out of
totals (spec C.4, D). FLOPs are twice the activated parameters without embeddings. Widths that the papers do not print
(GAP) are those that close their totals and FLOPs; `OPEN` names the rows that no width closes, and why.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.feed_forward import DenseConfig
from models.memory_plus import MemoryPlusConfig
from models.moe import MoEConfig
from models.slot import ArchConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config

OPEN = {
    "OLMoE-1B-7B": "attention, 8 of 64 experts and router make 1.076B activated where 1.07B is printed",
    "Memory+-227M": "the release's script makes 241.4M activated and 1.197B in total where 228M and 1.19B are printed",
    "UltraMem-227M": "the release's script makes 228.7M activated and 1.193B in total where 225M and 1.18B are printed",
    "UltraMemV2-227M": "activated parameters come to 224.3M where 225M is printed; the total closes",
    "UltraMemV2-1B-7B": "the printed 528 keys make 6.21B in total where 6.70B is printed; 552 would close it",
}


@dataclass(frozen=True)
class Entry:
    """A published model and how its paper counts: `without` lists the roles left out of activated parameters."""

    model: ModelConfig
    without: tuple[str, ...]
    reads: bool

    def row(self, name: str) -> dict[str, str | int]:
        with torch.device("meta"):
            module = self.model.build()
        stored = sum(p.numel() for p in module.parameters())
        cost = self.model.cost()
        if stored != cost.params:
            raise ValueError(f"{name}: {stored:,} parameters built, {cost.params:,} declared")
        left_out = cost.only("embedding", *(role for role in self.without if role == "norm")).params
        reads = 0 if self.reads else sum(p.active_params for p in cost.parts if p.name in ("values", "pre-values"))
        return {
            "name": name,
            "active_params": cost.without(*self.without).active_params - reads,
            "total_params": stored - left_out,
            "sparse_params": cost.sparse_params,
            "flops_per_token": 2 * (cost.without("embedding", *self.without).active_params - reads),
        }


def p1(arch: ArchConfig, d_model: int, n_layers: int) -> Entry:
    """A model of P1: plain MLP of 4 d_model, no QK-norm; embeddings, norms and value reads are not counted."""
    backbone: dict[str, Any] = {"vocab_size": 50304, "seq_len": 2048, "qk_norm": False}
    model = ModelConfig(arch=arch, d_model=d_model, n_layers=n_layers, n_heads=d_model // 64, **backbone)
    return Entry(model, ("embedding", "norm"), reads=False)


def p2(arch: ArchConfig, d_model: int, n_layers: int, n_heads: int) -> Entry:
    """A model of P2's open comparison: activated parameters hold the tied embedding at 227M and none at 1B."""
    backbone: dict[str, Any] = {"vocab_size": 50304, "seq_len": 4096, "tie_embeddings": d_model < 2048}
    model = ModelConfig(arch=arch, d_model=d_model, n_layers=n_layers, n_heads=n_heads, **backbone)
    return Entry(model, () if d_model < 2048 else ("embedding",), reads=True)


def dense(d_model: int) -> DenseConfig:
    return DenseConfig(d_ff=4 * d_model, glu=False)


def moe2(n_experts: int, d_expert: int) -> MoEConfig:
    return MoEConfig(n_experts=n_experts, top_k=2, d_expert=d_expert, glu=False)


def ultramem(d_model: int, n_keys: int, key_width: int, placement: tuple[str, ...]) -> UltraMemConfig:
    """UltraMem as in P1's main table: 42 values for each of two heads. `key_width` is n_mem_heads * d_key."""
    return UltraMemConfig(
        d_ff=4 * d_model,
        glu=False,
        placement=placement,
        n_keys=n_keys,
        d_key=key_width // 2,
        top_m=42,
        d_value=d_model // 2,
    )


def ablation_rows() -> dict[str, Entry]:
    """The nine parameter structures of P1 table 2 (spec A.2): 12 layers of 1024, keys of 4896 or 1000 in all."""
    one, three = ("5:5",), ("2:4", "5:7", "8:10")
    row = UltraMemConfig(
        d_ff=4096,
        glu=False,
        placement=one,
        n_keys=1224,
        d_key=2448,
        top_m=42,
        retrieval="product",
        tucker_rank=1,
        n_cores=1,
        score_fn="softmax",
        share_query="none",
        qk_norm="none",
        query_conv=1,
        expansion=1,
        init="lample",
    )
    rows = {"PKM-151M-x10": row}
    rows["+half vdim+proj"] = row = replace(row, n_keys=1728, d_value=512, score_fn="none")
    rows["+share query"] = row = replace(row, share_query="heads")
    rows["+split big mem&skip"] = row = replace(row, placement=three, n_keys=1000, d_key=500)
    rows["+query/key LN"] = row = replace(row, qk_norm="layer")
    rows["+IVE"] = row = replace(row, expansion=4)
    rows["+TDQKR"] = row = replace(row, retrieval="tucker", tucker_rank=2)
    rows["+MCS"] = row = replace(row, n_cores=2, init="ultramem")
    rows["+query conv"] = replace(row, query_conv=3)
    return {name: p1(arch, 1024, 12) for name, arch in rows.items()}


def entries() -> dict[str, Entry]:
    """Every published model by name."""
    olmoe: dict[str, Any] = {"n_experts": 64, "top_k": 8}
    memory4 = ("2:5", "6:9", "10:13", "14:17")
    v2: dict[str, Any] = {"d_pre_value": 192, "d_value": 192}
    return {
        "Dense-151M": p1(dense(1024), 1024, 12),
        "Dense-680M": p1(dense(1536), 1536, 24),
        "Dense-1.6B": p1(dense(2048), 2048, 32),
        "Dense-6.5B": p1(dense(4096), 4096, 32),
        "MoE-151M-2in32": p1(moe2(32, 2528), 1024, 12),
        "MoE-680M-2in33": p1(moe2(33, 3584), 1536, 24),
        "MoE-1.6B-2in34": p1(moe2(34, 4672), 2048, 32),
        "UltraMem-151M-x12": p1(ultramem(1024, 1100, 1000, ("2:4", "5:7", "8:10")), 1024, 12),
        "UltraMem-680M-x12": p1(ultramem(1536, 1632, 1432, ("2:7", "8:12", "13:17", "18:22")), 1536, 24),
        "UltraMem-1.6B-x12": p1(ultramem(2048, 1789, 1600, ("2:6", "7:11", "12:16", "17:21", "22:26", "27:31")), 2048, 32),
        **ablation_rows(),
        "OLMoE-227M": p2(MoEConfig(d_expert=384, **olmoe), 768, 20, 12),
        "OLMoE-1B-7B": p2(MoEConfig(d_expert=1024, **olmoe), 2048, 16, 16),
        "Memory+-227M": p2(
            MemoryPlusConfig(
                d_ff=3008, placement=("4:4", "8:8", "12:12", "16:16"), n_keys=1138, d_key=384, n_mem_heads=2, top_m=80
            ),
            768,
            20,
            12,
        ),
        "UltraMem-227M": p2(
            UltraMemConfig(
                d_ff=2752,
                placement=memory4,
                n_keys=808,
                d_key=192,
                n_mem_heads=2,
                top_m=80,
                d_value=384,
                variant="code",
                query_conv=1,
            ),
            768,
            20,
            12,
        ),
        "UltraMemV2-227M": p2(UltraMemV2Config(d_ff=2496, n_keys=360, d_key=192, top_m=32, **v2), 768, 20, 12),
        "UltraMemV2-1B-7B": p2(
            UltraMemV2Config(d_ff=7000, n_keys=528, d_key=512, top_m=128, d_value=768, d_pre_value=384), 2048, 16, 16
        ),
    }


def main() -> int:
    known = entries()
    parser = argparse.ArgumentParser(
        prog="python -m models.count",
        description=__doc__.splitlines()[0],
        epilog=f"example: python -m models.count {next(iter(known))!r}",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(known)} (default: all)")
    args = parser.parse_args()
    for name in args.names:
        if name not in known:
            print(f"error: no published model {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("name", "active_params", "total_params", "sparse_params", "flops_per_token"))
    for name in args.names or known:
        writer.writerow(known[name].row(name).values())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
