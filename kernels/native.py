"""C++ kernels for CPU tensors: builds native.cpp at first use, loads it with ctypes, wraps each op for autograd.

The library is cached under $XDG_CACHE_HOME/ultramem (default ~/.cache/ultramem), named by a hash of source, compiler,
flags and processor. Without a working compiler `available()` is False, one warning says why, and `kernels` uses
reference.py. `python -m kernels.native` prints the state. Threads: torch.get_num_threads().

float64 anywhere, float16 tables and grids of 2^32 cells or more are served by reference.py; scores and weights of half
precision are widened to float32, tables stay float32 or bfloat16.

Letters as in reference.py.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from kernels import reference

SOURCE = Path(__file__).with_name("native.cpp")
BASE_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in order: an old compiler may not know the processor, a compiler without OpenMP gives one thread.
EXTRA_FLAGS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native",),
    (),
)
# Where the C++ product beats one torch.mm per expert: narrow experts always, wider ones up to these mean rows (decoding).
GROUPED_NARROW, GROUPED_WIDE = 64, 512
GROUPED_FEW_ROWS = {torch.float32: 2, torch.bfloat16: 8}
# Where the C++ product that streams nn.Linear's weights beats MKL (float32) and oneDNN (bfloat16): always with few rows,
# and with weights at least so wide, up to many rows.
STREAM_FEW_ROWS = 16
STREAM_WIDE = {torch.float32: 128, torch.bfloat16: 1024}
STREAM_MANY_ROWS = {torch.float32: 1 << 40, torch.bfloat16: 96}


class BuildError(RuntimeError):
    """No shared library could be made; the message says why in one line."""


def _compiler():
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache_dir():
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultramem"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without HOME and without an entry in passwd
        return Path(tempfile.mkdtemp(prefix="ultramem-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="ultramem-"))


def build() -> Path:
    """Path of the shared library, compiled unless cached. Safe when several processes build at once.

    Raises BuildError when no compiler is found or none of the flag sets compiles.
    """
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    identity = "\0".join((SOURCE.read_text(), version, _processor(), repr((BASE_FLAGS, EXTRA_FLAGS))))
    target = _cache_dir() / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    for flags in EXTRA_FLAGS:
        handle, partial = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        command = [compiler, *BASE_FLAGS, *flags, str(SOURCE), "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            os.replace(partial, target)
            return target
        os.unlink(partial)
    complaint = next(iter(done.stderr.strip().splitlines()), "no message")
    raise BuildError(f"{compiler} cannot compile {SOURCE.name}: {complaint}")


@functools.cache
def _library():
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as problem:
        warnings.warn(f"kernels: the C++ path is off, plain torch is used instead ({problem})", stacklevel=2)
        return None


def available() -> bool:
    """Whether the C++ library could be built and loaded; builds it on the first call."""
    return _library() is not None


def _loaded():
    if not available():
        raise BuildError("the C++ kernels are not available; unset ULTRAMEM_KERNELS or install a C++ compiler")
    return _library()


def _kind(value):
    if isinstance(value, float):
        return ctypes.c_float
    return ctypes.c_int64 if isinstance(value, int) else ctypes.c_void_p


def _argument(value):
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return (ctypes.c_int64 * len(value))(*value) if isinstance(value, tuple) else value


def _call(name, *arguments, work):
    """Run a library function; `work` counts the independent items: one item never wakes a second thread."""
    function = getattr(_loaded(), name)
    if function.argtypes is None:
        function.argtypes = [*map(_kind, arguments), ctypes.c_int]
    return function(*map(_argument, arguments), max(1, min(torch.get_num_threads(), work)))


def _checked(name, *arguments, work):
    if _call(name, *arguments, work=work):
        raise IndexError(f"{name}: a row or group number is out of range")


def _needs_grad(*tensors):
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


# ---- top-m


def _product_topm(row_THn, col_THn, m):
    row_THn, col_THn = (x if x.stride(-1) == 1 else x.contiguous() for x in (row_THn, col_THn))
    T, H, n = row_THn.shape
    score_THm = row_THn.new_empty(T, H, m)
    index_THm = torch.empty(T, H, m, dtype=torch.int64)
    sides = (row_THn, *row_THn.stride()[:2], col_THn, *col_THn.stride()[:2])
    _call("product_topm", *sides, T, H, n, m, score_THm, index_THm, work=T * H)
    return score_THm, index_THm


class _ProductTopm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THn, col_THn, m):
        score_THm, index_THm = _product_topm(row_THn, col_THn, m)
        ctx.mark_non_differentiable(index_THm)
        ctx.save_for_backward(index_THm)
        ctx.n = row_THn.shape[-1]
        return score_THm, index_THm

    @staticmethod
    def backward(ctx, d_score_THm, _):
        (index_THm,) = ctx.saved_tensors
        T, H, m = index_THm.shape
        d_row_THn, d_col_THn = d_score_THm.new_zeros(2, T, H, ctx.n)
        picks = (d_score_THm.contiguous(), index_THm, T * H, ctx.n, m)
        _call("product_topm_backward", *picks, d_row_THn, d_col_THn, work=T * H)
        return d_row_THn, d_col_THn, None


def product_topm(row_THn, col_THn, m):
    row_THn, col_THn = reference.widen(row_THn), reference.widen(col_THn)
    if not row_THn.dtype == col_THn.dtype == torch.float32 or row_THn.shape[-1] >= 1 << 16:
        return reference.product_topm(row_THn, col_THn, m)
    run = _ProductTopm.apply if _needs_grad(row_THn, col_THn) else _product_topm
    return run(row_THn, col_THn, m)


def _tucker_topm(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
    T, H, n, r = row_THnr.shape
    h = core_hHrr.shape[0]
    score_THmh = row_THnr.new_empty(T, H, m, h)
    index_THm = torch.empty(T, H, m, dtype=torch.int64)
    sides = (row_THnr, row_THnr.stride(), col_THnr, col_THnr.stride())
    _call("tucker_topm", *sides, core_hHrr, u_Hr, t_Hr, T, H, n, r, h, m, score_THmh, index_THm, work=T * H)
    return score_THmh, index_THm


class _TuckerTopm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
        score_THmh, index_THm = _tucker_topm(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m)
        ctx.mark_non_differentiable(index_THm)
        ctx.save_for_backward(row_THnr, col_THnr, core_hHrr, index_THm)
        return score_THmh, index_THm

    @staticmethod
    def backward(ctx, d_score_THmh, _):
        row_THnr, col_THnr, core_hHrr, index_THm = ctx.saved_tensors
        (T, H, n, r), (h, m) = row_THnr.shape, (core_hHrr.shape[0], index_THm.shape[-1])
        d_row_THnr, d_col_THnr, d_core_hHrr = map(torch.zeros_like, (row_THnr, col_THnr, core_hHrr))
        sides = (row_THnr, row_THnr.stride(), col_THnr, col_THnr.stride(), core_hHrr)
        grads = (d_row_THnr, d_row_THnr.stride(), d_col_THnr, d_col_THnr.stride(), d_core_hHrr)
        _call("tucker_topm_backward", *sides, d_score_THmh.contiguous(), index_THm, T, H, n, r, h, m, *grads, work=T * H)
        return d_row_THnr, d_col_THnr, d_core_hHrr, None, None, None


def tucker_topm(row_THnr, col_THnr, core_hHrr, u_Hr, t_Hr, m):
    scores = tuple(map(reference.widen, (row_THnr, col_THnr, core_hHrr, u_Hr.detach(), t_Hr.detach())))
    if any(x.dtype != torch.float32 for x in scores) or row_THnr.shape[-2] >= 1 << 16:
        return reference.tucker_topm(*scores, m)
    row_THnr, col_THnr, *small = scores
    run = _TuckerTopm.apply if _needs_grad(row_THnr, col_THnr, core_hHrr) else _tucker_topm
    return run(row_THnr, col_THnr, *(x.contiguous() for x in small), m)


# ---- table reads

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _lookup(values_NC, row_TM, weight_TMh, group_TM, G):
    (N, C), (T, M), h = values_NC.shape, row_TM.shape, weight_TMh.shape[-1]
    out_TGC = values_NC.new_empty(T, G, C)
    name = f"lookup_{SUFFIX[values_NC.dtype]}"
    _checked(name, values_NC, N, C, row_TM, T, M, weight_TMh, h, group_TM, G, out_TGC, work=T)
    return out_TGC


def _slice_dot(values_NC, row_TM, h, group_TM, grad_TGC):
    (N, C), (T, M), G = values_NC.shape, row_TM.shape, grad_TGC.shape[1]
    out_TMh = grad_TGC.new_empty(T, M, h)
    name = f"slice_dot_{SUFFIX[values_NC.dtype]}"
    _checked(name, values_NC, N, C, row_TM, T, M, h, group_TM, G, grad_TGC, out_TMh, work=T)
    return out_TMh


def _lookup_backward(values_NC, row_TM, weight_TMh, group_TM, grad_TGC, need_values, need_weight):
    if not need_values:
        return None, _slice_dot(values_NC, row_TM, weight_TMh.shape[-1], group_TM, grad_TGC) if need_weight else None
    (N, C), (T, M), (h, G) = values_NC.shape, row_TM.shape, (weight_TMh.shape[-1], grad_TGC.shape[1])
    d_values_NC = torch.empty_like(values_NC)
    d_weight_TMh = torch.empty_like(weight_TMh) if need_weight else None
    picks = (row_TM, T, M, weight_TMh, h, group_TM, G, grad_TGC)
    name = f"lookup_backward_{SUFFIX[values_NC.dtype]}"
    _checked(name, values_NC, N, C, *picks, d_values_NC, d_weight_TMh, work=N)
    return d_values_NC, d_weight_TMh


class _WeightedLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_NC, row_TM, weight_TMh, group_TM, G):
        ctx.save_for_backward(values_NC, row_TM, weight_TMh, group_TM)
        return _lookup(values_NC, row_TM, weight_TMh, group_TM, G)

    @staticmethod
    def backward(ctx, d_out_TGC):
        need_values, _, need_weight = ctx.needs_input_grad[:3]
        grad_TGC = d_out_TGC.float().contiguous()
        d_values_NC, d_weight_TMh = _lookup_backward(*ctx.saved_tensors, grad_TGC, need_values, need_weight)
        return d_values_NC, None, d_weight_TMh, None, None


def weighted_lookup(values_NC, row_TM, weight_TMh, group_TM=None, n_groups=1):
    if values_NC.dtype not in SUFFIX or weight_TMh.dtype == torch.float64:
        return reference.weighted_lookup(values_NC, row_TM, weight_TMh, group_TM, n_groups)
    row_TM, group_TM = row_TM.long().contiguous(), None if group_TM is None else group_TM.long().contiguous()
    values_NC, weight_TMh = values_NC.contiguous(), weight_TMh.float().contiguous()
    run = _WeightedLookup.apply if _needs_grad(values_NC, weight_TMh) else _lookup
    return run(values_NC, row_TM, weight_TMh, group_TM, n_groups)


class _RowDot(torch.autograd.Function):
    """The lookup's weight gradient seen from the other side: its own gradients are a lookup and a table gradient."""

    @staticmethod
    def forward(ctx, table_NP, row_TM, x_TP):
        ctx.save_for_backward(table_NP, row_TM, x_TP)
        return _slice_dot(table_NP, row_TM, 1, None, x_TP[:, None])[..., 0]

    @staticmethod
    def backward(ctx, d_out_TM):
        table_NP, row_TM, x_TP = ctx.saved_tensors
        need_table, _, need_x = ctx.needs_input_grad
        weight_TM1 = d_out_TM.float().contiguous()[..., None]
        d_table_NP, _ = _lookup_backward(table_NP, row_TM, weight_TM1, None, x_TP[:, None], need_table, False)
        d_x_TP = _lookup(table_NP, row_TM, weight_TM1, None, 1)[:, 0].float() if need_x else None
        return d_table_NP, None, d_x_TP


