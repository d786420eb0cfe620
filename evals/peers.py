"""Our layers against what a user would otherwise install: python -m evals.peers --out peers.csv

Installs the peers, pinned and without their dependencies on torch, into a folder of their own, and times them and ours in
one interleaved run on one thread in float32: forward at 1, 64 and 2048 tokens, forward and backward at 2048. Both sides of
a pair have the same table (2^18 cells), heads, picks and widths; where a peer computes something else, `PAIRS` says what.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.provenance import device_name
from kernels.allocator import keep_memory
from models.moe import MoE, MoEConfig
from models.peer import PEERConfig
from models.pkm import PKMConfig
from models.slot import ArchConfig
from models.ultramem import UltraMemConfig

PINS = (
    "product-key-memory==0.3.0",
    "ultra-mem==0.1.2",
    "PEER-pytorch==0.2.2",
    "transformers==5.23.0",
    "einops==0.8.1",
    "einx==0.3.0",
    "CoLT5-attention==0.11.1",
    "local-attention==1.11.2",
    "hyper-connections==0.4.11",
    "frozendict==2.5.1",
)
N_KEYS = 512  # per axis; 2^18 cells
MEMORIES = {"PKM": "product_key_memory", "UltraMem": "ultra_mem", "PEER": "PEER_pytorch"}  # and the module of the peer
# Of mixtures: experts, experts of a token, an expert's width in halves of d_model, transformers' kind.
EXPERTS = {"MoE top-2": (16, 2, 4, "mixtral"), "MoE top-8": (64, 8, 1, "olmoe")}
TARGETS = {"PKM": 2.0, "UltraMem": 4.0, "PEER": 2.0, "MoE top-2": 1.0, "MoE top-8": 1.0}


def install(folder: Path) -> None:
    """Puts the peers into `folder` and on the path, after everything of ours.

    Raises:
        UserError: pip cannot get them.
    """
    if not (folder / ".installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*pip, *PINS], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip could not install the peers into {folder} ({reason}); connect this machine to an index")
        (folder / ".installed").touch()
    sys.path.append(str(folder))


def first(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Our layers return (output, auxiliary loss)."""
    return lambda x_BTD: layer(x_BTD)[0]


def output(result: Tensor | tuple) -> Tensor:
    """Peers return the output, or a tuple that begins with it."""
    return result[0] if isinstance(result, tuple) else result


def memory_of(config: ArchConfig, d_model: int) -> nn.Module:
    (placed,) = config.memories(d_model, 1)
    return placed.module


Layer = tuple[nn.Module, Callable[[Tensor], Tensor]]


