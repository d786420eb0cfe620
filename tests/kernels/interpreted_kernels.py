"""The Triton kernels under Triton's interpreter, forward and backward, against float64 of the same rounded inputs.

Run by test_triton.py in a process of its own: TRITON_INTERPRET=1 must be set before Triton is imported.
One rounding to the result's dtype is allowed, plus what float32 sums may lose.
"""

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

import kernels
from kernels import reference
from kernels.triton import launch, lookup, topm, tune
from kernels.triton.grouped_mm import TILES, grouped_mm, tile_for, tiles_to_try

HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SUMS = 1e-6  # of the largest result
every_dtype = pytest.mark.parametrize("dtype", HALF_ULP, ids=lambda dtype: str(dtype).split(".")[1])


@pytest.fixture(autouse=True)
def rounding_as_on_a_gpu(monkeypatch):
    """The interpreter cuts float32 off to bfloat16; a GPU rounds to nearest even, and so does torch."""
    convert = interpreter._convert_float

    def rounded(data, source, target, mode):
        if source.is_fp32() and target.is_bf16():
            tensor = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
            return tensor.bfloat16().view(torch.uint16).numpy().reshape(data.shape)
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    torch.manual_seed(0)


def assert_one_rounding(got, want):
    assert got.shape == want.shape
    allowed = HALF_ULP[got.dtype] * want.abs() + SUMS * want.abs().max()
    worst = ((got.double() - want).abs() - allowed).max().item()
    assert worst <= 0, f"{worst:.3g} beyond one rounding to {got.dtype}"


def agree(kernel, twin, tensors, *rest, **options):
    """Runs both, the twin in float64; compares the (first) result and the gradients of all `tensors`."""
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    got, want = kernel(*ours, *rest, **options), twin(*exact, *rest)
    if isinstance(got, tuple):
        assert torch.equal(got[1], want[1]), "other cells were selected"
        got, want = got[0], want[0]
    grad = torch.randn_like(got)
    got.backward(grad)
    want.backward(grad.double())
    assert_one_rounding(got, want)
    for our, true in zip(ours, exact, strict=True):
        assert_one_rounding(our.grad, true.grad)


def zipf(n_rows, *shape):
    weight = 1 / torch.arange(1, n_rows + 1).double()
    return torch.multinomial(weight, int(np.prod(shape)), replacement=True).view(shape)


def look_up(dtype, row, n_rows, width, n_cores, n_groups, **options):
    values, weight = torch.randn(n_rows, width, dtype=dtype), torch.randn(*row.shape, n_cores, dtype=dtype)
    group = torch.randint(n_groups, row.shape) if n_groups > 1 else None

    def call(function):
        return lambda values, weight, **options: function(values, row, weight, group, n_groups, **options)

    agree(call(lookup.weighted_lookup), call(reference.weighted_lookup), [values, weight], **options)


@every_dtype
@pytest.mark.parametrize(("width", "n_cores", "n_groups"), [(200, 1, 1), (144, 2, 4), (1000, 1, 1), (24, 3, 2)])
def test_lookup(dtype, width, n_cores, n_groups):
    look_up(dtype, zipf(50, 2, 13), 50, width, n_cores, n_groups)


@every_dtype
def test_lookup_of_one_token_is_split_over_programs(dtype):
    assert lookup._Shape(1, 84, 200, 1, 1).splits > 1
    look_up(dtype, torch.randint(300, (1, 84)), 300, 200, 1, 1)


def test_lookup_without_splits(monkeypatch):
    monkeypatch.setattr(lookup, "ENOUGH_PROGRAMS", 1)
    look_up(torch.bfloat16, torch.randint(300, (1, 84)), 300, 200, 2, 2)


