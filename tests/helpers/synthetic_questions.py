"""Made-up results whose questions have known answers: budgets of tokens, shares of memory, tokens that runs kept."""

import json
import math

import numpy as np
import torch
from synthetic import grid_run, row, write

from evals.records.tensors import write_tensors

BUDGETS = tuple(round(10**6 * 2**power) for power in range(-2, 3))


def token_chain(gap, noise=0.004, seeds=3, budgets=BUDGETS, size="s"):
    """(runs, arms) of chain scaling_tokens: moe8 and the memories, `gap(arch, tokens)` nats above it.

    A seed moves all of a budget alike by 0.1, and each by `noise`; the runs at 10**6 tokens have the grid's names.
    """
    rng = np.random.default_rng(0)
    runs, arms = [], []
    for tokens in budgets:
        for seed in range(seeds):
            shared = rng.normal(0, 0.1)
            for order, arch in enumerate(("dense", "moe8", "ultramem", "ultramem_v2")):
                loss = 5 - 0.5 * math.log10(tokens / 1e6) + shared + rng.normal(0, noise)
                loss += 0.3 if arch == "dense" else 0 if arch == "moe8" else gap(arch, tokens)
                label = f"{arch}-{size}-s{seed}" if tokens == 10**6 else f"scaling_tokens.{arch}-{tokens}-{size}-s{seed}"
                runs.append(grid_run(arch, size, seed, run=label, val_loss=loss, tokens=tokens))
                arm = {"step": f"{order}.{tokens}", "order": order, "label": f"{arch}, {tokens}", "set": "{}", "run": label}
                arms.append(row("arms", chain="scaling_tokens", kind="sweep", **arm))
    return runs, arms


def split_chain(loss, noise=0.004, seeds=3, shares=(0.0, 0.25, 0.5, 0.75, 0.9, 1.0)):
    """(runs, arms) of chain split; `loss(share)` in nats."""
    rng, runs, arms = np.random.default_rng(1), [], []
    for seed in range(seeds):
        shared = rng.normal(0, 0.1)
        for order, share in enumerate(shares):
            run = f"split.{order}-s-s{seed}"
            runs.append(grid_run("hybrid", "s", seed, run=run, val_loss=loss(share) + shared + rng.normal(0, noise)))
            arm = {"step": f"{order}", "order": order, "label": f"{share}", "set": json.dumps({"split": share}), "run": run}
            arms.append(row("arms", chain="split", kind="sweep", **arm))
    return runs, arms


def keep_tokens(folder, run, loss, frequency, reads=None):
    """What a run's folder holds of single tokens."""
    vectors = {"loss": loss, "frequency": frequency} | ({} if reads is None else {"reads": reads})
    path = folder / "runs" / run
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / "tokens.safetensors", {name: torch.from_numpy(v).half() for name, v in vectors.items()}, {})


def kept(folder, runs, gain, n=2000):
    """Tokens of every run: the dense loss is noise, and `gain(arch, reads, frequency)` is what a run has below it.

    Reads and frequency, as log2(1 + count), go together with correlation 0.8.
    """
    rng = np.random.default_rng(2)
    frequency = rng.normal(8, 2, n)
    for run in runs:
        seeded = np.random.default_rng(run["seed"])
        dense = seeded.normal(5, 1, n)
        of = np.random.default_rng(len(run["run"]) + run["seed"])
        reads = 6 + 0.8 * (frequency - 8) + 1.2 * of.normal(0, 1, n)
        if run["arch"] == "dense":
            keep_tokens(folder, run["run"], dense, frequency)
        else:
            has = "moe" not in run["arch"]
            below = gain(run["arch"], reads, frequency) + 0.01 * of.normal()
            keep_tokens(folder, run["run"], dense - below, frequency, reads if has else None)
    return folder


def folder_of(path, *parts):
    """A folder of several (runs, arms); a run that is in two of them stands there once."""
    runs = {run["run"]: run for part, _ in parts for run in part}
    return write(path, runs=list(runs.values()), arms=[arm for _, arms in parts for arm in arms])
