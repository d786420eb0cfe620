"""Golden cases of the official layers, cases of other sizes computed by a plain rewrite of them, and planted errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.parity import LOOSE, TOLERANCE, compare, main

ROOT = Path(__file__).parent.parent
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


def official(seed, d_model, n_keys, d_key, d_value, m, heads, side, v2=None):
    """A case as the release computes it, by dense loops: the key grid has n_keys * side keys per axis.

    v2: dict of d_pre, n_layers, layer, view (keys per axis of the window), one (single projector), gelu.
    """
    torch.manual_seed(seed)
    rank = cores = 2
    view = v2["view"] if v2 else n_keys
    axis, n_view, n_all = view * side, view**2, (v2["n_layers"] if v2 else 1) * n_keys**2
    blocks = 1 if v2 and v2["one"] else side**2
    offset = v2["layer"] * n_keys**2 if v2 else 0

    def draw(*shape, std=1.0):
        return (std * torch.randn(*shape, dtype=torch.float64)).requires_grad_()

    p = {
        "query_weight": draw((4 if v2 else 2) * d_key, d_model),
        "keys": draw(heads, 2, axis, d_key, rank),
        "values": draw(n_all, d_value),
        "values_proj_weight": draw(d_model, blocks * d_value),
        "tucker_core": torch.rand(cores, heads, rank, rank, dtype=torch.float64).requires_grad_(),
    }
    if v2:
        p |= {"pre_values": draw(n_all, v2["d_pre"]), "pre_values_proj_weight": draw(v2["d_pre"], d_model)}
    gains = {name: torch.rand(d_key, dtype=torch.float64) for name in ("query_norm_weight", "keys_norm_weight")}
    x, shuffle = draw(2, 5, d_model), torch.randperm(axis**2)
    total = p["tucker_core"].sum(0)
    u, t = (side[..., 0] for side in (lambda s: (s[0], s[2].transpose(-1, -2)))(torch.linalg.svd(total.detach())))

    def normed(v, gain):
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    q = normed((x @ p["query_weight"].T)[..., : 2 * d_key].reshape(10, 2, d_key), gains["query_norm_weight"])
    k = normed(p["keys"].transpose(-1, -2), gains["keys_norm_weight"])  # head, axis, key, rank, d_key
    scores, indices, y = [], [], []
    for token, token_x in zip(q, x.reshape(10, -1), strict=True):
        pooled = torch.zeros(blocks, d_value, dtype=torch.float64)
        token_scores, token_indices = [], []
        for head in range(heads):
            row, col = (k[head, side_] @ token[side_] for side_ in (0, 1))  # key, rank
            rows, cols = (row @ u[head]).topk(m).indices, (col @ t[head]).topk(m).indices
            cells = torch.einsum("ar,crs,bs->abc", row[rows], p["tucker_core"][:, head], col[cols]).flatten(0, 1)
            best = cells.sum(-1).topk(m).indices
            index = rows[best // m] * axis + cols[best % m]
            token_scores.append(cells[best])
            token_indices.append(index)
            for cell, score in zip(index.tolist(), cells[best], strict=True):
                shuffled = int(shuffle[cell])
                at = (shuffled % n_view + offset) % n_all
                weight = score
                if v2:
                    hidden = p["pre_values"][at] @ (p["pre_values_proj_weight"] @ token_x)
                    weight = score * (torch.nn.functional.gelu(hidden) if v2["gelu"] else hidden)
                block = torch.zeros(blocks, 1, dtype=torch.float64)
                block[0 if blocks == 1 else shuffled // n_view] = 1
                pooled = pooled + block * (p["values"][at].view(cores, -1) * weight[:, None]).flatten()
        y.append(p["values_proj_weight"] @ pooled.flatten())
        scores.append(torch.cat(token_scores))
        indices.append(torch.cat(token_indices))
    y = torch.stack(y).view(2, 5, d_model)
    grad_y = torch.randn(2, 5, d_model, dtype=torch.float64)
    y.backward(grad_y)
    singular = torch.linalg.svd(total.float() if v2 else total)[1]
    aux = (singular[:, 1:] - 0.15).clamp(min=0).square().mean()
    meta = [d_model, n_keys, d_key, d_value, m, heads, side**2, rank, cores]
    if v2:
        meta = [d_model, axis, d_key, d_value, v2["d_pre"], m, heads, v2["n_layers"], v2["layer"], side]
        meta += [blocks, int(v2["gelu"]), rank, cores, n_all, n_view, offset]
    arrays = p | gains | {"x": x, "y": y, "grad_y": grad_y, "grad_x": x.grad, "tucker_u": u, "tucker_v": t}
    arrays |= {f"grad_{name}": value.grad for name, value in p.items()}
    arrays |= {"top_scores": torch.stack(scores), "top_indices": torch.stack(indices), "aux_loss": aux}
    arrays |= {"shuffle_index": shuffle, "meta": torch.tensor(meta)}
    return {name: value.detach().numpy() for name, value in arrays.items()}


V2 = {"d_pre": 2, "n_layers": 1, "layer": 0, "view": 5, "one": True, "gelu": False}
OTHERS = {
    "three heads, E=9": (11, 20, 7, 6, 8, 5, 3, 3, None),
    "E=16": (12, 16, 5, 4, 6, 3, 1, 4, None),
    "m above n": (13, 16, 4, 6, 4, 4, 2, 1, None),
    "ring, two heads": (
        14,
        24,
        6,
        5,
        8,
        4,
        2,
        1,
        V2 | {"d_pre": 3, "n_layers": 5, "layer": 4, "view": 9},
    ),
    "ring, E=9, one": (15, 16, 5, 4, 4, 3, 1, 3, V2 | {"d_pre": 6, "n_layers": 3, "layer": 1, "view": 7, "gelu": True}),
    "own table, E=4": (
        16,
        16,
        5,
        4,
        4,
        3,
        2,
        2,
        V2 | {"one": False},
    ),
}


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
