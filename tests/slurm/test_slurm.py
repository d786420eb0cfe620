"""Jobs of the profile on a real Slurm.

A run that two nodes share trains as one worker's does, one that makes room or runs out of time continues, and one that fails
names its log.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from repository import ENV, ROOT
from slurm_cluster import missing, running, wait, with_plugin
from training_runs import command, make_corpus

from evals.records import tensors
from evals.records.store import working_folder

# Long enough to be preempted in the middle.
TINY = """
extends: smoke
about: one worker, two that share the model on a node each, and one with more to do
gpu_jobs: true
data: {vocab_size: 256}
sizes:
  one: {d_model: 32, n_layers: 4, n_heads: 2, archs: {ultramem: {placement: ["0:1"]}}}
  two:
    {d_model: 32, n_layers: 4, n_heads: 2, archs: {ultramem: {placement: ["0:1"]}},
     train: {workers: 2}, parallel: {nodes: 2, engine: sharded}}
  long:
    {d_model: 32, n_layers: 4, n_heads: 2, archs: {ultramem: {placement: ["0:1"]}}, train: {tokens: 13107200}}
grid: {sizes: [one, two, long], archs: [dense], seeds: [0, 1]}
chain_size: one
train:
  {tokens: 327680, batch_size: 16, seq_len: 128, precision: fp32, evaluate: 1, validation_tokens: 1024, checkpoint_s: 1000000}
"""
HERE = ["--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=2", "--seconds-between-status-checks=2"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm") / "here") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if (found := with_plugin(tmp_path_factory.mktemp("plugin") / "venv")) is None:
        pytest.skip("pip cannot bring snakemake-executor-plugin-slurm")
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The code with the preset `tiny`, resolved, its text prepared."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
        if name and not name.startswith(("results/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "workflows/configs/tiny.yaml").write_text(TINY)
    for name in ("ablations", "tuning"):  # hundreds of runs that nobody asks for
        (folder / f"workflows/configs/{name}.yaml").write_text("{}\n")
    resolve = "from pathlib import Path; from workflows.grid import load_grid; load_grid({'preset': 'tiny'}, Path('results'))"
    subprocess.run([sys.executable, "-c", resolve], cwd=folder, env=ENV | {"PYTHONPATH": str(folder)}, check=True)
    data = folder / json.loads((folder / "results/tiny/grid.json").read_text())["data"]
    data.mkdir(parents=True)
    make_corpus(data)
    return folder


def test_runs_of_a_cluster(slurm, python, checkout, tmp_path):
    runs = working_folder(checkout / "results", "tiny") / "runs"
    two, long, broken = runs / "dense-two-s0", runs / "dense-long-s0", runs / "dense-one-s1"
    (broken / "checkpoint.safetensors").write_text("damaged")
    targets = [str((run / "runs.csv").relative_to(checkout)) for run in (two, long, broken)]
    profile = ("--workflow-profile", "profiles/slurm", "--retries", "0", *HERE)
    env = slurm.env | {"OMP_NUM_THREADS": "1"}
    one = runs / "dense-one-s0"
    with (tmp_path / "said").open("w") as said:
        workflow = subprocess.Popen(
            [python, "-m", "snakemake", *targets, *profile, "--config", "preset=tiny"], cwd=checkout, env=env,
            stdout=said, stderr=said,
        )  # fmt: skip
    undisturbed = subprocess.Popen(
        command(one), cwd=checkout, env=ENV | {"PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL
    )
    try:

        def first(size: str) -> bool:
            logs = checkout / f".snakemake/slurm_logs/rule_train_{size}"
            return any(f"dense-{size}-s0  step" in path.read_text() for path in logs.rglob("*.log"))

        def job() -> str:
            jobs = [line.split() for line in slurm.ask("squeue", "--noheader", "--format", "%i %k").splitlines()]
            (number,) = [number for number, rule in jobs if "train_long" in rule]
            return number

        def limited(minutes: int) -> bool:
            """Not while the job is on its way back into the queue."""
            slurm.try_ask("scontrol", "update", f"JobId={job()}", f"TimeLimit={minutes}")
            return slurm.ask("squeue", "--noheader", "--jobs", job(), "--format", "%l").endswith(f"{minutes}:00")

        def saved() -> int:
            checkpoint = long / "checkpoint.safetensors"
            return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

        def both() -> bool:
            return first("two") and first("long")

        wait(lambda: both() or workflow.poll() is not None, "the first step", slurm, seconds=300)
        assert both(), (tmp_path / "said").read_text()
        slurm.ask(
            "sbatch", "--partition", "urgent", "--nodes", "2", "--exclusive", "--output", "/dev/null", "--wrap", "sleep 1"
        )
        wait(saved, "a checkpoint", slurm)
        before = saved()
        # The signal comes five minutes ahead, and to the job's step alone: with five minutes or less it may come before there
        # is one, and does not come again.
        wait(lambda: limited(6), "a limit of six minutes", slurm)
        wait(lambda: saved() not in (before, 0), "another checkpoint", slurm, seconds=180)
        waiting = ("squeue", "--noheader", "--jobs", job(), "--format", "%T")
        wait(lambda: slurm.try_ask(*waiting) == "PENDING", "the job back in the queue", slurm)
        slurm.ask("scancel", job())
        assert undisturbed.wait(timeout=300) == 0
        assert workflow.wait(timeout=300) == 1  # of the broken run, and of the long one that was cancelled
    finally:
        for process in (workflow, undisturbed):
            process.kill()
    told = (tmp_path / "said").read_text()
    log = (checkout / "results/tiny/logs/dense-two-s0.log").read_text()

    a, b = (pd.read_csv(run / "train.csv") for run in (one, two))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4)
    assert pd.read_csv(two / "runs.csv").resumed.item() == 1, log + told
    note = tensors.read_tensors(long / "checkpoint.safetensors")[1]
    assert note["resumed"] == 1  # after it made room; then its time ran out
    assert note["step"] < pd.read_csv(one / "runs.csv").steps.item() * 20

    assert "results/tiny/logs/dense-one-s1.log" in told
    assert "checkpoint" in (checkout / "results/tiny/logs/dense-one-s1.log").read_text()
    assert not (broken / "runs.csv").exists()
