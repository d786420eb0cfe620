"""Hours, memory and disk of a preset before anything runs: python -m workflows.plan results/paper --gpu H100 --gpus 64

For a named GPU the prediction is FLOPs over the peak of evals/decode/gpus.yaml times the share of it that training is
assumed to reach. Without one, a few steps of each architecture are timed on this machine, on the largest model that fits a
small budget of memory and time, and carried over by FLOPs, at most `FARTHEST` times as many for a token. What is printed and
written is a prediction.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

import torch

from evals.decode.roofline import Device
from evals.decode.roofline import load as load_gpus
from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.provenance import device_name
from evals.records.runs import RunConfig, load_run
from models.match import flops
from workflows.forecast import spoken
from workflows.gather import read_grid
from workflows.grid import plan_target
from workflows.memory import USABLE, training_bytes
from workflows.parallel.settings import Parallel
from workflows.presets import load_preset
from workflows.resolve import resolve
from workflows.speed import our_step

LARGEST_CALIBRATION = 60_000_000  # parameters; 16 bytes each in training
FARTHEST = 10.0  # times the calibrated model's FLOPs per token
HELD = {"replicated": "holds all weights", "sharded": "holds its part of the weights"}


def step_seconds(run: RunConfig, steps: int = 3, within: float = math.inf) -> float:
    """Median seconds of a training step on random tokens, of `steps` or as many as end `within` seconds, at least one."""
    torch.set_num_threads(run.train.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step, times = our_step(run, device), []
    while len(times) < 2 or (len(times) <= steps and sum(times) + times[-1] < within):
        tokens = torch.randint(run.model.vocab_size, (run.train.batch_size, run.train.seq_len + 1), device=device)
        start = time.perf_counter()
        step(tokens[:, :-1], tokens[:, 1:]).item()
        times.append(time.perf_counter() - start)
    return statistics.median_high(times[1:])


def full_flops(run: RunConfig) -> float:
    """Training FLOPs per token with the head, which small models mostly consist of."""
    return 3 * (flops(run.model) + 2 * run.model.vocab_size * run.model.d_model)


def tokens_of(run: RunConfig) -> int:
    return run.train.steps * run.train.batch_size * run.train.seq_len


def row_of(run: RunConfig, rate: float, calibrated_on: str, device: str) -> dict:
    """What every prediction says of a run: seconds by FLOPs at `rate` (FLOPs/s of one worker), and disk."""
    seconds = full_flops(run) * tokens_of(run) / rate
    return {
        "run": run.run,
        "arch": run.arch,
        "size": run.size,
        "tokens": tokens_of(run),
        "workers": run.train.workers,
        "predicted_core_s": seconds,
        "predicted_wall_s": seconds / run.train.workers,
        "predicted_disk_mb": 4 * run.model.cost().params * (1 + 3) / 2**20,
        "calibrated_on": calibrated_on,
        "device": device,
    }


def stand_ins(runs: dict[str, RunConfig]) -> dict[str, RunConfig]:
    """Architecture -> the largest run that is quickly timed: the preset's own, or where none is small enough the cpu preset's.

    Raises:
        UserError: a run does more than `FARTHEST` times the work of its stand-in, or has none.
    """
    fits = [run for run in runs.values() if run.model.cost().params <= LARGEST_CALIBRATION]
    missing = {run.arch for run in runs.values()} - {run.arch for run in fits}
    if missing:
        _, small = resolve(load_preset("cpu"), {}, Path("results"))
        fits += [run for run in small.values() if run.arch in missing]
    chosen = {run.arch: run for run in sorted(fits, key=full_flops)}
    known = ", ".join(load_gpus()[0])
    for run in runs.values():
        farther = full_flops(run) / full_flops(chosen[run.arch]) if run.arch in chosen else float("inf")
        if farther > FARTHEST:
            raise UserError(
                f"{run.run} does {farther:,.0f} times the work per token of the largest model that this machine times in "
                f"moments, and nothing beyond {FARTHEST:.0f} times is predicted from that; name the GPUs it is meant for: "
                f"snakemake plan --config preset={run.preset} gpu=H100 gpus=64 (known: {known})"
            )
    return chosen


def predict(runs: dict[str, RunConfig], within: float = math.inf) -> list[dict]:
    """One row a run, by FLOPs from the timed model of its architecture: core-seconds (GPU-seconds on CUDA) and disk.

    Steps are timed for `within` seconds at most, but two of each architecture.

    Raises:
        UserError: as `stand_ins`.
    """
    device, timed = device_name("cuda" if torch.cuda.is_available() else "cpu"), {}
    chosen = stand_ins(runs)
    for arch, run in chosen.items():
        seconds, tokens = step_seconds(run, within=within / len(chosen)), run.train.batch_size * run.train.seq_len
        timed[arch] = (full_flops(run) * tokens / seconds, run.run)
        print(f"timed {run.run}: {tokens / seconds:,.0f} tokens/s", flush=True)
    return [row_of(run, *timed[run.arch], device) for run in runs.values()]


def predict_for(runs: dict[str, RunConfig], device: Device, spreads: dict[str, Parallel]) -> list[dict]:
    """One row a run for a GPU of the table: GPU-seconds at the assumed share of its peak, memory and whether it fits.

    `spreads` says of each run how it lies on its workers.

    Raises:
        UserError: a run in float32, for which the table has no peak.
    """
    rows = []
    for name, run in runs.items():
        if run.train.precision != "bf16":
            raise UserError(f"{run.run} trains in {run.train.precision}, and gpus.yaml has peaks of bf16 only; plan with bf16")
        memory = training_bytes(run, spreads[name])
        rate = device.flops * device.training_utilisation
        rows.append(
            row_of(run, rate, device.training_source, device.name)
            | {
                "predicted_memory_mb": memory / 2**20,
                "device_memory_mb": device.memory / 2**20,
                "fits": memory <= USABLE * device.memory,
                "utilisation": device.training_utilisation,
            }
        )
    return rows


def tell(what: str, rows: list[dict], workers: int, hours: str) -> None:
    """Prints the sum over `rows`, and the wall time where runs share `workers` processes as well as they can."""
    total, longest = sum(row["predicted_core_s"] for row in rows), max(rows, key=lambda row: row["predicted_wall_s"])
    wall, disk = max(total / workers, longest["predicted_wall_s"]), sum(row["predicted_disk_mb"] for row in rows) / 1024
    print(
        f"prediction, {what}: {len(rows)} runs, {total / 3600:,.2f} {hours}, {spoken(wall)} at best on {workers} workers "
        f"({longest['run']} alone: {spoken(longest['predicted_wall_s'])} on {longest['workers']}; with every run spread over "
        f"all of them: {spoken(total / workers)}), {disk:,.1f} GB of disk"
    )


def tell_memory(rows: list[dict]) -> None:
    """Prints for each size what a GPU must hold, and which runs do not fit."""
    have = rows[0]["device_memory_mb"] / 1024
    for size in dict.fromkeys(row["size"] for row in rows):
        here = [row for row in rows if row["size"] == size]
        most = max(here, key=lambda row: row["predicted_memory_mb"])
        out = sorted({row["arch"] for row in here if not row["fits"]})
        words = f"does not fit: {', '.join(out)}" if out else "fits"
        need = most["predicted_memory_mb"] / 1024
        print(f"memory per GPU, size {size}: up to {need:,.1f} GiB ({most['run']}) of {have:,.1f} GiB, {words}")


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("results", type=Path, help="results/{preset}")
    parser.add_argument("--cores", type=int, default=torch.get_num_threads(), help="runs side by side on this machine")
    parser.add_argument("--gpu", help="a device of evals/decode/gpus.yaml to predict for, instead of timing this machine")
    parser.add_argument("--gpus", type=int, help="how many of them")
    args = parser.parse_args()
    target = plan_target({key: value for key, value in (("gpu", args.gpu), ("gpus", args.gpus)) if value is not None})
    grid = read_grid(args.results)
    runs = {name: load_run(args.results / "runs" / name) for name in grid["runs"]}
    spreads = {name: Parallel(**entry["parallel"]) for name, entry in grid["runs"].items()}
    if target:
        gpu = load_gpus()[0][target["gpu"]]
        rows, workers, hours = predict_for(runs, gpu, spreads), target["gpus"], "GPU-hours"
        print(
            f"assumed: {gpu.name} reaches {gpu.training_utilisation:.0%} of its {gpu.flops / 1e12:,.0f} TFLOPs/s in training "
            f"({gpu.training_source}); this is of dense models, and sparse layers may reach less"
        )
    else:
        print("timing this machine; name another as --config gpu=H100 gpus=64", flush=True)
        rows, workers, hours = predict(runs), args.cores, "hours of work"
    schema.write(args.results / "plan.csv", "plan", rows)
    default = set(grid["grid"]) | {arm["run"] for arm in grid["arms"] if arm["chain"] in grid["chains"]}
    tell("default target", [row for row in rows if row["run"] in default], workers, hours)
    tell("with every ablation", rows, workers, hours)
    if target:
        tell_memory(rows)
        if (most := max(row["workers"] for row in rows)) > target["gpus"]:
            print(f"does not fit: a run wants {most} GPUs at once (train.workers), and there are {target['gpus']}")
        engines = " or ".join(sorted({HELD[spread.engine] for spread in spreads.values()}))
        print(
            f"a run uses train.workers GPUs, and each {engines} (parallel.engine); exchange is not in these times "
            "(`scale.csv` has it), and those of runs that do not fit are what they would take if they did"
        )


if __name__ == "__main__":
    errors.run(main)
