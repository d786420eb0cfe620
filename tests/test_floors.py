"""Floors: kernels below models below evals below workflows and reports, `evals.records` below the rest of evals."""

import ast
import subprocess

import pytest
from repository import ROOT, modules

from evals.records.provenance import parsed

BELOW = {
    "kernels": {"kernels"},
    "models": {"kernels", "models"},
    "evals": {"kernels", "models", "evals"},
    "workflows": {"kernels", "models", "evals", "workflows"},
    "reports": {"evals", "reports"},
}


def imports(module: str) -> set[str]:
    return {name for name in parsed(module)[1] if name != module}


@pytest.mark.parametrize("floor", BELOW)
def test_no_import_goes_up(floor):
    up = {
        m: sorted(n for n in imports(m) if n.split(".")[0] not in BELOW[floor]) for m in modules() if m.split(".")[0] == floor
    }
    assert not {module: names for module, names in up.items() if names}


def test_records_stand_on_nothing_of_evals():
    for module in modules():
        if module.startswith("evals.records"):
            assert all(name.startswith(("evals.records", "models")) for name in imports(module) if name != "evals"), module


def test_no_import_goes_in_a_circle():
    """Imports at the head of modules; one inside a function is for what is slow to load."""
    graph = {}
    for module in modules():
        path = ROOT.joinpath(*module.split("."))
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
        head = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
        head |= {f"{n.module}.{a.name}" for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        head |= {alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
        graph[module] = head
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in sorted(graph[module] & graph.keys() - {module}):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_long_file_gives_its_reason():
    told = subprocess.check_output(["git", "ls-files", "*.py", "*.smk", "*.cpp", "*.h", "Snakefile"], cwd=ROOT, text=True)
    texts = {name: (ROOT / name).read_text().splitlines() for name in told.split()}
    assert len(texts) > 300
    long = {name: " ".join(lines[:20]) for name, lines in texts.items() if len(lines) > 300}
    assert not {name for name, head in long.items() if "bove 300 lines" not in head}