@pytest.mark.parametrize("lengths", [[400], [1, 3, 4, 5, 8, 9, 1, 17], [7, 6, 5, 4, 3], [4, 4, 4], [33, 2, 33]])
def test_long_runs_of_one_row_are_split_and_joined(lengths, monkeypatch):
    monkeypatch.setattr(lookup, "PIECE", 4)
    row = torch.repeat_interleave(torch.randperm(len(lengths) + 3)[: len(lengths)], torch.tensor(lengths))
    look_up(torch.float32, row[torch.randperm(len(row))][None], len(lengths) + 3, 16, 1, 1)


@every_dtype
def test_atomic_gradient(dtype):
    look_up(dtype, zipf(20, 3, 11), 20, 40, 2, 3, deterministic=False)


def test_a_weight_of_infinity_stays_in_its_group():
    values, row = torch.ones(4, 16), torch.zeros(1, 2, dtype=torch.int64)
    weight, group = torch.tensor([[[torch.inf], [1.0]]]), torch.tensor([[0, 1]])
    out = lookup.weighted_lookup(values, row, weight, group, 2)
    assert out[0, 0].isinf().all()
    assert (out[0, 1] == 1).all()


@every_dtype
def test_row_dot(dtype):
    row = zipf(30, 3, 13)
    table, x = torch.randn(30, 200, dtype=dtype), torch.randn(3, 200, dtype=dtype)
    agree(
        lambda table, x: lookup.row_dot(table, row, x), lambda table, x: reference.row_dot(table, row, x), [table, x]
    )  # fmt: skip


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_row_dot_of_two_dtypes_loses_nothing_to_the_narrower(dtypes):
    table, x, row = torch.randn(5, 16).to(dtypes[0]), torch.randn(2, 16).to(dtypes[1]), torch.randint(5, (2, 3))
    agree(
        lambda table, x: lookup.row_dot(table, row, x), lambda table, x: reference.row_dot(table, row, x), [table, x]
    )  # fmt: skip


def test_a_table_that_is_not_contiguous_is_refused():
    row = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be contiguous"):
        lookup.weighted_lookup(torch.ones(4, 16).T, row, torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="must be contiguous"):
        lookup.row_dot(torch.ones(4, 16).T, row, torch.ones(1, 4))


@every_dtype
@pytest.mark.parametrize(("n_tokens", "n", "m"), [(2, 100, 13), (1, 7, 30), (1, 33, 32)])
def test_product_topm(dtype, n_tokens, n, m):
    # Distinct multiples of 1/64 and of 1/4096: no two cells tie, in any dtype.
    row = torch.stack([torch.randperm(n) for _ in range(2 * n_tokens)]).view(n_tokens, 2, n).to(dtype) / 64
    col = torch.stack([torch.randperm(n) for _ in range(2 * n_tokens)]).view(n_tokens, 2, n).to(dtype) / 8192
    agree(topm.product_topm, reference.product_topm, [row, col], m)


def singular_vectors(core):
    left, _, right = torch.linalg.svd(core.float().sum(0))
    return left[..., 0], right[..., 0, :]


@every_dtype
@pytest.mark.parametrize(("n_tokens", "n", "m", "rank", "n_cores"), [(2, 60, 13, 2, 2), (1, 5, 20, 3, 1), (1, 100, 80, 2, 2)])
def test_tucker_topm(dtype, n_tokens, n, m, rank, n_cores):
    row, col = (torch.randn(n_tokens, 2, n, rank).to(dtype) for _ in range(2))
    core = torch.rand(n_cores, 2, rank, rank).to(dtype)
    if m == 80:
        row, col = row[:, :1], col[:, :1]
        core = core[:, :1]
    agree(topm.tucker_topm, reference.tucker_topm, [row, col, core], *singular_vectors(core), m)


def test_scores_come_best_first():
    core = torch.rand(2, 1, 2, 2)
    score, index = topm.tucker_topm(
        torch.randn(1, 1, 40, 2), torch.randn(1, 1, 40, 2), core, *singular_vectors(core), 21
    )  # fmt: skip
    assert (score.sum(-1).diff() <= 0).all()
    assert index.unique().numel() == 21


