"""requirements.txt, environment.yml and what is installed agree; the kernels folder is not shadowed."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.requirements import Requirement

from evals import peers

ROOT = Path(__file__).parent.parent


def pins(lines):
    found = {}
    for line in lines:
        line = line.split("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (clause,) = requirement.specifier
            assert clause.operator == "==", f"{line}: pinned exactly, or not at all"
            found[requirement.name] = clause.version
    return found


PEERS = {name.lower().replace("_", "-"): version for name, version in pins(peers.PINS).items()}
REQUIREMENTS = pins((ROOT / "requirements.txt").read_text().splitlines())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_installed_is_pinned(name):
    assert metadata.version(name).split("+")[0] == REQUIREMENTS[name]


def test_every_import_is_pinned():
    """No module of ours imports a package that requirements.txt leaves to chance."""
    provided = {"yaml": "pyyaml", "lm_eval": "lm-eval", "rattler": "py-rattler"}
    ours = {"models", "kernels", "evals", "workflows", "reports", "tests"} | {path.stem for path in ROOT.glob("tests/*.py")}
    for path in ROOT.glob("*/*.py"):
        if path.parts[-2] in ours:
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
    assert REQUIREMENTS["triton"] == "3.7.1"


def test_kernels_of_pypi_is_not_installed():
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("kernels")


def test_licence_is_apache():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
