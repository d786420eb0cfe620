"""Triton kernels: their numbers under the interpreter (interpreted_*.py), and a lint of their sources."""

import ast
import os
import subprocess
import sys

import pytest
from repository import ROOT


def test_numbers_under_the_interpreter():
    """A process of its own: kernels imported by another test are compiled ones."""
    files = ("tests/kernels/interpreted_kernels.py", "tests/kernels/interpreted_grouped_mm.py")
    files += ("tests/kernels/interpreted_far.py",)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def loads_without_other(source):
    """Lines of masked tl.load calls that leave open what a masked lane holds: zero when interpreted, anything on a GPU."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            given = {keyword.arg for keyword in node.keywords}
            masked = "mask" in given or len(node.args) > 1
            if masked and "other" not in given and len(node.args) < 3:
                yield node.lineno


@pytest.mark.parametrize("file", sorted((ROOT / "kernels/triton").glob("*.py")), ids=lambda file: file.name)
def test_every_masked_load_says_what_it_holds_elsewhere(file):
    assert list(loads_without_other(file.read_text())) == []


def test_the_lint_finds_a_masked_load_without_other():
    assert list(loads_without_other("tl.load(p)\ntl.load(p, mask=m)\ntl.load(p, m)\ntl.load(p, mask=m, other=0)")) == [2, 3]
