"""The plain-torch kernels against brute force and float64 gradcheck, the C++ kernels against the plain-torch ones."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT
from torch.autograd import gradcheck

import kernels
from kernels import reference
from kernels.cpu import build
from kernels.cpu.cross_entropy import softmax_step

native = SimpleNamespace(**{operation: kernels._function(operation, "native") for operation in kernels.MODULES["native"]})
needs_compiler = pytest.mark.skipif(not build.available(), reason="no C++ compiler")
BOTH = [
    pytest.param(reference, id="reference"),
    pytest.param(native, id="native", marks=needs_compiler),
]


def close(got, wanted, tolerance=1e-5):
    """Largest error relative to the largest wanted number."""
    got, wanted = got.double(), wanted.double()
    assert got.shape == wanted.shape
    if wanted.numel():
        error = (got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"relative error {error:.2e}"


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, *inputs, cotangent_dtype=None):
    """Output and its gradients for a fixed random cotangent, rounded to `cotangent_dtype` first where given."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    cotangent = numbers(*out.shape, seed=7).to(cotangent_dtype or out.dtype).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, inputs, cotangent)


def same_as(got, wanted, tolerance=1e-5):
    """Outputs and gradients as `gradients` returns them."""
    close(got[0], wanted[0], tolerance)
    for a, b in zip(got[1], wanted[1], strict=True):
        close(a, b, tolerance)


def brute_topm(row, col, m):
    cells = (row[..., :, None] + col[..., None, :]).flatten(-2)
    score, index = torch.sort(cells, dim=-1, descending=True, stable=True)
    return score[..., :m], index[..., :m]


# ---- product top-m


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (2, 4), (7, 1), (7, 10), (7, 49), (40, 32), (129, 16), (300, 42), (512, 128), (20, 300)]
)
def test_product_topm_is_brute_force(module, n, m):
    row, col = numbers(3, 2, n, seed=n), numbers(3, 2, n, seed=m + 1000)
    score, index = module.product_topm(row, col, m)
    wanted_score, wanted_index = brute_topm(row, col, m)
    assert torch.equal(score, wanted_score)
    assert torch.equal(index, wanted_index)


