"""Fingerprints follow what matters: an architecture's own file retrains it alone, a comment nothing."""

import shutil

import pytest

from evals.records import provenance
from models import ARCHS, arch_module


@pytest.fixture
def tree(tmp_path, monkeypatch):
    files = {
        "models/base.py": "x = 1\n",
        "models/a.py": "from models.base import x\n\ny = x\n",
        "models/b.py": "from models import base\n",
        "kernels/__init__.py": "",
        "kernels/src/fast.cpp": "int f();",
        "workflows/go.py": "import models.a\nimport evals.out\n",
        "evals/out.py": "z = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def prints():
        provenance.parsed.cache_clear()
        provenance.fingerprint.cache_clear()
        return {
            "a": provenance.fingerprint("models.a"),
            "b": provenance.fingerprint("models.b"),
            "go": provenance.fingerprint("workflows.go"),
            "go, models only": provenance.fingerprint("workflows.go", packages=("models",)),
            "go, not its writer": provenance.fingerprint("workflows.go", without=("evals.out",)),
        }

    yield tmp_path, prints
    provenance.parsed.cache_clear()
    provenance.fingerprint.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("models/base.py", "x = 2\n", {"a", "b", "go", "go, models only", "go, not its writer"}),
        ("models/a.py", "from models.base import x\n\ny = x + 1\n", {"a", "go", "go, models only", "go, not its writer"}),
        ("models/a.py", '"""What it is."""\nfrom models.base import x  # why\n\ny = x\n', set()),
        ("evals/out.py", "z = 2\n", {"go"}),
    ],
)
def test_what_an_edit_changes(tree, file, text, changed):
    folder, prints = tree
    before = prints()
    (folder / file).write_text(text)
    after = prints()
    assert {name for name in before if before[name] != after[name]} == changed


def test_types_of_functions_do_not_count_and_those_of_fields_do(tree):
    folder, prints = tree
    found = []
    for text in ("def f(x): return x\n", "def f(x: int) -> int: return x\n", "x: int = 1\n", "x: float = 1\n"):
        (folder / "models/base.py").write_text(text)
        found.append(prints()["b"])
    assert found[0] == found[1]
    assert found[2] != found[3]


def test_what_only_a_type_checker_reads_does_not_count(tree):
    """Nor does what it imports; the other branch does."""
    folder, prints = tree
    plain = "from typing import Final\n\nclass A:\n    x = 1\n"
    checked = (
        "from typing import TYPE_CHECKING, Final\n\nif TYPE_CHECKING:\n    from models.a import y\n\n"
        "class A:\n    if TYPE_CHECKING:\n        z: int\n    x = 1\n"
    )
    other = checked.replace("    x = 1\n", "    else:\n        x = 1\n")
    found = []
    for text in (plain, checked, other, other.replace("x = 1", "x = 2")):
        (folder / "models/base.py").write_text(text)
        found.append(prints()["b"])
    assert found[0] == found[1] == found[2] != found[3]
    assert provenance.parsed("models.base")[1] == frozenset()


def test_native_source_counts(tree):
    folder, prints = tree
    (folder / "models/base.py").write_text("import kernels\n\nx = 1\n")
    before = prints()
    (folder / "kernels/src/fast.cpp").write_text("int g();")
    assert all(before[name] != value for name, value in prints().items() if name in ("a", "b", "go"))


def test_each_architecture_has_its_own_source():
    sources = {name: provenance.training_source(arch_module(name)) for name in ARCHS}
    assert len(set(sources.values())) == len(ARCHS)


LAYERS = {arch: arch_module(arch) for arch in ARCHS}