def row_dot(table_NP, row_TM, x_TP):
    if table_NP.dtype not in SUFFIX or x_TP.dtype == torch.float64:
        return reference.row_dot(table_NP, row_TM, x_TP)
    dtype = torch.promote_types(table_NP.dtype, x_TP.dtype)
    table_NP, row_TM, x_TP = table_NP.contiguous(), row_TM.long().contiguous(), x_TP.float().contiguous()
    if _needs_grad(table_NP, x_TP):
        return _RowDot.apply(table_NP, row_TM, x_TP).to(dtype)
    return _slice_dot(table_NP, row_TM, 1, None, x_TP[:, None])[..., 0].to(dtype)


# ---- experts


def _turned(weight_EDF):
    """Whether every output's weights lie together, as in nn.Linear."""
    return weight_EDF.mT.is_contiguous() and not weight_EDF.is_contiguous()


def _small_tiles(weight_EDF, n_rows):
    """Suffix of the C++ product that serves these experts, None where one torch.mm per expert does."""
    (E, D, F), dtype = weight_EDF.shape, weight_EDF.dtype
    level = {torch.float32: 1, torch.bfloat16: 2}.get(dtype, 3)
    if _loaded().grouped_level() < level or (dtype == torch.bfloat16 and (D % 2 or F % 2)):
        return None
    few_rows = max(D, F) <= GROUPED_WIDE and n_rows <= GROUPED_FEW_ROWS[dtype] * E
    return SUFFIX[dtype] if few_rows or max(D, F) <= GROUPED_NARROW else None


