"""What the README says of results is what results/reference holds, and every command of its table runs.

The commands are read from the README. Each is executed with a real exit code: training as a dry run of the smoke preset, the
rest in small. A new line of the table is tested as it stands there; one that nobody knows how to make small fails.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import repository
import synthetic_corpus
import synthetic_folder
from exported_runs import finished, prepared
from memory_layers import MODELS, model_of
from official_layers import OTHERS, official
from repository import ENV, ROOT

from evals.records import schema
from workflows import chains, presets

README = (ROOT / "README.md").read_text()
NAMES = {
    "Dense": "dense",
    "MoE-2": "moe2",
    "MoE-8": "moe8",
    "PKM": "pkm",
    "UltraMem": "ultramem",
    "UltraMemV2": "ultramem_v2",
}


def test_loss_table_is_the_reference():
    """Loss on test, mean over the seeds of a size, of every size at which all six were trained."""
    runs = schema.read(ROOT / "results/reference/runs.csv", "runs")
    losses = runs[~runs.run.str.contains(".", regex=False)].pivot_table(index="arch", columns="d_model", values="test_loss")
    widths = losses.columns[losses.loc[list(NAMES.values())].notna().all()]
    assert f"| | d_model {' | '.join(map(str, widths))} |" in README
    table = dict(re.findall(rf"^\| (\w[\w-]*) \| ((?:\d\.\d+ \| ){{{len(widths) - 1}}}\d\.\d+) \|$", README, re.M))
    assert set(table) == set(NAMES)
    for name, cells in table.items():
        assert cells == " | ".join(f"{losses.loc[NAMES[name], width]:.3f}" for width in widths), name


def test_latency_table_is_the_reference():
    rows = schema.read(ROOT / "results/reference/latency.csv", "latency")
    rows = rows[(rows.part == "ffn") & (rows.variant == "plain") & (rows.threads == 1) & (rows.dtype == "bf16")]
    times = rows[rows.sparse_ratio.isin([0, 12])].pivot_table(index="batch", columns="arch", values="p50_ms")
    table = dict(re.findall(r"^\| (\d+) \| ((?:[\d.]+ \| ){5}[\d.]+) \|$", README, re.M))
    assert [int(batch) for batch in table] == list(times.index)
    for batch, cells in table.items():
        assert cells == " | ".join(f"{times.loc[int(batch), arch]:.1f}" for arch in NAMES.values()), batch


def test_verdicts_are_those_of_the_reference():
    verdicts = schema.read(ROOT / "results/reference/claims.csv", "claims").verdict.value_counts()
    (words,) = (column.choices for column in schema.columns("claims") if column.name == "verdict")
    told = re.findall(rf"\b(\d+) ({'|'.join(words)})\b", README)
    assert {word: int(n) for n, word in told} == verdicts.to_dict()


def test_every_preset_and_chain_is_named():
    ablations = [f"ablation_{chain}" for chain in chains.load_chains() if not chain.startswith("diagnosis_")]
    for name in (*presets.preset_names(), *ablations, "diagnosis", "tuning", "plan"):
        assert f"`{name}`" in README or f" {name}" in README, name


def commands(readme: str) -> list[str]:
    """Commands of the table, in order; words in backticks after one are other last words of it."""
    found = []
    for cell in re.findall(r"^\| (`.*?) \|", readme.split("## What you can ask for")[1].split("| preset |")[0], re.M):
        for code in re.findall(r"`([^`]+)`", cell):
            is_command = re.match(r"(snakemake|python|make)\b", code)
            found.append(code if is_command else f"{found[-1].rsplit(' ', 1)[0]} {code}")
    return found


COMMANDS = commands(README)
SNAKEMAKE = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("snakemake ")]
PYTHON = [command for command in COMMANDS if not command.startswith("snakemake ")]

# What makes a module's command small: the words that stand for the user's own, and options after them.
WORDS = {
    "FILE.npz ...": "case.npz",
    "[NAME ...]": "UltraMemV2-227M",
    "results/cpu": "results/tiny",
    "results/gpu1": "results/tiny",
    "results/reference": "results/tiny",
    "FILE.csv": "fits.csv",
    "FOLDER": "carried",
}
PEERS = shlex.quote(str(ROOT / ".cache/peers"))
SMALL = {
    "models.parity": "",
    "models.count": "",
    "models.export": "",
    "evals.growth": f"--rows 4096 --experts 16 --rounds 1 --tokens 4 --threads 1 --peers {PEERS}",
    "evals.peers": f"--d-model 16 --tokens 4 --rounds 2 --peers {PEERS}",
    "evals.compare": "",
    "reports.build": "",
    "reports.poster": "",
    "kernels.aot": "--only topm_backward",
    "evals.access.declared": "",
    "evals.gpu": "--corpus corpus",
    "evals.laws.fits": "--resamples 5",
}
# Targets beside the default one, which trains nothing: what makes the command that snakemake prints for them small.
SPEED = "--d-model 64 --threads 1 --batch-size 2 --seq-len 32 --rounds 2"
STAGES = ("access", "modelled", "evaluate", "claims", "fits", "latency", "coordinates", "diagnosis", "questions")
STAGES += ("forgetting", "offload")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=ENV, capture_output=True, text=True)


def snakemake(folder: Path, *words: str) -> str:
    done = repository.snakemake(folder, "--cores", "1", *words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def target(words: list[str]) -> str:
    """Of the words of a snakemake command: what it asks for."""
    words = words[: words.index("--config")] if "--config" in words else words
    left = [word for word, before in zip(words, ["", *words], strict=False) if "--cores" not in (word, before)]
    assert len(left) <= 1, f"more than one target in {words}"
    return left[0] if left else "all"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in, with a small results folder, a finished run and a case of the official release."""
    folder = tmp_path_factory.mktemp("readme")
    synthetic_folder.folder(folder / "results/tiny")
    np.savez(folder / "case.npz", **official(*OTHERS["own table, E=4"]))
    synthetic_corpus.corpus(folder / "corpus")
    vocab = prepared(folder / "data").get_vocab_size()
    finished(folder / "results/tiny/runs/ultramem-d64-s0", folder / "data", model_of(MODELS["ultramem"], vocab_size=vocab))
    return folder


