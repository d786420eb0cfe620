"""The papers' sizes before anybody has the GPUs: memory, traffic and time of a step on 8 to 512 of them, modelled.

    python -m workflows.dry_run --out scale.csv       part of `snakemake plan`

Models are built on the meta device, so their parameters and buffers are counted as they would be trained. Dense parts are
sharded (FSDP: each block gathered in bf16 for forward and backward, gradients scattered back in float32, every micro-batch),
tables and experts lie in parts (evals/access/partition.py); weights, gradients and both Adam moments are float32. A step is
computed at the share of the peak that `evals/decode/gpus.yaml` assumes, and what is sent goes at `REACHED` of `LINKS`, none of
it hidden behind the computing: an upper bound on exchange, a guess at the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evals.access.partition import WAYS, experts
from evals.decode.roofline import Device, load
from evals.decode.settings import GPUS
from evals.records import errors, options, schema
from models.count import entries
from models.match import MatchRule, solve
from models.moe import MoEConfig
from models.transformer import ModelConfig
from models.ultramem_v2 import UltraMemV2Config
from workflows.memory import USABLE, Sized, sharded_bytes
from workflows.parallel.settings import Parallel

WORKERS = (8, 16, 32, 64, 128, 256, 512)
STEP_TOKENS = 2048 * 2048  # P1 table 4; P2 does not say of its own models
MICRO_TOKENS = 8192
ENGINE = Parallel(engine="sharded", recompute=True, gather="bf16")
TRAINED = 1e12  # P1's tokens, for the days
NODE = 8
# Bytes/s that one GPU sends: within a node, and beyond. Vendor's: NVLink in one direction; one 200 or 400 Gb/s port a GPU.
LINKS = {"A100": (300e9, 25e9), "H100": (450e9, 50e9)}
REACHED = 0.7  # of a link; assumed


def undisclosed() -> dict[str, ModelConfig]:
    """P2's largest models and an MoE of their totals: 2.5 B activated, widths and depth our choice as in `access.declared`.

    Values of 3/16 and pre-values of 1/16 of d_model; heads of 128 picks, the most that the Triton kernel selects.
    """
    backbone = {"vocab_size": 50304, "d_model": 2560, "n_layers": 32, "n_heads": 20, "seq_len": 2048, "tie_embeddings": False}
    rule, found = MatchRule(width_multiple=8), {}
    for total, heads in ((120e9, 2), (60e9, 6)):
        arch = UltraMemV2Config(
            d_ff=8, n_keys=1024, d_key=64, n_mem_heads=heads, top_m=128, d_value=480, d_pre_value=160, memory_share=0.17
        )
        name = f"UltraMemV2-2.5B-{total / 1e9:.0f}B-top{128 * heads}"
        found[name] = solve(ModelConfig(arch=arch, **backbone), 5e9, total, rule)
    mixture = MoEConfig(n_experts=64, top_k=8, d_expert=64)
    found["MoE-2.5B-120B-top8"] = solve(ModelConfig(arch=mixture, **backbone), 5e9, 120e9, rule)
    return found


NAMES = (
    *("Dense-1.6B", "MoE-151M-2in32", "MoE-680M-2in33", "MoE-1.6B-2in34"),
    *("UltraMem-151M-x12", "UltraMem-680M-x12", "UltraMem-1.6B-x12", "OLMoE-1B-7B", "UltraMemV2-1B-7B"),
)


def models() -> dict[str, ModelConfig]:
    """Name -> model, as the papers have them or as `undisclosed` closes them."""
    known = entries()
    return {name: known[name].model for name in NAMES} | undisclosed()


def sparse_traffic(model: Sized, partition: str, workers: int) -> float:
    """Bytes that a GPU sends for one of its tokens, forward and backward, in all layers."""
    sent = 0.0
    if model.experts:
        sent += model.cfg.n_layers * experts(model.cfg.arch.top_k, model.cfg.d_model, workers, backward=True)
    if model.ask is not None:
        sent += len(model.built.memories) * WAYS[partition](model.ask, workers, backward=True)
    return sent


def seconds(traffic: float, workers: int, link: tuple[float, float]) -> float:
    """Of sending so many bytes: within a node, or from 9 GPUs on through the slower network all of them."""
    return traffic / (REACHED * link[0 if workers <= NODE else 1])


def rows(devices: dict[str, Device], named: dict[str, ModelConfig]) -> Iterator[dict]:
    """Rows of the table `scale`."""
    for name, cfg in named.items():
        model, cost = Sized(cfg), cfg.cost()
        flops = 3 * (cost.flops + 2 * cfg.vocab_size * cfg.d_model) * STEP_TOKENS
        for key, workers in ((key, workers) for key in LINKS for workers in WORKERS):
            device, micro = devices[key], min(MICRO_TOKENS, STEP_TOKENS // workers)
            pieces = STEP_TOKENS // workers // micro
            dense = (2 * 2 + 4) * model.dense * (workers - 1) / workers * pieces
            sparse = {way: sparse_traffic(model, way, workers) * STEP_TOKENS / workers for way in model.partitions}
            for way, traffic in sparse.items():
                held = sharded_bytes(model, way, workers, micro, ENGINE)
                compute = flops / workers / (device.flops * device.training_utilisation)
                exchange = seconds(dense + traffic, workers, LINKS[key])
                fits = sum(held.values()) <= USABLE * device.memory
                yield {
                    "model": name,
                    "arch": cfg.arch.name,
                    "params": cost.params,
                    "active_params": cost.without("embedding").active_params,
                    "gpus": workers,
                    "partition": way,
                    "tokens": STEP_TOKENS,
                    "micro_tokens": micro,
                    **{kind: size / 1e9 for kind, size in held.items()},
                    "memory_gb": sum(held.values()) / 1e9,
                    "device_gb": device.memory / 1e9,
                    "fits": "fits" if fits else "does not fit",
                    "dense_traffic_gb": dense / 1e9,
                    "sparse_traffic_gb": traffic / 1e9,
                    "cheaper": traffic <= min(sparse.values()),
                    "compute_s": compute,
                    "exchange_s": exchange,
                    "step_s": compute + exchange,
                    "days": (compute + exchange) * TRAINED / STEP_TOKENS / 86400 if fits else None,
                    "device": device.name,
                }


def tell(found: list[dict]) -> None:
    """The fewest GPUs that hold each model, and its step there."""
    for name, device in dict.fromkeys((row["model"], row["device"]) for row in found):
        here = [row for row in found if (row["model"], row["device"]) == (name, device)]
        held = [row for row in here if row["fits"] == "fits" and row["cheaper"]]
        if not held:
            least = min(row["memory_gb"] for row in here)
            print(f"{name} on {device}: does not fit on {WORKERS[-1]} GPUs, {least:.0f} GB each at the least")
            continue
        row = min(held, key=lambda row: row["gpus"])
        way = {"none": "no tables", "experts": "expert parallelism"}.get(row["partition"], f"values by {row['partition']}")
        print(
            f"{name} on {device}: fits from {row['gpus']} GPUs, {row['memory_gb']:.0f} GB each; {way}, "
            f"{row['sparse_traffic_gb'] + row['dense_traffic_gb']:.0f} GB sent and {row['step_s']:.1f} s a step (modelled)"
        )


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, help="write the rows of the table scale here")
    parser.add_argument("--gpus", type=Path, default=GPUS, help="devices and their parameters")
    args = parser.parse_args()
    found = list(rows(load(args.gpus)[0], models()))
    tell(found)
    if args.out:
        schema.write(args.out, "scale", found)


if __name__ == "__main__":
    errors.run(main)
