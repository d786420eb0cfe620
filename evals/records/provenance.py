"""Where a number comes from: fingerprints of code and config, versions, machine. Torch-free until `machine()` is asked."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from models import ARCHS, arch_module

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "kernels", "evals", "workflows", "reports")
SOURCES = ("src/*.cpp", "src/*.h", "*.html")

# What makes the numbers of each stage of the workflow; `ARCHITECTURES` stands for the layers that the preset builds by name.
ARCHITECTURES = "models"
STAGES: dict[str, tuple[str, ...]] = {
    "prepare": ("workflows.prepare",),
    "gather": ("workflows.gather",),
    "matched": ("workflows.matched", ARCHITECTURES),
    "counting": ("workflows.counting", ARCHITECTURES),
    "access": ("evals.access.counted", ARCHITECTURES),
    "modelled": ("evals.decode.modelled", ARCHITECTURES),
    "evaluate": ("evals.scores.harness", "evals.scores.tasks.utils", ARCHITECTURES),
    "latency": ("evals.decode.latency", "evals.access.hardware", ARCHITECTURES),
    "claims": ("evals.claims.ledger",),
    "fits": ("evals.laws.fits",),
    "plan": ("workflows.plan", ARCHITECTURES),
    "scale": ("workflows.dry_run", ARCHITECTURES),
    "gpu": ("evals.gpu", "workflows.train", ARCHITECTURES),
    "speed": ("workflows.speed", ARCHITECTURES),
    "peers": ("evals.growth", ARCHITECTURES),
    "coordinates": ("workflows.coordinates", ARCHITECTURES),
    "offload": ("evals.offload.measure", ARCHITECTURES),
    "diagnosis": ("evals.claims.diagnosis",),
    "questions": ("evals.questions.ask",),
    "forgetting": ("evals.forgetting.measure", ARCHITECTURES),
    "spread": ("workflows.parallel.trainer", ARCHITECTURES),
    "report": ("reports.build",),
}
# They check, write and explain; numbers do not depend on them.
WRITERS = tuple(f"evals.records.{name}" for name in ("schema", "errors", "files", "options", "strict", "provenance"))


def sha(data: Any) -> str:
    """Twelve hex digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def source_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


class WithoutCheckerOnly(ast.NodeTransformer):
    """Takes out what only a type checker reads: `if TYPE_CHECKING:` and the import of that name."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        if node.module == "typing":
            node.names = [alias for alias in node.names if alias.name != "TYPE_CHECKING"]
        return node if node.names else None


@cache
def parsed(module: str) -> tuple[str, frozenset[str]]:
    """(code, project modules that it imports, by statement or by name).

    The code is without comments, docstrings, types of functions and what only a type checker reads.

    A module that calls `import_module` may load any module that one of its strings names, alone or inside its package; an
    architecture that asks for another by name (`arch_config`) may be built of any.
    """
    path = source_file(module)
    if path is None:
        raise ValueError(f"{module} is no module of the project")
    tree = WithoutCheckerOnly().visit(ast.parse(path.read_text()))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports, strings, loads = set(), set(), False
    for node in ast.walk(tree):
        called = {getattr(node.func, "attr", ""), getattr(node.func, "id", "")} if isinstance(node, ast.Call) else set()
        loads |= "import_module" in called
        if "arch_config" in called and package == "models":
            imports |= {arch_module(name) for name in ARCHS} - {module}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value.partition(":")[0])
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    if loads:
        named = {name for name in strings if name.replace(".", "").isidentifier()}
        imports |= named | {f"{package}.{name}" for name in named}
    # `models/__init__.py` is a table of names: a new line in it must not retrain the others.
    ours = {name for name in imports - {"models"} if name.split(".")[0] in PACKAGES and source_file(name)}
    return ast.dump(tree), frozenset(ours)


@cache
def fingerprint(*modules: str, packages: tuple[str, ...] = PACKAGES, without: tuple[str, ...] = ()) -> str:
    """Twelve hex digits over the code of `modules` and what they reach by import inside `packages`, not through `without`.

    C++ in a folder `src` and page templates beside a module count with it; comments, docstrings and the types of functions
    do not.
    """
    seen: set[str] = set()
    queue = [module for module in modules if module not in without]
    while queue:
        module = queue.pop()
        if module not in seen:
            seen.add(module)
            queue += [name for name in parsed(module)[1] - set(without) if name.split(".")[0] in packages]
    digest = hashlib.sha256()
    folders = {path.parent for path in map(source_file, seen) if path}
    for module in sorted(seen):
        digest.update(parsed(module)[0].encode())
    for path in sorted(path for folder in folders for suffix in SOURCES for path in folder.glob(suffix)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def stage_source(stage: str, layers: Iterable[str], without: tuple[str, ...] = ()) -> str:
    """Fingerprint of a stage that builds architectures of these modules."""
    roots = [name for name in STAGES[stage] if name != ARCHITECTURES]
    if ARCHITECTURES in STAGES[stage]:
        roots += sorted(layers)
    return fingerprint(*roots, without=without)


def training_source(arch_module: str) -> str:
    """Fingerprint of what decides how a run of one architecture trains: its layer, the kernels, the trainer.

    What only decides which config is trained, or how a CSV is written, is left out: the config has its own hash.
    """
    roots = ("workflows.train", "workflows.optim", "evals.records.shards", "workflows.health", arch_module)
    return fingerprint(*roots, "models.transformer", packages=("kernels", "models"))


def git(*args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """ "CPU: <model>" or "CUDA: <model>", the label of every measured number."""
    if device.startswith("cuda"):
        import torch

        return f"CUDA: {torch.cuda.get_device_name(device)}"
    return f"CPU: {cpu_name()}"


def machine(device: str) -> dict[str, Any]:
    """Columns of `runs.csv` that say what ran: commit, versions, hardware."""
    return {
        "git_commit": git("rev-parse", "--short=12", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "device": device_name(device),
        "host_os": platform.platform(),
    }