def _grain(dtype):
    """Row counts are rounded up to multiples of this: oneDNN, which serves bf16, compiles a kernel per shape (about 3 ms),
    and an expert's count changes every step; the BLAS that serves float32 does not care."""
    return 32 if dtype == torch.bfloat16 else 1


def _rows_times(x_SD, weights, counts, out_SF, grain):
    """out = rows of x times the weight of their expert. A rounded product runs into the next experts' rows, which are
    written after it; where none are left it gets a copy of its own."""
    start = 0
    for count, weight in zip(counts, weights, strict=True):
        if not count:
            continue
        wide, stop = -(-count // grain) * grain, start + count
        if start + wide <= len(x_SD):
            torch.mm(x_SD[start : start + wide], weight, out=out_SF[start : start + wide])
        else:
            rows = x_SD.new_zeros(wide, x_SD.shape[1])
            rows[:count] = x_SD[start:stop]
            out_SF[start:stop] = torch.mm(rows, weight)[:count]
        start = stop


def _padded(x_SD, counts_E, grain):
    """x with every expert's rows filled up with zeros to a multiple of `grain`, and the filled counts."""
    wide_E = (counts_E + grain - 1) // grain * grain
    shift_E = (wide_E - counts_E).cumsum(0) - (wide_E - counts_E)
    place_S = torch.arange(len(x_SD)) + shift_E.repeat_interleave(counts_E)
    return x_SD.new_zeros(int(wide_E.sum()), x_SD.shape[1]).index_copy_(0, place_S, x_SD), wide_E.tolist()


def _streams(dtype, rows, width):
    """Whether the product of so many rows and weights so wide goes to the C++ that reads them as nn.Linear stores them."""
    if _loaded().grouped_level() < {torch.float32: 1, torch.bfloat16: 2}.get(dtype, 3):
        return False
    return rows <= STREAM_FEW_ROWS or (width >= STREAM_WIDE[dtype] and rows <= STREAM_MANY_ROWS[dtype])


def linear(x_XD, weight_FD):
    x_MD = x_XD.reshape(-1, x_XD.shape[-1])
    if x_XD.dtype != weight_FD.dtype or not (_streams(x_MD.dtype, *x_MD.shape) and weight_FD.is_contiguous()):
        return torch.nn.functional.linear(x_XD, weight_FD)
    (M, D), F = x_MD.shape, len(weight_FD)
    y_MF = x_MD.new_empty(M, F)
    _call(f"linear_{SUFFIX[x_MD.dtype]}", x_MD.contiguous(), weight_FD, torch.tensor([M]), 1, D, F, y_MF, work=F // 64)
    return y_MF.view(*x_XD.shape[:-1], F)


def rms_norm(x_XD, weight_D, eps):
    if x_XD.dtype not in SUFFIX or weight_D.dtype != x_XD.dtype:
        return torch.nn.functional.rms_norm(x_XD, x_XD.shape[-1:], weight_D, eps)
    x_XD, y_XD = x_XD.contiguous(), torch.empty(x_XD.shape, dtype=x_XD.dtype)
    rows = x_XD.numel() // max(1, x_XD.shape[-1])
    _call(f"rms_norm_{SUFFIX[x_XD.dtype]}", x_XD, weight_D.contiguous(), rows, x_XD.shape[-1], float(eps), y_XD, work=1)
    return y_XD


def key_scores(query_THrK, keys_HrnK):
    (T, H, _, K), (_, r, n, _), dtype = query_THrK.shape, keys_HrnK.shape, query_THrK.dtype
    # Nothing else multiplies bfloat16 into float32.
    served = _streams(dtype, 1 if dtype == torch.bfloat16 else T, K)
    if _needs_grad(query_THrK, keys_HrnK) or dtype != keys_HrnK.dtype or not served:
        return reference.key_scores(query_THrK, keys_HrnK)
    name = "scores_bf16" if dtype == torch.bfloat16 else "linear_f32"
    score_HrTn = torch.empty(H, r, T, n)
    query_HrTK = query_THrK.permute(1, 2, 0, 3).expand(-1, r, -1, -1).contiguous()
    _call(name, query_HrTK, keys_HrnK.contiguous(), torch.full((H * r,), T), H * r, K, n, score_HrTn, work=n // 64)
    return score_HrTn.permute(2, 0, 3, 1)


def _grouped_mm(x_SD, weight_EDF, counts_E):
    E, D, F = weight_EDF.shape
    y_SF = x_SD.new_empty(len(x_SD), F)
    if _turned(weight_EDF):
        # Experts are many shapes of few rows, for each of which oneDNN would compile a kernel: their width does not matter.
        if _streams(x_SD.dtype, len(x_SD) // max(1, int((counts_E > 0).sum())), 1 << 30):
            _call(f"linear_{SUFFIX[x_SD.dtype]}", x_SD, weight_EDF, counts_E, E, D, F, y_SF, work=F // 64)
        else:
            _rows_times(x_SD, weight_EDF.unbind(), counts_E.tolist(), y_SF, _grain(x_SD.dtype))
    elif suffix := _small_tiles(weight_EDF, len(x_SD)):
        _call(f"grouped_{suffix}", x_SD, weight_EDF, counts_E, E, D, F, y_SF, work=E)
    else:
        _rows_times(x_SD, weight_EDF.unbind(), counts_E.tolist(), y_SF, _grain(x_SD.dtype))
    return y_SF


class _GroupedMm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_SD, weight_EDF, counts_E):
        ctx.save_for_backward(x_SD, weight_EDF, counts_E)
        return _grouped_mm(x_SD, weight_EDF, counts_E)

    @staticmethod
    def backward(ctx, d_y_SF):
        x_SD, weight_EDF, counts_E = ctx.saved_tensors
        d_y_SF, (E, D, F), suffix = d_y_SF.contiguous(), weight_EDF.shape, _small_tiles(weight_EDF, len(x_SD))
        d_x_SD = torch.empty_like(x_SD) if ctx.needs_input_grad[0] else None
        d_weight_EDF = torch.empty_like(weight_EDF) if ctx.needs_input_grad[1] else None
        if suffix:
            if d_x_SD is not None:
                _call(f"grouped_dx_{suffix}", d_y_SF, weight_EDF, counts_E, E, D, F, d_x_SD, work=E)
            if d_weight_EDF is not None:
                _call(f"grouped_dw_{suffix}", x_SD, d_y_SF, counts_E, E, D, F, d_weight_EDF, work=E)
            return d_x_SD, d_weight_EDF, None
        grain = _grain(x_SD.dtype)
        if d_x_SD is not None:
            _rows_times(d_y_SF, weight_EDF.mT.unbind(), counts_E.tolist(), d_x_SD, grain)
        if d_weight_EDF is not None:
            counts = counts_E.tolist()
            if grain > 1:
                (x_SD, counts), (d_y_SF, _) = (_padded(rows, counts_E, grain) for rows in (x_SD, d_y_SF))
            d_weight_EDF[counts_E == 0] = 0
            for x, d_y, d_weight in zip(x_SD.split(counts), d_y_SF.split(counts), d_weight_EDF.unbind(), strict=True):
                if len(x):
                    torch.mm(x.T, d_y, out=d_weight)
        return d_x_SD, d_weight_EDF, None


def grouped_mm(x_SD, weight_EDF, counts_E):
    counts_E = counts_E.long().contiguous()
    if int(counts_E.sum()) != len(x_SD) or bool((counts_E < 0).any()):
        raise ValueError(f"grouped_mm: counts must be >= 0 and add up to the {len(x_SD)} rows of x")
    if _needs_grad(x_SD, weight_EDF):
        return _GroupedMm.apply(x_SD.contiguous(), weight_EDF.contiguous(), counts_E)
    return _grouped_mm(x_SD.contiguous(), weight_EDF if _turned(weight_EDF) else weight_EDF.contiguous(), counts_E)


# ---- cross-entropy


def softmax_step(logits_KV, target_K, scale, need_grad):
    """Loss per row (0 where the target is negative); with need_grad the logits become the gradient of scale * loss."""
    loss_K = torch.empty(len(target_K), dtype=torch.float32)
    name = f"softmax_step_{SUFFIX[logits_KV.dtype]}"
    _call(name, logits_KV, target_K, *logits_KV.shape, float(scale), loss_K, int(need_grad), work=len(target_K))
    return loss_K


if __name__ == "__main__":
    print(f"native kernels: {'built, ' + str(build()) if available() else 'off, plain torch is used'}")
