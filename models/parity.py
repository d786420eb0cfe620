"""Compares our layers with golden cases of the official release: python -m models.parity FILE.npz ...

A case is one forward and backward of an official layer in float64: parameters, input, output, picks, gradients. The layer
that trains here is built from the case's sizes with the official variant, takes the case's parameters, and everything the
file says came out is computed again. Prints the largest relative error of every array, and exits 1 above the tolerance.

Errors are elementwise, |ours - theirs| / max(|theirs|, 1e-4 max |theirs|): one changed number of a large array shows, and
rounding in numbers that are zero but for cancellation does not. The filter's pair u, v is checked too, up to what float32
SVD gives, and so is that `shuffle_index` is a permutation: a wrong one might change no pick.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from models.memory import Memory
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config

TOLERANCE = 1e-9
LOOSE = {"aux_loss": 1e-6, "tucker_u": 1e-5, "tucker_v": 1e-5}
META_V1 = ("d_model", "n_keys", "d_key", "d_value", "top_m", "n_mem_heads", "expansion", "tucker_rank", "n_cores")
META_V2 = (
    *("d_model", "axis", "d_key", "d_value", "d_pre_value", "top_m", "n_mem_heads", "n_layers", "layer", "key_expand"),
    *("value_expand", "gelu", "tucker_rank", "n_cores", "n_rows", "view_rows", "offset"),
)
OFFICIAL: dict[str, Any] = {"variant": "code", "placement": ("all",), "d_ff": 1, "query_conv": 1}


def load(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path) as file:
            return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give the path of a golden .npz file") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a golden .npz file: {error}") from error


def build(case: dict[str, Tensor]) -> Memory:
    """The layer of a case, with the case's parameters, in float64.

    Raises:
        ValueError: the case's sizes contradict each other or describe a layer that the release cannot compute.
    """
    meta = case["meta"].tolist()
    if len(meta) == len(META_V1):
        sizes = dict(zip(META_V1, meta, strict=True))
        d_model, n_rows = sizes.pop("d_model"), sizes["n_keys"] ** 2
        layer, n_layers, cfg = 0, 1, UltraMemConfig(**sizes, **OFFICIAL)
    elif len(meta) == len(META_V2):
        sizes = dict(zip(META_V2, meta, strict=True))
        d_model, layer, n_layers = sizes["d_model"], sizes["layer"], sizes["n_layers"]
        n_rows = sizes["n_rows"]
        n_keys = round((sizes["n_rows"] / n_layers) ** 0.5)
        cfg = UltraMemV2Config(
            **{name: sizes[name] for name in ("d_key", "d_value", "d_pre_value", "top_m", "n_mem_heads")},
            **{name: sizes[name] for name in ("tucker_rank", "n_cores")},
            n_keys=n_keys,
            expansion=sizes["key_expand"] ** 2,
            projection="each" if sizes["value_expand"] > 1 else "one",
            activation="gelu" if sizes["gelu"] else "none",
            share="ring",
            share_ratio=sizes["view_rows"] / sizes["n_rows"],
            **OFFICIAL,
        )
    else:
        raise ValueError(f"meta holds {len(meta)} numbers; UltraMem's has {len(META_V1)}, UltraMemV2's {len(META_V2)}")
    if n_rows != len(case["values"]):
        raise ValueError(f"values has {len(case['values'])} rows; meta asks for {n_rows}")
    memory: Any = torch.nn.ModuleList(placed.module for placed in cfg.memories(d_model, n_layers)).double()[layer]
    if len(meta) == len(META_V2):
        ours = (memory.axis, memory.window.rows, memory.window.side**2, memory.window.offset, cfg.blocks)
        theirs = tuple(sizes[k] for k in ("axis", "n_rows", "view_rows", "offset", "value_expand"))
        if ours != theirs:
            raise ValueError(f"meta says axis, rows, view, offset, blocks = {theirs}; the other sizes give {ours}")
    for name, parameter in official_names(memory).items():
        if case[name].shape != shown(name, parameter).shape:
            raise ValueError(f"{name} is {tuple(case[name].shape)}; meta asks for {tuple(shown(name, parameter).shape)}")
        with torch.no_grad():
            shown(name, parameter).copy_(case[name])
    if not torch.equal(case["shuffle_index"].sort().values, torch.arange(memory.axis**2)):
        raise ValueError(f"shuffle_index is not a permutation of {memory.axis**2} addresses")
    memory.shuffle = case["shuffle_index"]
    return memory


def official_names(memory: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a `Memory` with Tucker retrieval, under the release's names."""
    names = {
        "query_weight": memory.query.weight,
        "query_norm_weight": memory.query_norm.weight,
        "keys": memory.keys_cHngQ,
        "keys_norm_weight": memory.key_norm.weight,
        "tucker_core": memory.selector.core_hHrr,
        "tucker_u": memory.selector.u_Hr,
        "tucker_v": memory.selector.t_Hr,
        "values": memory.table.values_NC,
        "values_proj_weight": memory.output.weight,
    }
    if memory.table.pre_values_NP is not None:
        names |= {"pre_values": memory.table.pre_values_NP, "pre_values_proj_weight": memory.pre_project.weight}
    return names


def shown(name: str, ours: Tensor) -> Tensor:
    """A view of our tensor in the file's layout: the release keeps heads before axes and a key's ranks last."""
    return ours.transpose(0, 1).transpose(-1, -2) if name in ("keys", "grad_keys") else ours


def compute(memory: Any, case: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything the file says came out of the official layer, from ours."""
    x = case["x"].clone().requires_grad_()
    score_THmh, index_THm = memory.select(*memory.scores(x))
    y, _ = memory(x)
    y.backward(case["grad_y"])
    out = {
        "y": y,
        "top_scores": score_THmh.flatten(1, 2),
        "top_indices": index_THm.flatten(1),
        "aux_loss": memory.selector.excess(case["aux_loss"].dtype),  # the released V2 computes it in float32
        "grad_x": x.grad,
    }
    parameters = official_names(memory)
    for name in case:
        if name.startswith("grad_") and name not in ("grad_x", "grad_y"):
            grad = parameters[name.removeprefix("grad_")].grad
            if grad is None:
                raise ValueError(f"{name}: ours got no gradient")
            out[name] = shown(name, grad)
    memory.selector.refresh()
    return out | {"tucker_u": memory.selector.u_Hr, "tucker_v": memory.selector.t_Hr}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double(), theirs.double()
    floor = 1e-4 * theirs.abs().max()
    error = (ours - theirs).abs() / theirs.abs().clamp(min=floor if floor > 0 else 1.0)
    return error.nan_to_num(nan=float("inf")).max().item()


def compare(path: Path) -> dict[str, float]:
    """Array name -> largest relative error. Raises ValueError for a file that is missing, unreadable or inconsistent."""
    case = load(path)
    try:
        computed = compute(build(case), case)
        return {name: relative_error(ours, case[name]) for name, ours in computed.items()}
    except KeyError as error:
        raise ValueError(f"{path}: array {error} is missing") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.parity",
        description=__doc__.split("\n")[0],
        epilog="example: python -m models.parity golden/case.npz",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz", help="golden cases of the official layers")
    failed = False
    for path in parser.parse_args().files:
        try:
            errors = compare(path)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for name, error in errors.items():
            wrong = not error <= LOOSE.get(name, TOLERANCE)
            failed |= wrong
            print(f"{path.name}  {name:<28} {error:.2e}{'  FAILED' if wrong else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
