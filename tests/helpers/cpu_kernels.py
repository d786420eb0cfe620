"""The CPU's two sets of kernels, numbers for them, and the checks that every build of them must pass."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from kernels.cpu import build

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


def check_product_topm(module, n, m):
    row, col = numbers(3, 2, n, seed=n), numbers(3, 2, n, seed=m + 1000)
    score, index = module.product_topm(row, col, m)
    wanted_score, wanted_index = brute_topm(row, col, m)
    assert torch.equal(score, wanted_score)
    assert torch.equal(index, wanted_index)


def check_tucker_gradients(r, h, m):
    row, col, core = numbers(4, 2, 20, r), numbers(4, 2, 20, r, seed=1), numbers(h, 2, r, r, seed=2)
    u, t = numbers(2, r, seed=3), numbers(2, r, seed=4)
    same_as(*(gradients(lambda *x, k=k: k.tucker_topm(*x, u, t, m)[0], row, col, core) for k in (native, reference)))


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


def check_weighted_lookup(module, shape, dtype, tolerance):
    T, M, N, C, h, G = shape
    values, weight = numbers(N, C, dtype=dtype), numbers(T, M, h, seed=1, dtype=dtype)
    row, group = integers(N, T, M), integers(G, T, M, seed=1)
    got = gradients(lambda v, w: module.weighted_lookup(v, row, w, group, G), values, weight)
    assert got[0].dtype == dtype
    exact = lambda v, w: brute_lookup(v, row, w, group, G)  # noqa: E731
    same_as(got, gradients(exact, values.double(), weight.double(), cotangent_dtype=dtype), tolerance)
    if G == 1:
        assert torch.equal(module.weighted_lookup(values, row, weight), got[0])


def check_row_dot(module, T, M, N, P, dtype, tolerance):
    table, x, row = numbers(N, P, dtype=dtype), numbers(T, P, seed=1, dtype=dtype), integers(N, T, M)
    got = gradients(lambda a, b: module.row_dot(a, row, b), table, x)
    assert got[0].dtype == dtype
    exact = lambda a, b: torch.einsum("tmp,tp->tm", a[row], b)  # noqa: E731
    same_as(got, gradients(exact, table.double(), x.double(), cotangent_dtype=dtype), tolerance)


def check_grouped_mm(module, E, D, F_, dtype, rows):
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


def experts_of(dtype, T, k, E, D, F_, glu):
    """x, up, down and weights of the picks, which need gradients."""
    shapes = (T, D), (E, D, (2 if glu else 1) * F_), (E, F_, D), (T, k)
    return tuple(numbers(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes))


def check_experts(dtype, T, k, E, D, F_, glu, picks=None):
    """One pass in C++ against every expert over every token in float64; weights stay float32 as under autocast."""
    x, up, down, weight = experts_of(torch.float32, T, k, E, D, F_, glu)
    picks = integers(E, T, k, seed=5) if picks is None else picks

    def exact(x, up, down, weight):
        h = torch.einsum("td,edu->teu", x, up)
        h = F.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1] if glu else F.gelu(h)
        y = torch.einsum("tef,efd->ted", h, down)
        return torch.einsum("tkd,tk->td", y.gather(1, picks[..., None].expand(-1, -1, D)), weight)

    got = gradients(lambda a, *rest: native.experts(a, *rest[:2], picks, rest[2], glu), x.detach().to(dtype), up, down, weight)
    assert got[0].dtype == dtype
    inputs = (x.detach().to(dtype).double(), up.double(), down.double(), weight.double())
    wanted = gradients(exact, *inputs, cotangent_dtype=dtype)
    same_as(got, wanted, 1e-5 if dtype == torch.float32 else 2**-5)


def check_linear(dtype, tolerance, rows, width):
    from kernels.cpu import linear

    x, weight = numbers(rows, width, dtype=dtype), numbers(130, width, seed=1, dtype=dtype)
    close(linear.linear(x, weight), x.double() @ weight.double().T, tolerance)


def head(S=70, D=24, V=333, scale=1.0):
    target = integers(V, S, seed=2)
    target[::9] = -100
    return numbers(S, D) * scale, numbers(V, D, seed=1), target


def plain_loss(target):
    return lambda hidden, weight: F.cross_entropy(hidden @ weight.T, target)


def check_cross_entropy(chunk, scale):
    hidden, weight, target = head(scale=scale)
    got = gradients(lambda h, w: kernels.cross_entropy(h, w, target, chunk=chunk), hidden, weight)
    wanted = gradients(plain_loss(target), hidden.double(), weight.double(), cotangent_dtype=torch.float32)
    tolerance = 2e-6 * max(1, scale)  # logits of +-30 * scale keep that much of float32
    same_as(got, wanted, tolerance)
    per_token = kernels.cross_entropy(hidden, weight, target, chunk=chunk, reduction="none")
    close(per_token, F.cross_entropy(hidden.double() @ weight.double().T, target, reduction="none"), tolerance)
    assert not per_token.requires_grad