def memory_pair(name: str, d: int, n_keys: int) -> dict[str, Layer]:
    """Ours first, then the peer, of a memory layer of n_keys^2 cells: implementation -> (module, function of x)."""
    common: dict[str, Any] = {"d_ff": 0, "placement": ("0:0",)}
    if name == "PKM":
        from product_key_memory import PKM

        ours = PKMConfig(**common, n_keys=n_keys, d_key=128, n_mem_heads=4, top_m=32, qk_norm="layer")
        peer_name, theirs = "product-key-memory", PKM(d, heads=4, num_keys=n_keys, topk=32, dim_head=128)
    elif name == "UltraMem":
        from ultra_mem import UltraMem

        # ultra-mem has one query for two heads of 32 picks, each reading half of the value; its cells, four times as many as
        # its values, share these among 4 expansions, full keys per rank.
        shape: dict[str, Any] = {"n_keys": n_keys // 2, "d_key": 128, "n_mem_heads": 2, "top_m": 32, "d_value": d // 2}
        ours = UltraMemConfig(**common, **shape, rank_query="shared", query_conv=5)
        peer_name, theirs = "ultra-mem", UltraMem(d, num_memories=n_keys**2, topk=32)
    else:
        from PEER_pytorch import PEER

        ours = PEERConfig(**common, n_keys=n_keys, d_key=d // 2, n_mem_heads=8, top_m=16)
        shape = {"heads": 8, "num_experts": n_keys**2, "num_experts_per_head": 16}
        peer_name, theirs = "PEER-pytorch", PEER(d, **shape, non_competing_scores=False)
    module = memory_of(ours, d)
    return {"ours": (module, first(module)), peer_name: (theirs, lambda x: output(theirs(x)))}


def expert_layers(d: int, n_experts: int, top_k: int, width: int, kind: str) -> dict[str, Layer]:
    """Ours first, then transformers' paths, of a mixture of SwiGLU experts; `kind` is "mixtral" or "olmoe"."""
    from transformers import MixtralConfig, OlmoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config, block = {"mixtral": (MixtralConfig, MixtralSparseMoeBlock), "olmoe": (OlmoeConfig, OlmoeSparseMoeBlock)}[kind]
    ours = MoE(d, MoEConfig(n_experts=n_experts, top_k=top_k, d_expert=width, weights="renormalised"))
    ours.init_weights(0.02, 0.02)
    found: dict[str, Layer] = {"ours": (ours, first(ours))}
    for how in ("eager", "grouped_mm"):
        sizes = {"hidden_size": d, "intermediate_size": width, "num_experts_per_tok": top_k}
        cfg = config(**sizes, num_local_experts=n_experts, num_experts=n_experts, norm_topk_prob=True)
        cfg._experts_implementation = how
        module = block(cfg)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        found[f"transformers {how}"] = (module, module)
    return found


def pairs(d: int) -> dict[str, dict[str, Layer]]:
    """Layer name -> implementation -> (module, function of x). The first implementation is ours."""
    memories = {name: memory_pair(name, d, N_KEYS) for name in MEMORIES}
    return memories | {name: expert_layers(d, n, k, halves * d // 2, kind) for name, (n, k, halves, kind) in EXPERTS.items()}


def step(module: nn.Module, function: Callable[[Tensor], Tensor], x_BTD: Tensor, backward: bool) -> float:
    """Milliseconds of one call."""
    x_BTD = x_BTD.requires_grad_(backward)
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y_BTD = function(x_BTD)
    if backward:
        y_BTD.sum().backward()
    took = 1e3 * (time.perf_counter() - start)
    module.zero_grad(set_to_none=True)
    return took


def measure(d_model: int, calls: tuple[int, ...], rounds: int) -> list[dict]:
    """Rows of the `speed` table: medians, spread, and the peer's time over ours as the median over rounds."""
    torch.manual_seed(0)
    rows = []
    for name, implementations in pairs(d_model).items():
        for tokens, backward in (*((tokens, False) for tokens in calls), (max(calls), True)):
            times: dict[str, list[float]] = {impl: [] for impl in implementations}
            for module, _ in implementations.values():
                module.train(backward)
            for round_ in range(rounds + 2):
                x_BTD = torch.randn(1, tokens, d_model)
                for impl, (module, function) in implementations.items():
                    took = step(module, function, x_BTD.clone(), backward)
                    if round_ >= 2:
                        times[impl].append(took)
            for impl, ms in times.items():
                p20, p50, p80 = (statistics.quantiles(ms, n=10)[i] for i in (1, 4, 7))
                speed = statistics.median(ours / theirs for ours, theirs in zip(times["ours"], ms, strict=True))
                rows.append(
                    {
                        "benchmark": "layer forward and backward" if backward else "layer forward",
                        "impl": impl,
                        "arch": name,
                        "d_model": d_model,
                        "tokens": tokens,
                        "threads": 1,
                        "precision": "fp32",
                        "p20_ms": p20,
                        "p50_ms": p50,
                        "p80_ms": p80,
                        "tokens_per_s": tokens / p50 * 1e3,
                        "ratio": speed,
                        "versus": "ours",
                        "n_iters": len(ms),
                        "device": device_name("cpu"),
                    }
                )
                if impl != "ours":
                    what = f"{d_model:4d} {tokens:5d} {'fwd+bwd' if backward else 'fwd':7s} {name:10s}"
                    print(f"{what} {impl:22s} {p50:9.2f} ms, {1 / speed:6.2f}x our time (target {TARGETS[name]})", flush=True)
    return rows


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table speed")
    parser.add_argument("--peers", type=Path, default=Path(".cache/peers"), help="folder to install the peers into")
    parser.add_argument("--d-model", type=int, nargs="*", default=(256, 512), help="widths to time (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 64, 2048), help="per forward; the most also backward")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)")
    args = parser.parse_args()
    install(args.peers)
    torch.set_num_threads(1)
    keep_memory()
    rows = []
    for d_model in args.d_model:
        rows += measure(d_model, tuple(args.tokens), args.rounds)
        schema.write(args.out, "speed", rows)


if __name__ == "__main__":
    errors.run(main)
