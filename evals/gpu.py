"""What one GPU can measure of the suite in nine minutes, on a bare machine without internet: python -m evals.gpu --out results

Parts, most valuable first: kernels against float64 oracles; lookups as a share of copy bandwidth; TDQKR retrieval; grouped
products against torch's; decoding at the papers' shapes; layers against peers; a grid at larger widths. Each has a CSV of its
own, with device, driver and versions in every row, and a limit of seconds; what is measured by this code on this device is not
measured again, so the same command goes on where it stopped.

    python -m evals.gpu --pack FOLDER     code, prepared tokens and the grid's configs, 60 MB at most: what to carry there
    python -m evals.gpu --out results --device cpu     the same code on tiny shapes

Needs torch, numpy, pandas, safetensors, tokenizers and yaml, on CUDA triton; nothing else of the suite's pins.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from evals.device import pack
from evals.device.checks import CHECKS
from evals.device.decode import DECODE, as_latency
from evals.device.grid import GRID
from evals.device.layers import LAYERS
from evals.device.parts import Bench, Part, parts_of, run
from evals.device.speed import LOOKUP, PRODUCTS, RETRIEVAL
from evals.records import errors, options
from evals.records.errors import UserError
from kernels.allocator import keep_memory

PARTS = {part.name: part for part in (CHECKS, LOOKUP, RETRIEVAL, PRODUCTS, DECODE, LAYERS, GRID)}
SECONDS = 530.0  # of all parts together


def run_all(parts: list[Part], device: str, folder: Path, seconds: float = SECONDS) -> dict[str, str]:
    """Runs parts one after the other, each within its own limit and all within `seconds`; part -> "finished" or why not."""
    folder.mkdir(parents=True, exist_ok=True)
    end, states = time.monotonic() + seconds, {}
    for part in parts:
        bench = Bench(device, folder, tiny=device == "cpu")
        since = time.monotonic()
        bench.until = min(since + part.seconds, end)
        print(f"{part.name}: {part.about}, {max(0.0, bench.left):.0f} seconds at most", flush=True)
        states[part.name] = run(part, bench)
        print(f"{part.name}: took {time.monotonic() - since:.0f} seconds", flush=True)
    as_latency(folder)
    return states


def main(arguments: list[str] | None = None) -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder that gets a CSV of each part, and keeps what is measured")
    parser.add_argument("--device", help="cuda, or cpu for tiny shapes (default: CUDA where there is one)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together (default: %(default)s)")
    parser.add_argument("--limit", type=float, help="seconds for each part, instead of its own")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="make the folder to carry to the GPU, and measure nothing")
    parser.add_argument("--corpus", type=Path, help="prepared corpus that --pack takes along (default: that of the cpu preset)")
    args = parser.parse_args(arguments)
    if args.pack:
        print(f"{args.pack}: {pack.pack(args.pack, args.corpus) / 1e6:.1f} MB; there: python -m evals.gpu --out results")
        return 0
    if not args.out:
        raise UserError("say --out FOLDER to measure into, or --pack FOLDER to make what is carried to a GPU")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is not one of cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; --device cpu runs the same code on tiny shapes")
    parts = list(parts_of(args.parts, PARTS))
    if args.limit is not None:
        parts = [replace(part, seconds=args.limit) for part in parts]
    keep_memory()
    states = run_all(parts, device, args.out, args.seconds)
    for name, state in states.items():
        print(f"{name:10s} {state}")
    return int(any("failed" in state for state in states.values()))


if __name__ == "__main__":
    errors.run(main)