@pytest.mark.parametrize("module", BOTH)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_product_topm_ties_take_the_lowest_index(module, n, data):
    m = data.draw(st.integers(1, n * n))
    spread = data.draw(st.integers(1, 4))  # few distinct whole numbers: sums are exact and most cells tie
    row, col = (integers(spread, 2, 1, n, seed=data.draw(st.integers(0, 999))).float() for _ in range(2))
    if data.draw(st.booleans()):
        row[..., :: data.draw(st.integers(1, 3))] = -torch.inf
    score, index = module.product_topm(row, col, m)
    wanted_score, wanted_index = brute_topm(row, col, m)
    assert torch.equal(score, wanted_score)
    assert torch.equal(index[score > -torch.inf], wanted_index[score > -torch.inf])
    assert torch.equal(row.gather(-1, index // n) + col.gather(-1, index % n), score)
    assert all(len(set(cells)) == m for cells in index.flatten(0, 1).tolist())


@pytest.mark.parametrize("module", BOTH)
def test_topm_of_nothing_but_ties_minus_infinity_and_no_tokens(module):
    for value in (0.0, -0.0, 3.5, -torch.inf):
        _, index = module.product_topm(torch.full((1, 1, 600), value), torch.full((1, 1, 600), value), 700)
        assert torch.equal(index[0, 0], torch.arange(700))
    signed = torch.zeros(1, 1, 40)
    signed[..., ::2] = -0.0
    assert torch.equal(module.product_topm(signed, signed, 50)[1][0, 0], torch.arange(50))
    score, index = module.product_topm(torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), 3)
    assert score.shape == index.shape == (0, 2, 3)


@needs_compiler
def test_native_topm_takes_every_nan_for_the_largest():
    """As torch.topk does, whatever the sign bit, which hardware sets on the NaN of 0/0."""
    row = torch.zeros(1, 1, 40)
    row[0, 0, 7], row[0, 0, 30] = torch.nan, torch.copysign(torch.tensor(torch.nan), torch.tensor(-1.0))
    for key in (row, -row):
        score, index = native.product_topm(key, torch.arange(40.0).view(1, 1, 40), 80)
        assert score[0, 0].isnan().all()
        assert set((index[0, 0] // 40).tolist()) == {7, 30}


def test_cache_folder_without_a_home(monkeypatch):
    """A container's user without HOME and without an entry in passwd."""

    def homeless(_cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "home", classmethod(homeless))
    assert build._cache_dir().is_dir()


def test_native_topm_survives_nan():
    row, col = numbers(4, 2, 100), numbers(4, 2, 100, seed=1)
    row[0], row[1, 0, 3], col[2, 1, ::2] = torch.nan, torch.nan, -torch.nan
    _, index = native.product_topm(row, col, 30)
    assert index.min() >= 0
    assert index.max() < 100 * 100
    core = numbers(2, 2, 2, 2)
    _, index = native.tucker_topm(*(torch.stack([x, x], -1) for x in (row, col)), core, core[0, 0], core[0, 1], 30)
    assert index.min() >= 0
    assert index.max() < 100 * 100


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_topm_gradient_counts_the_picks(module, dtype):
    n, m = 30, 12
    row, col = numbers(5, 2, n, dtype=dtype), numbers(5, 2, n, seed=1, dtype=dtype)
    _, index = module.product_topm(row, col, m)
    score, (d_row, d_col) = gradients(lambda *x: module.product_topm(*x, m)[0], row, col)
    assert score.dtype == torch.float32
    cotangent = numbers(5, 2, m, seed=7)
    close(d_row, torch.zeros(5, 2, n).scatter_add(-1, index // n, cotangent), 2**-8 if dtype == torch.bfloat16 else 1e-6)
    close(d_col, torch.zeros(5, 2, n).scatter_add(-1, index % n, cotangent), 2**-8 if dtype == torch.bfloat16 else 1e-6)


@needs_compiler
def test_native_topm_reads_strided_scores():
    both = numbers(6, 50, 2, 2)
    row, col = both[..., 0].transpose(1, 2), both[..., 1].transpose(1, 2)
    assert not row.is_contiguous()
    wanted = reference.product_topm(row, col, 9)
    assert all(map(torch.equal, native.product_topm(row, col, 9), wanted))
    sides = numbers(2, 5, 2, 3, 40)  # rank before key, as a matrix product leaves it
    row, col = sides.transpose(-1, -2)
    core, u, t = numbers(2, 2, 3, 3), numbers(2, 3, seed=1), numbers(2, 3, seed=2)
    same_as(*(gradients(lambda *x, k=k: k.tucker_topm(*x, u, t, 9)[0], row, col, core) for k in (native, reference)))


# ---- Tucker top-m


def brute_tucker(row, col, core, u, t, m):
    """Loops over heads: filter, cross, sort (P1 eq. 6-12)."""
    T, H, n, _ = row.shape
    score, index = torch.empty(T, H, m, len(core), dtype=row.dtype), torch.empty(T, H, m, dtype=torch.long)
    k = min(m, n)
    for i in range(T):
        for h in range(H):
            a = torch.sort(row[i, h] @ u[h], descending=True, stable=True)[1][:k].sort()[0]
            b = torch.sort(col[i, h] @ t[h], descending=True, stable=True)[1][:k].sort()[0]
            cross = torch.stack([row[i, h, a] @ core_rr @ col[i, h, b].T for core_rr in core[:, h]])
            best = torch.sort(cross.sum(0).flatten(), descending=True, stable=True)[1][:m]
            index[i, h] = a[best // k] * n + b[best % k]
            score[i, h] = cross.flatten(1)[:, best].T
    return score, index


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("n", "r", "h", "m"), [(1, 1, 1, 1), (5, 2, 2, 25), (17, 1, 2, 8), (64, 2, 1, 32), (150, 3, 2, 42), (300, 2, 2, 128)]
)
def test_tucker_topm_is_brute_force(module, n, r, h, m):
    H = 2
    row, col = numbers(3, H, n, r, seed=n), numbers(3, H, n, r, seed=n + 1)
    core, u, t = numbers(h, H, r, r, seed=2).abs(), numbers(H, r, seed=3).abs(), numbers(H, r, seed=4).abs()
    score, index = module.tucker_topm(row, col, core, u, t, m)
    wanted_score, wanted_index = brute_tucker(*(x.double() for x in (row, col, core, u, t)), m)
    close(score.sum(-1), wanted_score.sum(-1))
    same = (index == wanted_index).float().mean()
    assert same > 0.99
    close(score[index == wanted_index], wanted_score[index == wanted_index])


@pytest.mark.parametrize("module", BOTH)
def test_tucker_topm_ties_take_the_lowest_index(module):
    ones = torch.ones(2, 1, 30, 2)
    _, index = module.tucker_topm(ones, ones, torch.ones(1, 1, 2, 2), torch.ones(1, 2), torch.ones(1, 2), 8)
    assert torch.equal(index[0, 0], torch.arange(8))  # 8 cells of row 0, whose 8 lowest columns passed the filter
    _, index = module.tucker_topm(ones, ones, torch.zeros(1, 1, 2, 2), torch.ones(1, 2), torch.ones(1, 2), 40)
    assert torch.equal(index[0, 0], torch.arange(40))


@needs_compiler
@pytest.mark.parametrize(("r", "h", "m"), [(1, 1, 5), (2, 2, 12), (3, 4, 40)])
def test_native_tucker_gradients(r, h, m):
    row, col, core = numbers(4, 2, 20, r), numbers(4, 2, 20, r, seed=1), numbers(h, 2, r, r, seed=2)
    u, t = numbers(2, r, seed=3), numbers(2, r, seed=4)
    same_as(*(gradients(lambda *x, k=k: k.tucker_topm(*x, u, t, m)[0], row, col, core) for k in (native, reference)))


# ---- table reads


def brute_lookup(values, row, weight, group, n_groups):
    (T, M), h = row.shape, weight.shape[-1]
    picked = (values[row].unflatten(-1, (h, -1)) * weight[..., None]).flatten(-2)
    hot = F.one_hot(group, n_groups).to(picked.dtype) if M else picked.new_zeros(T, 0, n_groups)
    return torch.einsum("tmc,tmg->tgc", picked, hot)


LOOKUPS = [  # T, M, rows, width, cores, groups
    (0, 3, 5, 16, 1, 1),
    (1, 1, 1, 1, 1, 1),
    (1, 37, 50, 200, 2, 4),
    (24, 37, 400, 200, 1, 1),
    (9, 16, 4, 64, 2, 3),
    (5, 84, 3000, 33, 3, 2),
]


ROUNDING = [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)]


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("shape", LOOKUPS)
@pytest.mark.parametrize(("dtype", "tolerance"), ROUNDING)
def test_weighted_lookup_and_gradients(module, shape, dtype, tolerance):
    T, M, N, C, h, G = shape
    values, weight = numbers(N, C, dtype=dtype), numbers(T, M, h, seed=1, dtype=dtype)
    row, group = integers(N, T, M), integers(G, T, M, seed=1)
    got = gradients(lambda v, w: module.weighted_lookup(v, row, w, group, G), values, weight)
    assert got[0].dtype == dtype
    exact = lambda v, w: brute_lookup(v, row, w, group, G)  # noqa: E731
    same_as(got, gradients(exact, values.double(), weight.double(), cotangent_dtype=dtype), tolerance)
    if G == 1:
        assert torch.equal(module.weighted_lookup(values, row, weight), got[0])


@needs_compiler
def test_native_lookup_one_gradient_at_a_time():
    values, weight, row = numbers(30, 8), numbers(4, 6, 2, seed=1), integers(30, 4, 6)
    both = gradients(lambda v, w: native.weighted_lookup(v, row, w), values, weight)[1]
    assert torch.equal(gradients(lambda v: native.weighted_lookup(v, row, weight), values)[1][0], both[0])
    close(gradients(lambda w: native.weighted_lookup(values, row, w), weight)[1][0], both[1], 1e-6)


@needs_compiler
def test_native_reads_do_not_depend_on_threads():
    values, weight = numbers(500, 48), numbers(64, 20, 2, seed=1)
    row, group = integers(500, 64, 20), integers(4, 64, 20)
    run = lambda: gradients(lambda v, w: native.weighted_lookup(v, row, w, group, 4), values, weight)  # noqa: E731
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(2)
        two = run()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    assert all(map(torch.equal, one[1], two[1]))


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(("T", "M", "N", "P"), [(0, 3, 5, 16), (1, 1, 1, 1), (1, 40, 60, 24), (31, 37, 400, 72), (6, 9, 2, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), ROUNDING)
def test_row_dot_and_gradients(module, T, M, N, P, dtype, tolerance):
    table, x, row = numbers(N, P, dtype=dtype), numbers(T, P, seed=1, dtype=dtype), integers(N, T, M)
    got = gradients(lambda a, b: module.row_dot(a, row, b), table, x)
    assert got[0].dtype == dtype
    exact = lambda a, b: torch.einsum("tmp,tp->tm", a[row], b)  # noqa: E731
    same_as(got, gradients(exact, table.double(), x.double(), cotangent_dtype=dtype), tolerance)


@needs_compiler
@pytest.mark.parametrize("bad", [-1, 30, 2**40])
def test_native_refuses_rows_outside_the_table(bad):
    values, weight, row = numbers(30, 8), numbers(4, 6, 1, seed=1), integers(30, 4, 6)
    row[3, 5] = bad
    with pytest.raises(IndexError, match="out of range"):
        native.weighted_lookup(values, row, weight)
    with pytest.raises(IndexError, match="out of range"):
        native.row_dot(values, row, numbers(4, 8))
    with pytest.raises(IndexError, match="out of range"):
        native.weighted_lookup(values, row.clamp(0, 29), weight, row, 30)


# ---- experts


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(("E", "D", "F_"), [(1, 1, 1), (9, 64, 26), (5, 7, 5), (6, 64, 64), (3, 130, 100), (4, 600, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ["none", "one", "skewed"])
def test_grouped_mm_and_gradients(module, E, D, F_, dtype, rows):
    counts = {
        "none": torch.zeros(E, dtype=torch.long),
        "one": torch.eye(E, dtype=torch.long)[-1],
        "skewed": torch.arange(E) ** 2 * 17 + (torch.arange(E) % 2 == 0) * 3,
    }[rows]
    x, weight = numbers(int(counts.sum()), D, dtype=dtype), numbers(E, D, F_, seed=1, dtype=dtype)
    expert = torch.repeat_interleave(torch.arange(E), counts)
    got = gradients(lambda a, b: module.grouped_mm(a, b, counts), x, weight)
    assert got[0].dtype == dtype
    exact = lambda a, b: torch.einsum("sd,sdf->sf", a, b[expert])  # noqa: E731
    wanted = gradients(exact, x.double(), weight.double(), cotangent_dtype=dtype)
    same_as(got, wanted, 1e-5 if dtype == torch.float32 else 2**-8)


def test_grouped_mm_takes_strided_rows_and_autocast():
    counts = torch.tensor([3, 0, 4])
    x, weight = numbers(16, 7).T, numbers(3, 12, 16, seed=1).transpose(1, 2)
    wanted = reference.grouped_mm(x.double(), weight.double(), counts)
    close(kernels.grouped_mm(x, weight, counts), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.grouped_mm(x, weight, counts)
    assert out.dtype == torch.bfloat16
    close(out, wanted, 2**-7)


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("counts", [[3, 3], [9, -1], [4, 5]])
def test_grouped_mm_refuses_counts_that_do_not_add_up(module, counts):
    with pytest.raises(ValueError, match="add up to the 8 rows"):
        module.grouped_mm(numbers(8, 4), numbers(2, 4, 4), torch.tensor(counts))


# ---- cross-entropy


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_compiler)])
def backend(request, monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", request.param)
    return request.param


def head(S=70, D=24, V=333, scale=1.0):
    target = integers(V, S, seed=2)
    target[::9] = -100
    return numbers(S, D) * scale, numbers(V, D, seed=1), target


def plain_loss(target):
    return lambda hidden, weight: F.cross_entropy(hidden @ weight.T, target)


@pytest.mark.parametrize("chunk", [1, 32, 1000, None])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_cross_entropy_fp32(backend, chunk, scale):
    hidden, weight, target = head(scale=scale)
    got = gradients(lambda h, w: kernels.cross_entropy(h, w, target, chunk=chunk), hidden, weight)
    wanted = gradients(plain_loss(target), hidden.double(), weight.double(), cotangent_dtype=torch.float32)
    tolerance = 2e-6 * max(1, scale)  # logits of +-30 * scale keep that much of float32
    same_as(got, wanted, tolerance)
    per_token = kernels.cross_entropy(hidden, weight, target, chunk=chunk, reduction="none")
    close(per_token, F.cross_entropy(hidden.double() @ weight.double().T, target, reduction="none"), tolerance)
    assert not per_token.requires_grad


@needs_compiler
def test_native_exponential_is_accurate():
    x = torch.linspace(0, 86, 4001)
    logits = torch.stack([torch.zeros_like(x), -x], -1)
    softmax_step(logits, torch.zeros(len(x), dtype=torch.long), 1.0, True)
    wanted = torch.sigmoid(-x.double())  # the gradient at the other class: exp(-x) over its sum with 1
    assert ((logits[:, 1].double() - wanted).abs() / wanted).max() < 4e-7
    logits = torch.tensor([[0.0, -torch.inf, -1e30], [torch.nan, 0.0, 1.0]])
    loss = softmax_step(logits, torch.tensor([0, 1]), 1.0, True)
    assert torch.equal(logits[0], torch.zeros(3))
    assert loss[0] == 0
    assert loss[1].isnan()


def test_cross_entropy_bf16(backend):
    hidden, weight, target = head(S=512, D=64, V=1000)
    hidden = hidden / 4
    got = gradients(lambda h, w: kernels.cross_entropy(h, w, target, precision="bf16"), hidden, weight)
    wanted = gradients(plain_loss(target), hidden.double(), weight.double(), cotangent_dtype=torch.float32)
    assert abs(got[0] / wanted[0] - 1) < 1e-3
    for a, b in zip(got[1], wanted[1], strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 1e-2


def test_cross_entropy_without_gradient_and_partial_gradient(backend):
    hidden, weight, target = head()
    both = gradients(lambda h, w: kernels.cross_entropy(h, w, target), hidden, weight)
    with torch.no_grad():
        assert torch.equal(kernels.cross_entropy(hidden, weight, target), both[0])
    assert torch.equal(gradients(lambda h: kernels.cross_entropy(h, weight, target), hidden)[1][0], both[1][0])
    assert torch.equal(gradients(lambda w: kernels.cross_entropy(hidden, w, target), weight)[1][0], both[1][1])


def test_cross_entropy_refuses_what_it_cannot_serve(backend):
    hidden, weight, target = head()
    with pytest.raises(ValueError, match="precision"):
        kernels.cross_entropy(hidden, weight, target, precision="fp8")
    with pytest.raises(ValueError, match="reduction"):
        kernels.cross_entropy(hidden, weight, target, reduction="sum")
    with pytest.raises(ValueError, match="must be"):
        kernels.cross_entropy(hidden, weight[:, 1:], target)
    for bad in (333, -1):
        target[5] = bad
        with pytest.raises(ValueError, match=r"0\.\.332"):
            kernels.cross_entropy(hidden, weight, target)


# ---- dispatch


def test_float64_gradcheck_through_the_public_functions():
    make = lambda *shape, seed: numbers(*shape, seed=seed, dtype=torch.float64).requires_grad_()  # noqa: E731
    row, col, core = make(3, 2, 6, 2, seed=1), make(3, 2, 6, 2, seed=2), make(2, 2, 2, 2, seed=3)
    u, t = numbers(2, 2, seed=4).double(), numbers(2, 2, seed=5).double()
    assert gradcheck(lambda *x: kernels.tucker_topm(*x, u, t, 4)[0], (row, col, core))
    assert gradcheck(lambda *x: kernels.product_topm(*x, 4)[0], (row[..., 0], col[..., 0]))
    values, weight, picks, group = make(7, 6, seed=6), make(4, 5, 2, seed=7), integers(7, 4, 5), integers(3, 4, 5)
    assert gradcheck(lambda *x: kernels.weighted_lookup(x[0], picks, x[1], group, 3), (values, weight))
    assert gradcheck(lambda *x: kernels.row_dot(x[0], picks, x[1]), (values, make(4, 6, seed=8)))
    counts = torch.tensor([0, 3, 4, 0])
    assert gradcheck(lambda *x: kernels.grouped_mm(*x, counts), (make(7, 4, seed=9), make(4, 4, 3, seed=10)))
    hidden, weight, target = head(10, 6, 11)
    inputs = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    assert gradcheck(lambda *x: kernels.cross_entropy(*x, target, chunk=3), inputs)


def test_override_and_its_error(monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")
    assert kernels.backend("cpu") == "reference"
    monkeypatch.setenv("ULTRAMEM_KERNELS", "fast")
    with pytest.raises(ValueError, match="auto, reference, native, triton"):
        kernels.backend("cpu")
    monkeypatch.delenv("ULTRAMEM_KERNELS")
    assert kernels.backend("cpu") == ("native" if build.available() else "reference")
    assert kernels.backend("meta") == "reference"


def run_python(code, **environment):
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_compiles_nothing(tmp_path):
    code = "import sys, kernels; assert 'triton' not in sys.modules and 'kernels.cpu.build' not in sys.modules"
    run_python(code, XDG_CACHE_HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_one_warning_and_plain_torch(tmp_path):
    code = (
        "import torch, kernels; x = torch.randn(2, 1, 9); kernels.product_topm(x, x, 3); kernels.product_topm(x, x, 3);"
        "print(kernels.backend('cpu'))"
    )
    done = run_python(code, PATH=str(tmp_path), CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "reference"
    assert done.stderr.count("no C++ compiler found") == 1


@needs_compiler
def test_the_build_without_processor_flags_agrees_with_the_reference(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "EXTRA_FLAGS", (("-no-such-flag",), ()))
    tuned = build._library()
    build._library.cache_clear()
    try:
        assert build.available()
        assert build._library() is not tuned
        test_product_topm_is_brute_force(native, 300, 42)
        test_native_tucker_gradients(2, 2, 12)
        test_weighted_lookup_and_gradients(native, LOOKUPS[2], torch.bfloat16, 2**-8)
        test_row_dot_and_gradients(native, 6, 9, 2, 5, torch.float32, 1e-5)
        test_grouped_mm_and_gradients(native, 9, 64, 26, torch.float32, "skewed")
        monkeypatch.setenv("ULTRAMEM_KERNELS", "native")
        test_cross_entropy_fp32("native", 32, 1.0)
    finally:
        build._library.cache_clear()
        monkeypatch.undo()
    assert build.available()


@needs_compiler
def test_two_processes_build_at_once_and_a_cached_library_is_reused(tmp_path):
    command = [sys.executable, "-m", "kernels.cpu.build"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in started]
    assert outputs[0] == outputs[1]
    assert "built" in outputs[0]
    files = list((tmp_path / "ultramem").iterdir())
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert files[0].stat().st_mtime_ns == before
