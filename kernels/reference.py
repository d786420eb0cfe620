"""Plain-torch definition of every kernel: what "correct" means here, and the fallback where nothing faster runs.

Every function differentiates by autograd and works in float64, so it also serves `torch.autograd.gradcheck`.
Half-precision scores are widened to float32 before anything is compared.

Letters: T tokens, H heads, n keys per axis, m picks per head, r Tucker rank, h cores, M = H*m picks per token,
N table rows, C value width, c = C/h, P pre-value width, G groups, S sorted rows, E experts, D in, F out.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """float32 for half precision, unchanged otherwise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def widen_touched(table_NC: Tensor, row_TM: Tensor) -> tuple[Tensor, Tensor]:
    """A half-precision table cut down to the rows in use and widened, so that their gradients add up in float32."""
    if widen(table_NC) is table_NC:
        return table_NC, row_TM
    used_U, row_TM = row_TM.unique(return_inverse=True)
    return widen(table_NC[used_U]), row_TM


def stable_topm(score_Xn: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Values and positions of the m largest, best first, the lowest position first among equals (P1 sec. 3.1)."""
    value_Xn, index_Xn = torch.sort(score_Xn, dim=-1, descending=True, stable=True)
    return value_Xn[..., :m], index_Xn[..., :m]


def topm(score_Tn: Tensor, m: int) -> Tensor:
    return stable_topm(score_Tn, m)[1]


@functools.lru_cache(maxsize=64)
def staircase(m: int, n: int) -> tuple[Tensor, ...]:
    """Ranks (a, b) with (a+1)(b+1) <= m, both below n: the only pairs of sorted rows and columns that can hold a top-m
    sum, because each such cell is dominated by (a+1)(b+1)-1 others."""
    pairs = [(a, b) for a in range(min(m, n)) for b in range(min(m // (a + 1), n))]
    return tuple(torch.tensor(side) for side in zip(*pairs, strict=True))


def best_cells(score_THp: Tensor, cell_THp: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Top-m of candidate cells by (score, then lowest cell number): positions among the candidates and cell numbers."""
    cell_THp, by_cell_THp = torch.sort(cell_THp, dim=-1)
    _, pick_THm = stable_topm(score_THp.gather(-1, by_cell_THp), m)
    return by_cell_THp.gather(-1, pick_THm), cell_THp.gather(-1, pick_THm)


def product_topm(row_THn: Tensor, col_THn: Tensor, m: int) -> tuple[Tensor, Tensor]:
    n = row_THn.shape[-1]
    row_THn, col_THn = widen(row_THn), widen(col_THn)
    with torch.no_grad():
        rank_a, rank_b = (rank.to(row_THn.device) for rank in staircase(m, n))
        value_a, index_a = stable_topm(row_THn, min(m, n))
        value_b, index_b = stable_topm(col_THn, min(m, n))
        cell_THp = index_a[..., rank_a] * n + index_b[..., rank_b]
        _, index_THm = best_cells(value_a[..., rank_a] + value_b[..., rank_b], cell_THp, m)
    return row_THn.gather(-1, index_THm // n) + col_THn.gather(-1, index_THm % n), index_THm


def tucker_topm(
    row_THnr: Tensor, col_THnr: Tensor, core_hHrr: Tensor, u_Hr: Tensor, t_Hr: Tensor, m: int
) -> tuple[Tensor, Tensor]:
    n, r = row_THnr.shape[-2:]
    row_THnr, col_THnr, core_hHrr = widen(row_THnr), widen(col_THnr), widen(core_hHrr)
    core_hHrr, u_Hr, t_Hr = (x.to(row_THnr.dtype) for x in (core_hHrr, u_Hr, t_Hr))

    def take(side_THnr, index_THk):
        return side_THnr.gather(-2, index_THk[..., None].expand(*index_THk.shape, r))

    with torch.no_grad():
        _, index_a = stable_topm((row_THnr * u_Hr[:, None]).sum(-1), min(m, n))
        _, index_b = stable_topm((col_THnr * t_Hr[:, None]).sum(-1), min(m, n))
        row_THar, col_THbr = take(row_THnr, index_a), take(col_THnr, index_b)
        cross_THab = torch.einsum("thar,hrs,thbs->thab", row_THar, core_hHrr.sum(0), col_THbr)
        cell_THab = index_a[..., :, None] * n + index_b[..., None, :]
        _, index_THm = best_cells(cross_THab.flatten(-2), cell_THab.flatten(-2), m)
    row_THmr, col_THmr = take(row_THnr, index_THm // n), take(col_THnr, index_THm % n)
    return torch.einsum("thmr,chrs,thms->thmc", row_THmr, core_hHrr, col_THmr), index_THm


def weighted_lookup(
    values_NC: Tensor, row_TM: Tensor, weight_TMh: Tensor, group_TM: Tensor | None = None, n_groups: int = 1
) -> Tensor:
    dtype = values_NC.dtype
    values_NC, row_TM = widen_touched(values_NC, row_TM)
    (n_tokens, n_picks), (n_rows, width), n_cores = row_TM.shape, values_NC.shape, weight_TMh.shape[-1]
    if group_TM is None:
        group_TM = torch.zeros_like(row_TM)
    # One bag per (token, group, core) over a table of row slices: nothing of size T*M*C is ever stored.
    group_TM, order_TM = torch.sort(group_TM, dim=-1, stable=True)
    row_TM = row_TM.gather(-1, order_TM)
    weight_TMh = weight_TMh.gather(1, order_TM[..., None].expand_as(weight_TMh))
    size_TG = F.one_hot(group_TM, n_groups).sum(1)
    start_TG = size_TG.cumsum(-1) - size_TG + torch.arange(n_tokens, device=row_TM.device)[:, None] * n_picks
    core_h = torch.arange(n_cores, device=row_TM.device)[:, None]
    slice_hX = row_TM.reshape(1, -1) * n_cores + core_h
    start_hX = start_TG.reshape(1, -1) + core_h * (n_tokens * n_picks)
    out_XC = F.embedding_bag(
        slice_hX.flatten(),
        values_NC.reshape(n_rows * n_cores, width // n_cores),
        start_hX.flatten(),
        mode="sum",
        per_sample_weights=weight_TMh.permute(2, 0, 1).flatten().to(values_NC.dtype),
    )
    out_hTGc = out_XC.view(n_cores, n_tokens, n_groups, width // n_cores)
    return out_hTGc.permute(1, 2, 0, 3).reshape(n_tokens, n_groups, width).to(dtype)


def row_dot(table_NP: Tensor, row_TM: Tensor, x_TP: Tensor) -> Tensor:
    dtype = torch.promote_types(table_NP.dtype, x_TP.dtype)
    table_NP, row_TM = widen_touched(table_NP, row_TM)
    return (F.embedding(row_TM, table_NP) * widen(x_TP)[:, None]).sum(-1).to(dtype)


def key_scores(query_THrK: Tensor, keys_HrnK: Tensor) -> Tensor:
    return torch.einsum("thrk,hrnk->thnr", widen(query_THrK), widen(keys_HrnK))


def check_counts(x_SD: Tensor, counts_E: Tensor) -> list[int]:
    """The counts of grouped_mm; ValueError where they do not add up."""
    counts = counts_E.tolist()
    if sum(counts) != len(x_SD) or min(counts) < 0:
        raise ValueError(f"grouped_mm: counts must be >= 0 and add up to the {len(x_SD)} rows of x")
    return counts


def grouped_mm(x_SD: Tensor, weight_EDF: Tensor, counts_E: Tensor) -> Tensor:
    counts = check_counts(x_SD, counts_E)
    return torch.cat([x @ weight for x, weight in zip(x_SD.split(counts), weight_EDF.unbind(), strict=True)])


def swiglu(x_XG: Tensor) -> Tensor:
    gate_XF, up_XF = x_XG.chunk(2, dim=-1)
    return F.silu(gate_XF) * up_XF


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair of halves turned by position times frequency."""
    left, right = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-right, left), dim=-1) * sin_TK


def heads(
    qkv_BTNK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    cos_TK: Tensor,
    sin_TK: Tensor,
    n_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n_kv_heads, dtype = (qkv_BTNK.shape[2] - n_heads) // 2, qkv_BTNK.dtype
    q_BHTK, k_BGTK, v_BGTK = qkv_BTNK.transpose(1, 2).split((n_heads, n_kv_heads, n_kv_heads), dim=1)

    def turned(x_BHTK: Tensor, weight_K: Tensor | None) -> Tensor:
        if weight_K is not None:
            x_BHTK = F.rms_norm(x_BHTK, x_BHTK.shape[-1:], weight_K.to(x_BHTK.dtype), eps)
        return rotate(x_BHTK, cos_TK, sin_TK).to(dtype)

    return turned(q_BHTK, q_weight_K), turned(k_BGTK, k_weight_K), v_BGTK
