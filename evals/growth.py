"""How a layer's time grows: per token against table rows, experts and threads, ours and peers', with fitted exponents.

Each curve turns one axis and leaves the rest: PKM, UltraMem and PEER (d_model 64, float32) with 2^14 to 2^24 table rows
read forward; a top-8 mixture of experts (d_model 256, experts 64 wide) with 16 to 1024 experts. The times against d_model
and threads of whole training steps stand in the table speed. A peer's layer is timed where it is installed, beside ours in
one interleaved run; implementations take turns, and each row is a median.

The exponent is the slope of log time over log axis, least squares over the points of a curve: 0 does not grow, 1 grows in
proportion.

    python -m evals.growth --out growth.csv
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from evals import peers
from evals.peers import Layer
from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.provenance import device_name
from kernels.allocator import keep_memory

ROWS = tuple(2**power for power in (14, 16, 18, 20, 22, 24))
EXPERTS = (16, 64, 256, 1024)
# Two halves of the keys of a square table have to hold 32 picks: ultra-mem's and ours beside it have half as many keys.
FEWEST_ROWS = 64**2
# Bytes that one implementation's layer may take: three copies (ours, a peer's, a call's) have to fit.
MOST_BYTES = 6e9


def memory_layers(rows: int) -> dict[str, dict[str, Layer]]:
    """Layer name -> implementation -> (module, function of x), as in `evals.peers` but narrow and of so many rows."""
    d = 64
    found = {}
    for name, bytes_of_row in (("PKM", 4 * d), ("UltraMem", 4 * d // 2), ("PEER", 8 * d)):
        if rows * bytes_of_row <= MOST_BYTES:
            found[name] = peers.memory_pair(name, d, math.isqrt(rows))
    return found


def mixtures(n_experts: int) -> dict[str, dict[str, Layer]]:
    return {"MoE top-8": peers.expert_layers(256, n_experts, 8, 64, "olmoe")}


def points(rows: tuple[int, ...], experts: tuple[int, ...]) -> Iterator[tuple[str, int, int, Callable[[], dict]]]:
    """(axis, its value, d_model, what makes the layers)."""
    for count in rows:
        yield "rows", count, 64, partial(memory_layers, count)
    for count in experts:
        yield "experts", count, 256, partial(mixtures, count)


def measure(tokens: int, rounds: int, threads: tuple[int, ...], rows: tuple[int, ...], experts: tuple[int, ...]) -> list[dict]:
    """Rows of the table `growth`, their exponents not yet filled in."""
    found = []
    for axis, value, d_model, make in points(rows, experts):
        torch.manual_seed(0)
        for (layer, implementations), n_threads in product(make().items(), threads):
            torch.set_num_threads(n_threads)
            times: dict[str, list[float]] = {impl: [] for impl in implementations}
            for round_ in range(rounds + 1):
                x_BTD = torch.randn(1, tokens, d_model)
                for impl, (module, function) in implementations.items():
                    took = peers.step(module.eval(), function, x_BTD.clone(), backward=False)
                    if round_:
                        times[impl].append(took)
            for impl, ms in times.items():
                p50 = statistics.median(ms)
                where = {"axis": axis, "value": value, "layer": layer, "impl": impl, "threads": n_threads}
                found.append(where | {"us_per_token": 1e3 * p50 / tokens, "n_iters": len(ms), "device": device_name("cpu")})
                print(f"{axis:8s} {value:9d} {layer:10s} {impl:22s} {n_threads} {1e3 * p50 / tokens:9.3f} us/token", flush=True)
    return found


def with_exponents(rows: list[dict]) -> list[dict]:
    """The same rows, each with the exponent of its curve."""
    curves: dict[tuple, list[dict]] = {}
    for row in rows:
        curves.setdefault(tuple(row[key] for key in ("axis", "layer", "impl", "threads")), []).append(row)
    for curve in curves.values():
        if len(curve) > 1:
            x, y = (np.log([row[key] for row in curve]) for key in ("value", "us_per_token"))
            slope = float(np.polyfit(x, y, 1)[0])
            for row in curve:
                row["exponent"] = slope
    return rows


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table growth")
    parser.add_argument("--peers", type=Path, default=Path(".cache/peers"), help="folder to install the peers into")
    parser.add_argument("--tokens", type=int, default=512, help="of a call (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="threads to time with (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of a table, squares (default: %(default)s)")
    parser.add_argument("--experts", type=int, nargs="*", default=EXPERTS, help="of a mixture (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)")
    args = parser.parse_args()
    if small := [str(rows) for rows in args.rows if rows < FEWEST_ROWS]:
        raise UserError(f"--rows {' '.join(small)}: a table here has {FEWEST_ROWS} rows or more, which 32 picks of a key need")
    peers.install(args.peers)
    keep_memory()
    rows = measure(args.tokens, args.rounds, tuple(args.threads), tuple(args.rows), tuple(args.experts))
    schema.write(args.out, "growth", with_exponents(rows))


if __name__ == "__main__":
    errors.run(main)
