"""Modelled latency of a decoding step at the papers' sizes, and what the papers state of it. Nothing here is measured.

python -m evals.decode.modelled --out latency_modelled.csv --statements statements.csv
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from evals.access.declared import CONTEXT, KV_HEADS, P1_SIZES, p1, published, resident, v2
from evals.decode.roofline import BATCHES, VARIANTS, Device, decode, load
from evals.decode.settings import GPUS
from evals.decode.statements import statements
from evals.records import options, schema
from evals.records.errors import run


def rows(devices: dict[str, Device], launches: dict[str, int], batches: Iterable[int] = BATCHES) -> Iterator[dict]:
    """Rows of the `latency` table, kind `modelled`: whole model with each cache, and feed-forward and memory alone."""
    views = [("ffn", "none"), *(("model", kv) for kv in KV_HEADS)]
    points = [(d, m, b, *view) for d in devices.values() for m in published() for b in batches for view in views]
    for device, model, batch, part, kv in points:
        for variant in VARIANTS if model.arch == "ultramem" else ("plain",):
            result = VARIANTS[variant](model, device, launches, batch, kv, part=part)
            yield {
                "arch": model.arch,
                "size": model.size,
                "phase": "decode",
                "part": part,
                "variant": variant,
                "batch": batch,
                "context": CONTEXT if KV_HEADS[kv] else 0,
                "kv": kv,
                "sparse_ratio": float(model.sparse_ratio),
                "dtype": "bf16",
                "p50_ms": 1e3 * result.seconds,
                "bytes_declared": float(result.bytes),
                "kind": "modelled",
                "device": device.name,
            }


def report(devices: dict[str, Device], launches: dict[str, int], stated: Iterable[Mapping[str, str]]) -> str:
    """The inputs, every modelled step, and the statements of `evals.decode.statements` about them."""
    lines = ["inputs (MODELLED, nothing here was measured)"]
    for key, d in devices.items():
        lines.append(
            f"  {key}: {d.bandwidth / 1e12:g} TB/s x {d.bandwidth_efficiency:g}, {d.flops / 1e12:g} TFLOPS x "
            f"{d.flops_efficiency:g}, launch {1e6 * d.launch_s:g} us, {d.memory / 1e9:g} GB; {d.source}"
        )
    lines.append("  launches per part and layer: " + ", ".join(f"{k} {v}" for k, v in launches.items()))
    for m in published():
        cost = m.cost()
        lines.append(
            f"  {m.arch} {m.size}: {m.n_layers} x {m.d_model}, {cost.params / 1e9:.2f} B stored, "
            f"{cost.active_params / 1e9:.3f} B activated, embedding left out"
        )
    triples = [("dense", "moe2", "ultramem", size) for size in P1_SIZES if size != "6.5B"]
    for key, device in devices.items():
        for kv in KV_HEADS:
            for names in [*triples, ("dense", "moe8", "ultramem_v2", "120B/2.5B")]:
                *archs, size = names
                trio = [p1(a, size) for a in archs] if size in P1_SIZES else [v2(a) for a in archs]
                lines.append(f"\n{key} {size} KV {kv}, context {CONTEXT}: batch, ms of {', '.join(archs)}, ratios, GB")
                for batch in BATCHES:
                    d, m, u = (decode(x, device, launches, batch, kv) for x in trio)
                    fit = "".join("y" if resident(x, batch, kv) < device.memory else "n" for x in trio)
                    lines.append(
                        f"  {batch:6d} {1e3 * d.seconds:9.2f} {1e3 * m.seconds:9.2f} {1e3 * u.seconds:9.2f}"
                        f"   moe/memory {m.seconds / u.seconds:5.2f}   memory/dense {u.seconds / d.seconds:5.2f}"
                        f"   {m.bytes / 1e9:8.1f} {u.bytes / 1e9:8.1f}   fits {fit}"
                    )
    for row in stated:
        was = f" ({row['published']})" if row["published"] else ""
        lines.append(f"\n{row['device']}, {row['id']}: {row['statement']}{was}. {row['verdict']}: {row['modelled']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--gpus", type=Path, default=GPUS, help="devices and their parameters")
    parser.add_argument("--out", type=Path, help="write the rows of the latency table here")
    parser.add_argument("--statements", type=Path, help="write the papers' statements and what the model says of them here")
    args = parser.parse_args(arguments)
    devices, launches = load(args.gpus)
    stated = [row for device in devices.values() for row in statements(device, launches)]
    print(report(devices, launches, stated))
    if args.out:
        schema.write(args.out, "latency", rows(devices, launches))
    if args.statements:
        schema.write(args.statements, "statements", stated)


if __name__ == "__main__":
    run(main)
