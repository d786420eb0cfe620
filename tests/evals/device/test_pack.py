"""The folder that is carried to a GPU is small, whole, and runs from there with nothing else installed."""

import os
import subprocess
import sys

import pytest

from evals.device import pack
from evals.device.parts import Bench
from evals.gpu import PARTS
from evals.records import schema
from evals.records.errors import UserError

# What the machine has: torch and what it needs itself, triton, pandas and what it needs itself, safetensors, tokenizers, yaml.
THERE = "torch torchgen functorch triton numpy pandas pyarrow safetensors tokenizers yaml dateutil pytz tzdata six "
THERE += "typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec setuptools pkg_resources"
BLOCK = f"""
import sys
from importlib.machinery import PathFinder

THERE = set({THERE!r}.split()) | {{"evals", "kernels", "models", "workflows"}}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        there = top in THERE or top in sys.stdlib_module_names or top.startswith("_")
        return super().find_spec(name, path, target) if there else None


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


@pytest.fixture(scope="module")
def bare(packed, tmp_path_factory):
    """Every part, from the folder, in a process in which other packages cannot be imported."""
    folder, _, _ = packed
    place = tmp_path_factory.mktemp("bare")
    (place / "sitecustomize.py").write_text(BLOCK)
    env = {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-m", "evals.gpu", "--out", place / "out", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done, place / "out"


def test_every_part_runs_from_there_with_nothing_else_installed(bare):
    done, out = bare
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line.split() for line in done.stdout.splitlines()[-len(PARTS) :]] == [[name, "finished"] for name in PARTS]
    for part in PARTS.values():
        assert part.name == "layers" or len(schema.read(out / f"{part.name}.csv", part.table))
    assert "is not importable here and is left out" in done.stdout
    assert "a CPU has none of a GPU's counters" in done.stdout


def test_every_row_says_what_measured_it(bare):
    for part in PARTS.values():
        frame = schema.read(bare[1] / f"{part.name}.csv", part.table)
        assert (frame.device.str.startswith("CPU: ")).all()
        for column in ("driver", "cuda", "torch", "triton", "python", "source"):
            assert (frame[column] != "").all(), column


def test_kernels_pass_and_the_papers_models_are_timed(bare):
    checks = schema.read(bare[1] / "checks.csv", "gpu_checks")
    assert checks.passed.all()
    assert set(checks.check) == {"float64", "repeats", "beyond 31 bits"}
    assert set(checks.kernel) == {"weighted_lookup", "row_dot", "product_topm", "tucker_topm", "grouped_mm"}
    decode = schema.read(bare[1] / "decode.csv", "gpu_decode")
    assert set(zip(decode.arch, decode.kv, decode.part, strict=True)) == {
        (arch, *view)
        for arch in ("dense", "moe2", "ultramem")
        for view in (("none", "ffn"), ("mha", "model"), ("gqa", "model"))
    }
    assert (decode.p50_ms > 0).all()
    assert (decode.predicted_ms > 0).all()
    assert len(schema.read(bare[1] / "latency.csv", "latency")) == len(decode)  # what the report and the ledger read
    (run,) = schema.read(bare[1] / "grid.csv", "gpu_grid").itertuples()
    assert (run.run, run.status, run.steps) == ("small", "finished", 2)


def test_the_folder_is_small_and_holds_no_more_than_it_needs(packed):
    folder, n_bytes, _ = packed
    assert n_bytes < 10_000_000 < pack.MOST_BYTES
    assert {path.name for path in folder.iterdir()} == {"kernels", "models", "evals", "workflows", "carried", "README.txt"}
    assert "data: carried/data" in (folder / "carried/runs/large/config.yaml").read_text()


def test_what_cannot_be_packed_is_one_sentence(packed, tmp_path, monkeypatch):
    folder, _, corpus = packed
    with pytest.raises(UserError, match="is not empty"):
        pack.pack(folder, corpus, [])
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"takes \d+ MB, 0 are allowed: carry a smaller corpus"):
        pack.pack(tmp_path / "new", corpus, [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds no prepared corpus: make one"):
        pack.pack(tmp_path / "other", None, [])


def test_without_a_carried_folder_the_grid_says_so(tmp_path, capsys):
    assert list(PARTS["grid"].items(Bench("cpu", tmp_path, tiny=True))) == []
    assert "holds no runs; make a folder that does" in capsys.readouterr().out
