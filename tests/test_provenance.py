"""Fingerprints follow what matters: an architecture's own file retrains it alone, a comment nothing."""

import pytest

from workflows import provenance


@pytest.fixture
def tree(tmp_path, monkeypatch):
    files = {
        "models/base.py": "x = 1\n",
        "models/a.py": "from models.base import x\n\ny = x\n",
        "models/b.py": "from models import base\n",
        "kernels/__init__.py": "",
        "kernels/fast.cpp": "int f();",
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


def test_native_source_counts(tree):
    folder, prints = tree
    (folder / "models/base.py").write_text("import kernels\n\nx = 1\n")
    before = prints()
    (folder / "kernels/fast.cpp").write_text("int g();")
    assert all(before[name] != value for name, value in prints().items() if name in ("a", "b", "go"))


def test_each_architecture_has_its_own_source():
    from models import ARCHS, arch_module

    sources = {name: provenance.training_source(arch_module(name)) for name in ARCHS}
    assert len(set(sources.values())) == len(ARCHS)
