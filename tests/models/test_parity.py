"""Golden cases of the official layers, cases of other sizes computed by a plain rewrite of them, and planted errors."""

import subprocess
import sys

import numpy as np
import pytest
from official_layers import OTHERS, official
from repository import ROOT

from models.parity import LOOSE, TOLERANCE, compare, main

GOLDEN = ROOT / "../shared/golden"
FILES = sorted(GOLDEN.glob("*.npz"))
if not FILES:
    FILES = [pytest.param(None, marks=pytest.mark.skip(reason="no golden tensors at ../shared/golden"))]


def wrong(path):
    return {name for name, error in compare(path).items() if not error <= LOOSE.get(name, TOLERANCE)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path and path.stem)
def test_golden_case(path):
    errors = compare(path)
    with np.load(path) as case:
        outcomes = {name for name in case if name.startswith("grad_") and name != "grad_y"}
    assert {"y", "top_scores", "top_indices", "aux_loss"} | outcomes <= set(errors)
    assert not wrong(path), errors


@pytest.mark.parametrize("sizes", OTHERS.values(), ids=OTHERS.keys())
def test_cases_of_other_sizes(sizes, tmp_path):
    path = tmp_path / "case.npz"
    np.savez(path, **official(*sizes))
    assert not wrong(path), compare(path)


@pytest.fixture(scope="module")
def small_case():
    return official(*OTHERS["own table, E=4"])


def test_one_changed_number_fails(small_case, tmp_path):
    path = tmp_path / "case.npz"
    unread = {"meta", "tucker_u", "tucker_v", "shuffle_index"}
    for name in sorted(set(small_case) - unread):
        changed = small_case[name].copy()
        gradient = small_case.get(f"grad_{name}", np.ones_like(changed))
        at = np.unravel_index(np.abs(gradient).argmax(), changed.shape)
        changed[at] += 1 if changed.dtype.kind == "i" else 1e-5 * max(abs(changed[at]), 1e-3)
        np.savez(path, **small_case | {name: changed})
        assert wrong(path), name
    zero = small_case["grad_values"].copy()
    zero[np.argwhere(np.abs(zero).sum(1) == 0)[0, 0], 0] = 1e-6
    np.savez(path, **small_case | {"grad_values": zero})
    assert wrong(path) == {"grad_values"}
    for name, at, value in (("tucker_u", (0, 0), 0.1), ("y", (0, 0, 0), np.nan)):
        changed = small_case[name].copy()
        changed[at] = value
        np.savez(path, **small_case | {name: changed})
        assert wrong(path), name


def test_inconsistent_files_are_one_sentence(small_case, tmp_path):
    path = tmp_path / "case.npz"
    for name, at, value, words in (
        ("meta", 2, 7, "query_weight is"),
        ("meta", 15, 16, "meta says axis"),
        ("meta", 14, 10**9, "values has 25 rows"),
        ("shuffle_index", 3, 4, "not a permutation"),
    ):
        changed = small_case[name].copy()
        changed[at] = value if changed[at] != value else value + 1
        np.savez(path, **small_case | {name: changed})
        with pytest.raises(ValueError, match=words):
            compare(path)
    for name in ("keys", "top_scores"):
        np.savez(path, **{other: array for other, array in small_case.items() if other != name})
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            compare(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="cannot be read"):
        compare(path)


def test_command(small_case, tmp_path, capsys, monkeypatch):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, **small_case)
    np.savez(bad, **small_case | {"y": small_case["y"] * (1 + 1e-8)})
    monkeypatch.setattr(sys, "argv", ["parity", str(good)])
    assert main() == 0
    monkeypatch.setattr(sys, "argv", ["parity", str(good), str(bad)])
    assert main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if "FAILED" in line] == [["bad.npz", "y"]]
    done = subprocess.run([sys.executable, "-m", "models.parity", "nowhere.npz"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.npz does not exist")
    assert done.stderr.count("\n") == 1