@pytest.mark.parametrize("value", [0.0, -3.5, -torch.inf, torch.inf])
def test_equal_scores_give_the_lowest_cells(value):
    row, col = torch.full((1, 1, 19), value), torch.full((1, 1, 19), 0.0)
    score, index = topm.product_topm(row, col, 7)
    assert index.flatten().tolist() == list(range(7))
    assert (score == value).all()
    side, ones = torch.ones(1, 1, 19, 2), torch.ones(1, 2)
    _, index = topm.tucker_topm(side, side, torch.ones(1, 1, 2, 2), ones, ones, 21)
    assert index.flatten().tolist() == list(range(21))


def test_ties_as_in_the_reference():
    row, col = (torch.randint(-2, 3, (3, 1, 50)).float() for _ in range(2))
    row[1, 0, 9:] = -torch.inf
    for got, want in zip(topm.product_topm(row, col, 31), reference.product_topm(row, col, 31), strict=True):
        assert torch.equal(got, want)


def test_zeros_of_both_signs_are_equal():
    row = torch.tensor([-0.0] * 10 + [0.0] * 10).view(1, 1, 20)
    col = torch.tensor([-0.0] + [-5.0] * 19).view(1, 1, 20)
    assert topm.product_topm(row, col, 5)[1].flatten().tolist() == [0, 20, 40, 60, 80]