def test_the_table_is_read_whole():
    assert len(COMMANDS) >= 23
    assert "snakemake --cores all ablation_density" in COMMANDS
    assert commands("## What you can ask for\n| `python -m a b` (`c`) | x |\n| `make` | y |") == [
        "python -m a b",
        "python -m a c",
        "make",
    ]


def test_snakemake_commands_run(folder):
    """Every target in one dry run of the smoke preset; what is beside training and the default target, really."""
    targets = list(dict.fromkeys(map(target, SNAKEMAKE)))
    known = {
        "all",
        "gpu",
        "plan",
        "speed",
        "peers",
        "tuning",
        *STAGES,
        *(f"ablation_{chain}" for chain in chains.load_chains()),
    }
    assert set(targets) <= known, "say here how a new target is run in small"
    told = snakemake(folder, "--dry-run", "--quiet", "host", "--printshellcmds", *targets, "--config", "preset=smoke")
    assert set(re.findall(r"^(\w+) +\d+$", told, re.M)) >= set(targets) - {"all"}
    (speed,) = re.findall(r"exec \S+ -m (workflows\.speed .*)", told)
    done = run([*shlex.split(speed), *shlex.split(SPEED)], folder)
    assert done.returncode == 0, done.stderr
    assert set(schema.read(folder / "results/smoke/speed.csv", "speed").impl) == {"ours", "plain GPT", "plain GPT, compiled"}
    parts = schema.read(folder / "results/smoke/step.csv", "step")
    assert set(parts.part) >= {"attention", "experts", "memory: selection", "head and loss", "optimizer", "rest"}


def test_plan_runs_for_the_gpu_that_is_named_and_no_other_target_takes_one(folder):
    (words,) = [words for words in SNAKEMAKE if target(words) == "plan"]
    config = [word for word in words[words.index("--config") + 1 :] if not word.startswith("preset=")]
    assert config == ["gpu=H100", "gpus=64"]
    told = snakemake(folder, "plan", "--config", "preset=smoke", *config)
    assert "assumed: CUDA: NVIDIA H100-SXM5-80GB reaches 35% of its 989 TFLOPs/s" in told
    assert re.search(r"prediction, default target: 6 runs, [\d.]+ GPU-hours, .* at best on 64 workers", told)
    assert re.search(r"memory per GPU, size xs: up to [\d.]+ GiB \(\S+\) of 74\.5 GiB, fits", told)
    assert schema.read(folder / "results/smoke/plan.csv", "plan").fits.all()
    refused = repository.snakemake(folder, "--cores", "1", "--dry-run", "latency", "--config", "preset=smoke", *config)
    assert refused.returncode == 1
    assert "say what `snakemake plan` predicts for; every other target uses" in refused.stdout + refused.stderr


@pytest.mark.parametrize("command", PYTHON)
def test_python_commands_run(command, folder):
    assert command.startswith("python -m "), f"say here how {command!r} is run in small"
    module = command.split()[2]
    assert module in SMALL, f"say here how python -m {module} is run in small"
    for word, own in WORDS.items():
        command = command.replace(word, own)
    done = run([*shlex.split(command)[2:], *shlex.split(SMALL[module])], folder)
    if "--rerun" in command:  # trained again in tests/workflows/test_workflow.py
        assert done.returncode == 2
        assert "results/tiny/runs holds 0 runs" in done.stderr
        return
    if "connect this machine to an index" in done.stderr:  # offline, the peers cannot be had
        assert module in ("evals.peers", "evals.growth")
        assert done.returncode == 2
        return
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for name in re.findall(r"--out (\S+)", command):
        assert (folder / name).stat().st_size > 100
