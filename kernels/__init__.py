"""The suite's hot operations as plain functions; where a tensor lives decides which implementation serves it.

CPU tensors go to C++ (`cpu/`, compiled at first use for the processor's instruction set), CUDA tensors to Triton (`triton/`),
anything else, and every machine without a compiler or Triton, to plain torch (`reference.py`, the definition of correct).
ULTRAMEM_KERNELS=auto|reference|native|triton overrides the choice; importing compiles nothing. `cross_entropy.py` stands on
torch's products, `experts.py` puts a mixture of experts together from `grouped_mm`, `attention.py` chooses between C++ and
torch's, `allocator.py` keeps a step's memory, `aot.py` compiles and judges the Triton kernels without a GPU. Above 300 lines,
because each operation's contract stands here, in its docstring, once for all implementations.

Letters: T tokens, H heads, n keys per axis, m picks per head, r Tucker rank, h cores, M = H*m picks per token, N table
rows, C value width, P pre-value width, G groups, S rows sorted by expert, E experts, D in, F out, V vocabulary.
"""

import functools
import importlib
import importlib.util
import os

import torch
from torch import Tensor

from kernels import reference
from kernels.cross_entropy import cross_entropy
from kernels.experts import sorted_experts

__all__ = [
    "backend",
    "cross_entropy",
    "experts",
    "grouped_mm",
    "heads",
    "key_scores",
    "linear",
    "product_topm",
    "rms_norm",
    "row_dot",
    "swiglu",
    "topm",
    "tucker_topm",
    "weighted_lookup",
]

BACKENDS = ("auto", "reference", "native", "triton")
# In full, because `evals.records.provenance` takes the modules that are loaded by name from such strings.
MODULES = {
    "native": {
        "topm": "kernels.cpu.topm",
        "product_topm": "kernels.cpu.topm",
        "tucker_topm": "kernels.cpu.topm",
        "weighted_lookup": "kernels.cpu.lookup",
        "row_dot": "kernels.cpu.lookup",
        "grouped_mm": "kernels.cpu.grouped_mm",
        "key_scores": "kernels.cpu.linear",
        "linear": "kernels.cpu.linear",
        "autocast_linear": "kernels.cpu.linear",
        "experts": "kernels.cpu.experts",
        "rms_norm": "kernels.cpu.rows",
        "swiglu": "kernels.cpu.rows",
        "heads": "kernels.cpu.rows",
    },
    "triton": {
        "product_topm": "kernels.triton.topm",
        "tucker_topm": "kernels.triton.topm",
        "weighted_lookup": "kernels.triton.lookup",
        "row_dot": "kernels.triton.lookup",
        "grouped_mm": "kernels.triton.grouped_mm",
    },
}


def backend(device: torch.device | str) -> str:
    """Which implementation serves tensors on `device`: "reference", "native" (C++) or "triton".

    Raises ValueError when ULTRAMEM_KERNELS is none of auto, reference, native, triton.
    """
    choice = os.environ.get("ULTRAMEM_KERNELS", "auto")
    if choice not in BACKENDS:
        raise ValueError(f"ULTRAMEM_KERNELS is {choice!r}; it must be one of {', '.join(BACKENDS)}")
    if choice != "auto":
        return choice
    return _automatic(torch.device(device).type)


@functools.cache
def _automatic(kind):
    if kind == "cpu" and importlib.import_module("kernels.cpu.build").available():
        return "native"
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "reference"


@functools.cache
def _function(operation, chosen):
    module = "kernels.reference" if chosen == "reference" else MODULES[chosen][operation]
    return getattr(importlib.import_module(module), operation)


def _serving(operation, tensor):
    return _function(operation, backend(tensor.device))


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def key_scores(query_THrK: Tensor, keys_HrnK: Tensor) -> Tensor:
    """Scores of every key of one axis (P1 eq. 4): query . key per head and rank, summed in float32 or wider.

    query_THrK: (T, H, r, K), or (T, H, 1, K) for one query that meets the keys of every rank; keys_HrnK: (H, r, n, K),
    K the width that one rank scores. Both of one dtype. Returns (T, H, n, r) in float32 or wider. Gradient: query, keys.
    """
    chosen = "native" if query_THrK.device.type == "cpu" and backend("cpu") == "native" else "reference"
    return _function("key_scores", chosen)(query_THrK, keys_HrnK)