def test_nan_counts_as_the_largest_score():
    row, col = torch.randn(1, 1, 30), torch.randn(1, 1, 30)
    row[0, 0, 17] = torch.nan
    row[0, 0, 4] = -torch.nan
    col[0, 0, 5] = -torch.inf
    score, index = topm.product_topm(row, col, 12)
    assert torch.equal(index, reference.product_topm(row, col, 12)[1])
    assert set((index // 30).flatten().tolist()) == {4}
    assert score.isnan().all()


def test_too_many_picks_are_refused():
    with pytest.raises(ValueError, match="at most 128"):
        topm.product_topm(torch.zeros(1, 1, 200), torch.zeros(1, 1, 200), 129)


@every_dtype
@pytest.mark.parametrize(("counts", "D", "F"), [([5, 0, 20, 1, 0], 100, 72), ([1], 16, 200), ([0, 0, 3], 8, 8)])
def test_grouped_mm(dtype, counts, D, F):
    x, weight = torch.randn(sum(counts), D, dtype=dtype), torch.randn(len(counts), D, F, dtype=dtype)
    agree(grouped_mm, reference.grouped_mm, [x, weight], torch.tensor(counts))


@pytest.mark.parametrize(("itemsize", "tile"), [(size, tile) for size, tiles in TILES.items() for tile in tiles])
def test_grouped_mm_in_every_tile(itemsize, tile):
    counts = torch.tensor([0, tile.rows + 1, 3, 0])
    x = torch.randn(tile.rows + 4, 70, dtype={2: torch.bfloat16, 4: torch.float32}[itemsize])
    weight = torch.randn(4, 70, 40, dtype=x.dtype)
    got = grouped_mm(x, weight, counts, tile=tile)
    assert_one_rounding(got, reference.grouped_mm(x.double(), weight.double(), counts))


@every_dtype
@pytest.mark.parametrize(("batch", "top_k", "n_experts"), [(1, 2, 34), (1, 8, 64), (4, 8, 64), (64, 2, 34)])
def test_grouped_mm_of_a_decoding_step(dtype, batch, top_k, n_experts):
    expert = torch.stack([torch.randperm(n_experts)[:top_k] for _ in range(batch)])
    counts = torch.bincount(expert.flatten(), minlength=n_experts)
    assert counts.min() == 0 or batch == 64
    x, weight = torch.randn(batch * top_k, 24, dtype=dtype), torch.randn(n_experts, 24, 36, dtype=dtype)
    assert_one_rounding(grouped_mm(x, weight, counts), reference.grouped_mm(x.double(), weight.double(), counts))


def test_the_grid_holds_the_worst_spread_of_rows():
    """17 rows everywhere need two tiles of 16 for each expert."""
    counts, tile = torch.full((5,), 17), TILES[4][0]
    x, weight = torch.randn(85, 16), torch.randn(5, 16, 16)
    assert_one_rounding(grouped_mm(x, weight, counts, tile=tile), reference.grouped_mm(x.double(), weight.double(), counts))


@pytest.fixture
def started(monkeypatch):
    """Tile and grid of every launch, none of which happens."""
    seen = []

    def start(kernel, grid, arguments, options):
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        seen.append(((*(named[size] for size in ("BM", "BN", "BK")), options["num_warps"], options["num_stages"]), grid))

    monkeypatch.setattr(launch, "start", start)
    return seen


def test_the_host_does_not_read_the_counts(started):
    """Counts without data still launch: by shapes alone, as the capture of a CUDA graph demands."""
    x, weight = torch.empty(8, 64, device="meta"), torch.empty(64, 64, 128, device="meta")
    grouped_mm(x, weight, torch.empty(64, dtype=torch.int64, device="meta"))
    ((tile, grid),) = started
    assert tile == tile_for(8, 64, 4)
    assert grid == (8 * 128 // tile[1],)


@pytest.mark.parametrize("itemsize", TILES)
def test_tiles_to_try_follow_the_rows_of_an_expert(itemsize):
    tallest = TILES[itemsize][-1].rows
    for n_rows, heights in ((2, {16, 32}), (64 * 16, {16, 32}), (64 * 17, {32, 64}), (10**6, {tallest})):
        assert {tile.rows for tile in tiles_to_try(n_rows, 64, itemsize)} == heights


def test_a_tuned_tile_is_used_for_its_own_shapes_alone(started, monkeypatch):
    fastest = tiles_to_try(8, 64, 4)[0]
    assert fastest != tile_for(8, 64, 4)
    monkeypatch.setattr(tune, "found", {})
    monkeypatch.setattr(tune, "milliseconds", lambda call: (call(), started[-1][0] != fastest)[1])
    weight, counts = torch.empty(64, 64, 128, device="meta"), torch.empty(64, dtype=torch.int64, device="meta")

    def tile(n_rows):
        grouped_mm(torch.empty(n_rows, 64, device="meta"), weight, counts)
        return started[-1][0]

    assert tile(8) == tile_for(8, 64, 4)
    with tune.tuning():
        assert tile(8) == fastest
        assert len(started) == 2 + 1 + len(tiles_to_try(8, 64, 4))
    assert tile(8) == tile(7) == fastest
    assert tile(16) == tile_for(16, 64, 4)


def test_the_package_serves_these_kernels(monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", "triton")
    values, weight, row = torch.randn(9, 16), torch.randn(2, 5, 2), torch.randint(9, (2, 5))
    names = {"product_topm": topm, "tucker_topm": topm, "weighted_lookup": lookup, "row_dot": lookup}
    for name, module in names.items():
        assert kernels._serving(name, values) is getattr(module, name)
    assert kernels._serving("grouped_mm", values) is grouped_mm
    out = kernels.weighted_lookup(values, row, weight)
    assert_one_rounding(out, reference.weighted_lookup(values.double(), row, weight.double()))


def test_grouped_mm_without_rows():
    x, weight = torch.randn(0, 8, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    grouped_mm(x, weight, torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert x.grad.shape == (0, 8)
    assert (weight.grad == 0).all()


def test_grouped_mm_refuses_what_it_cannot_multiply():
    counts = torch.tensor([2])
    with pytest.raises(ValueError, match="contiguous"):
        grouped_mm(torch.ones(2, 8), torch.ones(1, 4, 8).transpose(1, 2), counts)
    with pytest.raises(ValueError, match="float64"):
        grouped_mm(torch.ones(2, 8).double(), torch.ones(1, 8, 4).double(), counts)
