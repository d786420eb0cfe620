"""The grid as the Snakefile needs it, without importing torch: resolved once per change, in a subprocess, then read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from evals.decode.settings import GPUS
from evals.records.errors import UserError
from evals.records.provenance import ROOT, fingerprint, sha
from evals.records.store import working_folder
from models import ARCHS, arch_module
from workflows.chains import load_chains
from workflows.presets import CONFIGS, load_preset, read_yaml

DEFAULT_PRESET = "cpu"
TARGET = {"gpu": str, "gpus": int}


def grid_key(overrides: dict[str, Any]) -> str:
    """Changes with the YAML files, the command line, and the code that resolves or trains."""
    yaml_bytes = b"".join(path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml")))
    code = fingerprint("workflows.resolve", "workflows.train", *(arch_module(name) for name in ARCHS))
    return sha([hashlib.sha256(yaml_bytes).hexdigest(), overrides, code])


def gpu_count() -> int:
    """GPUs that nvidia-smi lists; 0 without it."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def plan_target(config: dict[str, Any]) -> dict[str, Any]:
    """{"gpu", "gpus"} that --config plans for, empty where it names none; no other target than `plan` takes them.

    Raises:
        UserError: an unknown GPU, a number of them out of 1..100000, or a number without a name.
    """
    target = {key: value for key, value in config.items() if key in TARGET}
    known = sorted(read_yaml(GPUS)["devices"])
    if not target:
        return {}
    if target.get("gpu") not in known:
        named = f"{str(target['gpu'])[:40]!r} is not one of" if "gpu" in target else "gpus needs a name as well, one of"
        raise UserError(f"--config gpu: {named} {', '.join(known)}; as in --config gpu={known[-1]} gpus=64")
    gpus = target.get("gpus", 1)
    if not isinstance(gpus, int) or isinstance(gpus, bool) or not 1 <= gpus <= 100_000:
        raise UserError(f"--config gpus: expected a whole number from 1 to 100000, found {str(gpus)[:40]!r}")
    return {"gpu": target["gpu"], "gpus": gpus}


def load_grid(config: dict[str, Any], results: Path) -> dict[str, Any]:
    """The resolved grid of the preset that `config` (snakemake's --config) names.

    Raises:
        UserError: anything wrong with the preset, the chains or the command line, in one sentence.
    """
    plan_target(config)
    overrides = {key: value for key, value in config.items() if key not in ("preset", *TARGET)}
    name = config.get("preset", DEFAULT_PRESET)
    preset = load_preset(name, overrides)
    chains = load_chains()
    folder = working_folder(results, name)
    key, path = grid_key(overrides), folder / "grid.json"
    grid = json.loads(path.read_text()) if path.exists() else {}
    whole = all((folder / "runs" / run / "config.yaml").exists() for run in grid.get("runs", ()))
    if grid.get("key") != key or not whole:
        command = [sys.executable, "-m", "workflows.resolve", "--preset", name, "--overrides", json.dumps(overrides)]
        command += ["--results", str(results), "--key", key]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(lines[-1].removeprefix("error: ") if done.returncode == 2 else done.stderr)
        grid = json.loads(path.read_text())
    known = sorted({arm["chain"] for arm in grid["arms"]} & set(chains))
    own = {"folder": str(folder), "adopt": preset.adopt, "gpu_jobs": preset.gpu_jobs, "layers": preset.layers}
    return grid | own | {"gpus": gpu_count(), "all_chains": known}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