def topm(score_Tn: Tensor, m: int) -> Tensor:
    """Positions (T, m), int64, of the m largest of each row of scores (T, n), best first, of equal ones the lowest first.

    No gradient. Raises ValueError for m outside 1..n.
    """
    _require(1 <= m <= score_Tn.shape[-1], f"topm: m={m} must lie in 1..{score_Tn.shape[-1]}")
    chosen = "native" if score_Tn.device.type == "cpu" and backend("cpu") == "native" else "reference"
    return _function("topm", chosen)(score_Tn.detach(), m)


def product_topm(row_THn: Tensor, col_THn: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Exact top-m of row[i] + col[j] over all n*n cells (product keys; Lample 2019, P1 sec. 3.1).

    row_THn, col_THn: (T, H, n) scores, any float type (half precision is widened to float32).
    Returns score_THm, best first, and index_THm = i*n + j (int64). Equal scores: lowest index first; where sums are equal
    only because rounding or -inf swallowed a difference, the cells of the better row and column come first.
    Gradient flows to row and col through the selected cells. Raises ValueError for unequal shapes or m outside 1..n*n.
    """
    _require(row_THn.dim() == 3 and row_THn.shape == col_THn.shape, "product_topm: row and col must both be (T, H, n)")
    n = row_THn.shape[-1]
    _require(1 <= m <= n * n, f"product_topm: m={m} must lie in 1..{n * n}, the number of cells")
    return _serving("product_topm", row_THn)(row_THn, col_THn, m)


def tucker_topm(
    row_THnr: Tensor, col_THnr: Tensor, core_hHrr: Tensor, u_Hr: Tensor, t_Hr: Tensor, m: int
) -> tuple[Tensor, Tensor]:
    """Tucker-decomposed retrieval (TDQKR; P1 eq. 4-12): filter each axis by one vector, re-score the cross exactly.

    row_THnr, col_THnr: (T, H, n, r) scores per rank; core_hHrr: (h, H, r, r); u_Hr, t_Hr: (H, r), leading singular
    vectors of the summed core. Rows are filtered by row.u, columns by col.t (the m largest of each, not by magnitude);
    of the crossing cells the top-m by the score summed over cores are kept.
    Returns score_THmh per core, best sum first, and index_THm = i*n + j (int64); equal sums: lowest index first.
    Gradient flows to row, col and core through the selected cells only, never to u and t.
    Raises ValueError for shapes that do not fit together or m outside 1..n*n.
    """
    sides_fit = row_THnr.dim() == 4 and row_THnr.shape == col_THnr.shape
    _require(sides_fit, "tucker_topm: row and col must both be (T, H, n, r)")
    _, n_heads, n, r = row_THnr.shape
    _require(
        core_hHrr.dim() == 4 and tuple(core_hHrr.shape[1:]) == (n_heads, r, r),
        f"tucker_topm: core must be (cores, {n_heads}, {r}, {r}), got {tuple(core_hHrr.shape)}",
    )
    _require(u_Hr.shape == t_Hr.shape == (n_heads, r), f"tucker_topm: u and t must be ({n_heads}, {r})")
    _require(1 <= m <= n * n, f"tucker_topm: m={m} must lie in 1..{n * n}, the number of cells")
    return _serving("tucker_topm", row_THnr)(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m)


def weighted_lookup(
    values_NC: Tensor, row_TM: Tensor, weight_TMh: Tensor, group_TM: Tensor | None = None, n_groups: int = 1
) -> Tensor:
    """Weighted sum of table rows, per group (IVE, P1 eq. 13-15) and per core slice (MCS, P1 eq. 16-17).

    out[t, g, slice k] = sum over picks of group g of weight[t, pick, k] * values[row, slice k], C cut into h slices.
    values_NC: (N, C); row_TM: (T, M) int64 in 0..N-1; weight_TMh: (T, M, h); group_TM: (T, M) int64 in 0..n_groups-1.
    Returns (T, n_groups, C) in the table's dtype, summed in float32 or wider. Gradient: values (dense), weight.
    Raises ValueError for shapes that do not fit, and on a CPU IndexError for a row or group out of
    range; on CUDA the check would wait for the device, and is left to the caller.
    """
    _require(row_TM.dim() == 2, "weighted_lookup: row must be (T, M)")
    _require(weight_TMh.dim() == 3 and weight_TMh.shape[:2] == row_TM.shape, "weighted_lookup: weight must be (T, M, cores)")
    width, n_cores = values_NC.shape[1], weight_TMh.shape[2]
    _require(width % n_cores == 0, f"weighted_lookup: value width {width} is not divisible by {n_cores} cores")
    _require(group_TM is not None or n_groups == 1, "weighted_lookup: n_groups > 1 needs group_TM")
    _require(group_TM is None or group_TM.shape == row_TM.shape, "weighted_lookup: group must have the shape of row")
    return _serving("weighted_lookup", values_NC)(values_NC, row_TM, weight_TMh, group_TM, n_groups)


def row_dot(table_NP: Tensor, row_TM: Tensor, x_TP: Tensor) -> Tensor:
    """<table[row], x> for every pick: the pre-value weights of PEER and UltraMemV2 (P2 eq. 13-15).

    table_NP: (N, P); row_TM: (T, M) int64 in 0..N-1; x_TP: (T, P). Returns (T, M) in the wider of the two dtypes,
    summed in float32 or wider. Gradient: table (dense), x.
    Raises ValueError for shapes that do not fit, and on a CPU IndexError for a row out of range (see
    `weighted_lookup`).
    """
    _require(
        row_TM.dim() == 2 and x_TP.shape == (row_TM.shape[0], table_NP.shape[1]),
        f"row_dot: x must be ({row_TM.shape[0]}, {table_NP.shape[1]}), got {tuple(x_TP.shape)}",
    )
    return _serving("row_dot", table_NP)(table_NP, row_TM, x_TP)


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """x[rows of expert e] @ weight[e] for every expert: the matrix product of a dropless mixture of experts.

    x_SD: (S, D), rows sorted by expert; weight_EDF: (E, D, F), on a CPU also a transposed (E, F, D), which is faster for
    few rows; counts_E: (E,) int64 rows per expert, on x's device, zero allowed. Returns (S, F) in x's dtype. Takes part in
    autocast as torch.mm does. Gradient: x, weight (dense).
    Raises ValueError for shapes or dtypes that do not fit, and on a CPU for counts that do not add up to S.
    """
    if torch.is_autocast_enabled(x_SD.device.type):
        dtype = torch.get_autocast_dtype(x_SD.device.type)
        x_SD, weight_EDF = x_SD.to(dtype), weight_EDF.to(dtype)
    _require(
        x_SD.dim() == 2 and weight_EDF.dim() == 3 and x_SD.shape[1] == weight_EDF.shape[1],
        f"grouped_mm: x {tuple(x_SD.shape)} and weight {tuple(weight_EDF.shape)} must be (S, D) and (E, D, F)",
    )
    _require(x_SD.dtype == weight_EDF.dtype, f"grouped_mm: x is {x_SD.dtype}, weight is {weight_EDF.dtype}")
    _require(counts_E.shape == weight_EDF.shape[:1], "grouped_mm: counts must hold one number per expert")
    return _serving("grouped_mm", x_SD)(x_SD, weight_EDF, counts_E)


def experts(x_TD: Tensor, up_EDU: Tensor, down_EFD: Tensor, expert_Tk: Tensor, weight_Tk: Tensor, glu: bool = True) -> Tensor:
    """Sum over a token's k experts of weight * down^T act(up^T x): the feed-forward networks of a mixture of experts.

    x_TD: (T, D); up_EDU: (E, D, U), gate beside up and U = 2F with `glu` (SwiGLU), U = F without (GELU); down_EFD: (E, F, D);
    expert_Tk: (T, k) int64 in 0..E-1; weight_Tk: (T, k). Returns (T, D) in x's dtype, under autocast in its dtype.
    Gradient: all but expert_Tk. Raises ValueError for shapes that do not fit; an expert out of range is the caller's fault.
    """
    _require(
        x_TD.dim() == 2
        and up_EDU.shape == (len(down_EFD), x_TD.shape[1], down_EFD.shape[1] * (2 if glu else 1))
        and down_EFD.shape[2] == x_TD.shape[1]
        and expert_Tk.shape == weight_Tk.shape == (len(x_TD), expert_Tk.shape[-1]),
        f"experts: x {tuple(x_TD.shape)}, up {tuple(up_EDU.shape)}, down {tuple(down_EFD.shape)}, expert "
        f"{tuple(expert_Tk.shape)} and weight {tuple(weight_Tk.shape)} do not fit together",
    )
    dtype = _narrowed(x_TD)
    if _fits_cpp(x_TD, dtype) and up_EDU.dtype in _CPP_DTYPES:
        return _function("experts", "native")(x_TD.to(dtype), up_EDU, down_EFD, expert_Tk, weight_Tk, glu)
    return sorted_experts(x_TD, up_EDU, down_EFD, expert_Tk, weight_Tk, glu)


_CPP_DTYPES = (torch.float32, torch.bfloat16)


def _narrowed(x):
    """The dtype that a product of x has: autocast's, or x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _fits_cpp(x, dtype):
    return (
        x.device.type == "cpu" and x.dtype in _CPP_DTYPES and dtype in (x.dtype, torch.bfloat16) and backend("cpu") == "native"
    )


def linear(x_XD: Tensor, weight_FD: Tensor) -> Tensor:
    """x W^T, as torch.nn.functional.linear has it, for a layer of a model.

    On a CPU few rows without gradients or autocast, decoding that is, go to a product that streams the weights once, and
    autocast to bfloat16 is served by products of float32 where those are faster; all else is torch's. x_XD: (..., D);
    weight_FD: (F, D). Returns (..., F) in their common dtype, or autocast's. Gradient: x, weight.
    """
    if x_XD.device.type == "cpu" and backend("cpu") == "native":
        if torch.is_autocast_enabled("cpu"):
            if _narrowed(x_XD) == torch.bfloat16:
                return _function("autocast_linear", "native")(x_XD, weight_FD)
        elif not torch.is_grad_enabled():
            return _function("linear", "native")(x_XD, weight_FD)
    return torch.nn.functional.linear(x_XD, weight_FD)


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32; the result has x's dtype, or autocast's, for which it is made.

    Gradient: x, weight.
    """
    dtype = _narrowed(x_XD)
    if _fits_cpp(x_XD, dtype):
        return _function("rms_norm", "native")(x_XD, weight_D, eps, dtype)
    return torch.nn.functional.rms_norm(x_XD, x_XD.shape[-1:], weight_D.to(x_XD.dtype), eps).to(dtype)


def swiglu(x_XG: Tensor) -> Tensor:
    """silu(gate) * up of x_XG, (..., 2F): gate beside up. Returns (..., F). Gradient: x."""
    if _fits_cpp(x_XG, x_XG.dtype):
        return _function("swiglu", "native")(x_XG)
    return reference.swiglu(x_XG)


def heads(
    qkv_BTNK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    cos_TK: Tensor,
    sin_TK: Tensor,
    n_heads: int,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as attention takes them: RMS norm over each head (None: none), then rotary positions.

    qkv_BTNK: (B, T, n_heads + 2 * n_kv_heads, K); q_weight_K, k_weight_K: (K,) gains; cos_TK, sin_TK: (T, K), every
    frequency twice. Returns q (B, n_heads, T, K), k and v (B, n_kv_heads, T, K), in qkv's dtype. Gradient: qkv, gains.
    """
    arguments = (qkv_BTNK, q_weight_K, k_weight_K, cos_TK, sin_TK, n_heads, eps)
    if _fits_cpp(qkv_BTNK, qkv_BTNK.dtype) and qkv_BTNK.shape[-1] <= 1024:
        return _function("heads", "native")(*arguments)
    return reference.heads(*arguments)
