"""The Triton product of experts under Triton's interpreter; run by test_triton.py, see interpreted_kernels.py."""

import pytest
import torch
from one_rounding import assert_one_rounding, every_dtype, solves

from evals.agreement import kernels as problems
from kernels import reference
from kernels.triton import launch, tune
from kernels.triton.grouped_mm import TILES, grouped_mm, tile_for, tiles_to_try

pytestmark = pytest.mark.usefixtures("rounding_as_on_a_gpu")


@every_dtype
@pytest.mark.parametrize(("counts", "D", "F"), [([5, 0, 20, 1, 0], 100, 72), ([1], 16, 200), ([0, 0, 3], 8, 8)])
def test_grouped_mm(dtype, counts, D, F):
    solves(problems.products(dtype, counts, D, F), grouped_mm)


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
