"""Public functions of kernels, models and evals have types; the gate of `make lint` asks for them, and for those of
arguments in kernels.triton, where mypy must let jit functions pass, this does."""

import ast
import subprocess
import sys

import pytest
from repository import ROOT

JIT = "triton.jit"


def public(body):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)
            elif JIT not in map(ast.unparse, node.decorator_list):
                yield node


def untyped(source):
    """Names of public functions without a return type or with an argument without a type."""
    found = []
    for node in public(ast.parse(source).body):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        missing = [arg for arg in every if arg and arg.annotation is None and arg.arg not in ("self", "cls", "ctx")]
        if missing or node.returns is None:
            found.append(node.name)
    return found


@pytest.mark.parametrize("package", ["kernels", "models", "evals"])
def test_public_functions_have_types(package):
    wanting = {path.name: names for path in (ROOT / package).rglob("*.py") if (names := untyped(path.read_text()))}
    assert not wanting


def test_a_function_without_types_is_seen():
    assert untyped("def f(x: int): pass\ndef g(x) -> int: pass\ndef _h(x): pass\nclass A:\n def k(self, *x) -> int: pass") == [
        "f",
        "g",
        "k",
    ]


@pytest.mark.parametrize("planted", ["def planted(x):\n    return x\n", "def planted(x) -> int:\n    return x\n"])
def test_the_gate_refuses_a_public_function_without_types(planted, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "planted.py").write_text(planted)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    asked = ([sys.executable, "-m", "ruff", "check"], [sys.executable, "-m", "mypy", "models"])
    done = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for command in asked]
    assert any(run.returncode == 1 and "planted" in run.stdout for run in done), [run.stdout + run.stderr for run in done]
