"""Hours and disk of a preset before anything runs: python -m workflows.plan results/paper

Times a few steps of each architecture on this machine, on the largest model that fits a small budget of memory and time,
and carries its speed over by FLOPs. What it prints and writes is a prediction.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from evals import schema
from models.match import flops
from workflows import errors
from workflows.errors import UserError
from workflows.optim import Optimizers
from workflows.presets import load_preset
from workflows.provenance import device_name
from workflows.resolve import resolve
from workflows.runs import RunConfig, load_run

LARGEST_CALIBRATION = 60_000_000  # parameters; 16 bytes each in training


def step_seconds(run: RunConfig, steps: int = 3) -> float:
    """Median seconds of a training step on random tokens."""
    torch.set_num_threads(run.train.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = run.model.build().to(device)
    optimizers, times = Optimizers(model, run.train), []
    for _ in range(steps + 1):
        tokens = torch.randint(run.model.vocab_size, (run.train.batch_size, run.train.seq_len + 1), device=device)
        start = time.perf_counter()
        optimizers.set_lr(0)
        model.refresh()
        with torch.autocast(device, torch.bfloat16, enabled=run.train.precision == "bf16"):
            loss, aux = model.loss(tokens[:, :-1], tokens[:, 1:], run.train.precision)
        (loss + aux).backward()
        optimizers.step()
        loss.item()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[len(times[1:]) // 2]


def full_flops(run: RunConfig) -> float:
    """Training FLOPs per token with the head, which small models mostly consist of."""
    return 3 * (flops(run.model) + 2 * run.model.vocab_size * run.model.d_model)


def calibrate(runs: dict[str, RunConfig]) -> dict[str, tuple[float, str]]:
    """Architecture class -> (training FLOPs per second, run that was timed), on the largest model that fits the budget.

    Where none of the preset's own fits, the cpu preset's largest size stands in.
    """
    fits = [run for run in runs.values() if run.model.cost().params <= LARGEST_CALIBRATION]
    if not fits:
        _, stand_ins = resolve(load_preset("cpu"), {}, Path("results"))
        fits = list(stand_ins.values())
    timed = {}
    for run in {run.arch: run for run in sorted(fits, key=full_flops)}.values():
        seconds, tokens = step_seconds(run), run.train.batch_size * run.train.seq_len
        timed[run.arch] = (full_flops(run) * tokens / seconds, run.run)
        print(f"calibrated on {run.run}: {tokens / seconds:,.0f} tokens/s", flush=True)
    return timed


def predict(runs: dict[str, RunConfig]) -> list[dict]:
    """One row a run: core-seconds (GPU-seconds on CUDA) and disk, by FLOPs from the calibrated model of its architecture."""
    rates = calibrate(runs)
    device = device_name("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, run in runs.items():
        tokens = run.train.steps * run.train.batch_size * run.train.seq_len
        rate, source = rates[run.arch]
        rows.append(
            {
                "run": name,
                "arch": run.arch,
                "size": run.size,
                "tokens": tokens,
                "predicted_core_s": full_flops(run) * tokens / rate,
                "predicted_disk_mb": 4 * run.model.cost().params * (1 + 3) / 2**20,
                "calibrated_on": source,
                "device": device,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results/{preset}")
    parser.add_argument("--cores", type=int, default=torch.get_num_threads(), help="runs side by side")
    args = parser.parse_args()
    path = args.results / "grid.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; start this as `snakemake plan --config preset=NAME`")
    grid = json.loads(path.read_text())
    rows = predict({name: load_run(args.results / "runs" / name) for name in grid["runs"]})
    schema.write(args.results / "plan.csv", "plan", rows)
    default = set(grid["grid"]) | {arm["run"] for arm in grid["arms"] if arm["chain"] in grid["chains"]}
    for what, names in (("default target", default), ("with every ablation", set(grid["runs"]))):
        chosen = [row for row in rows if row["run"] in names]
        seconds = sum(row["predicted_core_s"] for row in chosen)
        longest = max(row["predicted_core_s"] for row in chosen)
        hours, disk = max(seconds / args.cores, longest) / 3600, sum(row["predicted_disk_mb"] for row in chosen) / 1024
        print(f"prediction, {what}: {len(chosen)} runs, {hours:,.2f} hours on {args.cores} workers, {disk:,.1f} GB of disk")


if __name__ == "__main__":
    errors.run(main)