@pytest.fixture(scope="module")
def stale_after(tmp_path_factory):
    """Of a copy of this tree: the stages that a line more in one file makes stale, `train ARCH` among them."""
    copy, patch = tmp_path_factory.mktemp("tree"), pytest.MonkeyPatch()
    for package in provenance.PACKAGES:
        for path in (path for kind in ("*.py", *provenance.SOURCES) for path in (provenance.ROOT / package).rglob(kind)):
            (copy / path.relative_to(provenance.ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(provenance.ROOT))
    known, parse = {}, provenance.parsed.__wrapped__
    patch.setattr(provenance, "ROOT", copy)

    def parsed(module: str):
        if module not in known:
            code, imports = parse(module)
            known[module] = provenance.sha(code), imports  # quicker to hash again
        return known[module]

    patch.setattr(provenance, "parsed", parsed)

    def prints() -> dict[str, str]:
        provenance.fingerprint.cache_clear()
        found = {stage: provenance.stage_source(stage, LAYERS.values()) for stage in provenance.STAGES}
        return found | {f"train {arch}": provenance.training_source(layer) for arch, layer in LAYERS.items()}

    def stale(file: str) -> set[str]:
        path, module = copy / file, file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        text = path.read_text()
        path.write_text(text + ("\nEDITED = 1\n" if path.suffix == ".py" else "\n// edited\n"))
        known.pop(module, None)
        after = prints()
        path.write_text(text)
        known.pop(module, None)
        return {stage for stage in before if before[stage] != after[stage]}

    before = prints()
    yield copy, stale
    patch.undo()
    provenance.fingerprint.cache_clear()


TRAIN = {f"train {arch}" for arch in ARCHS}
TUCKER = {"train ultramem", "train ultramem_v2", "train hybrid"}
# Modules that `kernels` loads by name, and what the compiler reads.
BY_NAME = sorted(
    str(path.relative_to(provenance.ROOT))
    for room in ("kernels/cpu/*.py", "kernels/cpu/src/*", "kernels/triton/*.py")
    for path in provenance.ROOT.glob(room)
)
BUILDS = {stage for stage, modules in provenance.STAGES.items() if provenance.ARCHITECTURES in modules}


@pytest.mark.parametrize(
    ("file", "must", "must_not"),
    [
        *((file, TRAIN | BUILDS, {"prepare", "gather"}) for file in BY_NAME if file != "kernels/cpu/attention.py"),
        ("kernels/cpu/attention.py", TRAIN | {"evaluate", "latency", "speed"}, {"prepare", "gather", "peers"}),
        ("models/tucker.py", TUCKER | BUILDS, TRAIN - TUCKER | {"prepare", "gather"}),
        ("models/pkm.py", {"train pkm"} | BUILDS, {"train dense", "train moe", "prepare"}),
        ("models/__init__.py", set(), TRAIN | {"prepare", "latency", "evaluate"}),
        ("evals/scores/harness.py", {"evaluate"}, TRAIN | {"prepare", "latency", "access", "gather"}),
        ("evals/scores/tasks/utils.py", {"evaluate"}, TRAIN | {"prepare", "latency"}),
        ("evals/scores/memory/items.py", {"evaluate"}, TRAIN | {"prepare", "latency", "report"}),
        ("evals/scores/memory/mixture.py", {"prepare"}, TRAIN),
        ("evals/decode/latency.py", {"latency"}, TRAIN | {"prepare", "evaluate"}),
        ("evals/claims/ledger.py", {"claims", "report"}, TRAIN | {"prepare", "evaluate", "latency", "access"}),
        ("reports/style.py", {"report"}, TRAIN | set(provenance.STAGES) - {"report"}),
        ("workflows/train.py", TRAIN, {"prepare", "latency", "evaluate"}),
        ("workflows/corpus.py", {"prepare"}, TRAIN),
    ],
)
def test_what_an_edit_of_the_tree_makes_stale(stale_after, file, must, must_not):
    _, stale = stale_after
    found = stale(file)
    assert must <= found
    assert not must_not & found


# Commands that make no number of a stage, and what only tests and ports of weights call; a package's own file holds names.
OUTSIDE = {
    *("evals/records/schema/__main__.py", "kernels/aot.py", "models/parity.py"),
    *("models/export.py", "models/hub.py", "models/insert.py", "models/stored.py", "reports/poster.py"),
    *("workflows/events.py", "workflows/watch.py"),
    *("workflows/adopt.py", "workflows/launch.py", "workflows/reference.py", "workflows/start.py", "workflows/worker.py"),
}


def test_every_module_is_part_of_a_stage(stale_after):
    copy, stale = stale_after
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*.py") if path.name != "__init__.py")
    assert len(files) > 80
    assert {file for file in files if not stale(file)} == OUTSIDE
