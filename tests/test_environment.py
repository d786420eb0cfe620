"""requirements.txt, environment.yml and what is installed agree; the kernels folder is not shadowed."""

import os
import re
import subprocess
import sys
from importlib import metadata

import pytest
import rattler
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from repository import FLOORS, ROOT

from evals import peers


def pins(lines):
    """Name -> version, and, of what only some systems have, the marker behind it."""
    found = {}
    for line in lines:
        line = line.split("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (clause,) = requirement.specifier
            assert clause.operator == "==", f"{line}: pinned exactly, or not at all"
            found[requirement.name] = f"{clause.version}; {requirement.marker}" if requirement.marker else clause.version
    return found


PEERS = {name.lower().replace("_", "-"): version for name, version in pins(peers.PINS).items()}
REQUIREMENTS = pins((ROOT / "requirements.txt").read_text().splitlines())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_installed_is_pinned(name):
    version, _, marker = REQUIREMENTS[name].partition("; ")
    if not marker or Marker(marker).evaluate():
        assert metadata.version(name).split("+")[0] == version


def test_every_import_is_pinned():
    """No module of ours imports a package that requirements.txt leaves to chance."""
    provided = {
        "yaml": "pyyaml",
        "lm_eval": "lm-eval",
        "rattler": "py-rattler",
        "snakemake_interface_executor_plugins": "snakemake",
    }
    ours = {*FLOORS} | {path.stem for path in ROOT.glob("tests/helpers/*.py")}
    for path in (path for folder in (*FLOORS, "tests") for path in (ROOT / folder).rglob("*.py")):
        for name in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.M):
            if name not in ours and name not in sys.stdlib_module_names:
                known = REQUIREMENTS | (PEERS if path.name == "peers.py" else {})
                assert provided.get(name, name).replace("_", "-").lower() in known, f"{path.name} imports {name}"


def test_conda_holds_the_same_pins():
    specs = [entry for entry in CONDA if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    for spec in specs:
        rattler.MatchSpec(spec)
    assert {spec.split("=")[0] for spec in specs} == {"python", "pip"}
    assert pins(pip) == REQUIREMENTS


def test_torch_is_first_and_exact():
    first = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#"))
    assert first == "torch==2.13.0"
    assert REQUIREMENTS["triton"] == '3.7.1; sys_platform == "linux"'


WITHOUT_TRITON = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] == "triton" else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
import torch
import kernels, workflows.train, workflows.resolve, reports.build
import evals.decode.latency, evals.scores.harness, evals.claims.ledger
from workflows import matched
from workflows.presets import load_preset

assert kernels._automatic("cuda") == "reference"
tokens = torch.randint(64, (2, 17))
for name, config in matched.match_size(load_preset("smoke"), "xs").models.items():
    model = config.build()
    loss, aux = model.loss(tokens[:, :-1], tokens[:, 1:])
    (loss + aux).backward()
    assert loss.isfinite(), name
assert "triton" not in sys.modules
print("trained without triton")
"""


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_everything_but_the_gpu_kernels_works_without_triton(kernels):
    """As on macOS, where no triton can be installed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "ULTRAMEM_KERNELS": kernels}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "trained without triton", done.stderr[-2000:]


def test_kernels_of_pypi_is_not_installed():
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("kernels")


def test_licence_is_apache():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
