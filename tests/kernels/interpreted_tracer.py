"""What the memory tracer says of the Triton kernels: nothing out of bounds, no race, bytes as their formulas state.

Run by test_tracer.py under TRITON_INTERPRET=1. Every kind of finding is also planted and must be found.
"""

import kernel_traffic as traffic
import pytest
import torch
import triton
import triton.language as tl
from kernel_tracer import Phantom, Trace
from triton.runtime import interpreter

from kernels.triton import grouped_mm as moe
from kernels.triton import launch, lookup, topm


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def zipf(n_rows, *shape):
    weight = 1 / torch.arange(1, n_rows + 1).double()
    return torch.multinomial(weight, shape[0] * shape[1], replacement=True).view(shape)


def assert_bytes(trace, formula, count, **options):
    assert {name: count(name, **options) for name in formula} == formula
    assert trace.problems() == []


@pytest.mark.parametrize(("n_tokens", "n_picks", "width", "n_cores", "n_groups"), [(6, 11, 72, 2, 3), (1, 84, 300, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lookup_reads_what_its_formulas_say(n_tokens, n_picks, width, n_cores, n_groups, dtype):
    row, group = zipf(40, n_tokens, n_picks), torch.randint(n_groups, (n_tokens, n_picks))
    values, weight = torch.randn(40, width, dtype=dtype), torch.randn(n_tokens, n_picks, n_cores, dtype=dtype)
    with Trace() as trace:
        lookup.weighted_lookup(values, row, weight, group, n_groups)
    sizes = (width, n_cores, n_groups, dtype.itemsize)
    assert_bytes(trace, traffic.lookup_requested(n_tokens, n_picks, *sizes), trace.requested)
    assert_bytes(trace, traffic.lookup_unique(row, *sizes), trace.unique)
    assert trace.unique("values") < trace.requested("values")


@pytest.mark.parametrize("deterministic", [True, False])
def test_lookup_gradients_neither_race_nor_leave_their_tensors(deterministic, monkeypatch):
    monkeypatch.setattr(lookup, "PIECE", 4)
    # The run of row 0 ends, and that of row 1 begins, within the same four sorted picks.
    row = torch.tensor([0] * 6 + [1] * 6 + [2, 3, 3, 5, 5, 5, 5] + [7] * 16)[torch.randperm(35)].view(5, 7)
    values = torch.randn(20, 40, requires_grad=True)
    weight = torch.randn(5, 7, 2, requires_grad=True)
    group = torch.randint(2, row.shape)
    out = lookup.weighted_lookup(values, row, weight, group, 2, deterministic=deterministic)
    with Trace() as trace:
        out.sum().backward()
    assert trace.problems() == []
    # Every pick meets its row of the incoming gradient once; each table row that was picked is written once.
    spread = "_scatter_sum" if deterministic else "_scatter_atomic"
    assert trace.requested("grad", kernel=spread) == row.numel() * 40 * 4
    written = trace.requested("out", ("store", "atomic"), kernel=spread)
    if deterministic:
        assert written + trace.requested("out", ("store",), kernel="_join_pieces") == row.unique().numel() * 40 * 4
    else:
        assert written == row.numel() * 40 * 4


def test_row_dot_and_its_gradients():
    table, x = torch.randn(9, 24, requires_grad=True), torch.randn(3, 24, requires_grad=True)
    with Trace() as trace:
        lookup.row_dot(table, torch.randint(9, (3, 10)), x).sum().backward()
    assert trace.problems() == []
    assert trace.requested("values", kernel="_gather_dot") == 3 * 10 * 24 * 4


@pytest.mark.parametrize("n_cores", [0, 2])
def test_topm_reads_what_its_formulas_say(n_cores):
    n_tokens, n_heads, n, m, rank = 2, 2, 50, 13, 2 if n_cores else 1
    row, col = (torch.randn(n_tokens, n_heads, n, rank, requires_grad=True) for _ in range(2))
    with Trace() as trace:
        if n_cores:
            core, filters = torch.rand(n_cores, n_heads, rank, rank), torch.rand(2, n_heads, rank)
            score, _ = topm.tucker_topm(row, col, core, *filters, m)
        else:
            score, _ = topm.product_topm(row[..., 0], col[..., 0], m)
    sizes = (n_tokens, n_heads, n, m, rank, n_cores)
    assert_bytes(trace, traffic.topm_requested(*sizes), trace.requested)
    assert_bytes(trace, traffic.topm_unique(*sizes), trace.unique, kinds=("load", "store"))
    with Trace() as trace:
        score.sum().backward()
    assert trace.problems() == []
    assert trace.requested("grad_row", ("store",)) == row.numel() * 4


def test_grouped_mm_reads_what_its_formulas_say():
    counts, width_in, width_out = [5, 0, 20, 1], 70, 200
    x, weight = torch.randn(26, width_in, requires_grad=True), torch.randn(4, width_in, width_out, requires_grad=True)
    with Trace() as trace:
        out = moe.grouped_mm(x, weight, torch.tensor(counts))
    assert_bytes(trace, traffic.grouped_mm_requested(counts, width_in, width_out, 4), trace.requested)
    assert_bytes(trace, traffic.grouped_mm_unique(counts, width_in, width_out, 4), trace.unique)
    with Trace() as trace:
        out.sum().backward()
    assert trace.problems() == []
    assert trace.requested("out", ("store",), kernel="_rows_times_rows") == weight.numel() * 4


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces arguments of every launch by name, so that wrappers run as ever on tables that nobody allocates."""

    start = launch.start

    def replace(**phantoms):
        def started(kernel, grid, arguments, options):
            given = zip(kernel.arg_names, arguments, strict=False)
            start(kernel, grid, tuple(phantoms.get(name, argument) for name, argument in given), options)

        monkeypatch.setattr(launch, "start", started)

    return replace


def test_offsets_in_a_table_beyond_2_31_elements(stand_in):
    n_rows, width = 20_000_000, 1024
    stand_in(values=Phantom((n_rows, width), torch.bfloat16))
    row = torch.tensor([[n_rows - 1, 3, n_rows // 2]])
    values = torch.empty(n_rows, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.ones(1, 3, 1, dtype=torch.bfloat16, requires_grad=True)
    with Trace() as trace:
        out = lookup.weighted_lookup(values, row, weight)
    assert trace.problems() == []
    with Trace() as spread:
        for deterministic, dtype in ((True, torch.bfloat16), (False, torch.float32)):
            stand_in(out=Phantom((n_rows, width), dtype))
            lookup._spread_rows(values, row, weight.detach(), torch.ones_like(out), None, deterministic)
    assert spread.problems() == []
    for found, kinds in ((trace, ("load",)), (spread, ("store", "atomic"))):
        name = "values" if found is trace else "out"
        rows = {int(byte) // (access.width * width) for access in found.accesses(name, kinds) for byte in access.offset}
        assert rows == set(row.flatten().tolist())


def test_offsets_in_experts_beyond_2_31_elements(stand_in):
    n_experts, width = 40_000, 256
    shape = (n_experts, width, width)
    weight = torch.empty(*shape, dtype=torch.bfloat16, device="meta")
    stand_in(weight=Phantom(shape, torch.bfloat16))
    counts = torch.zeros(n_experts, dtype=torch.int64)
    counts[-1] = 1
    with Trace() as trace:
        moe.grouped_mm(torch.ones(1, width, dtype=torch.bfloat16), weight, counts)
    assert trace.problems() == []
    assert trace.unique("weight") == width * width * 2
    assert min(access.offset.min() for access in trace.accesses("weight")) == (n_experts - 1) * width**2 * 2


def test_offsets_of_tokens_beyond_2_31_scores(stand_in, monkeypatch):
    n, m, late = 1024, 4, 3_000_000
    program = interpreter.InterpreterBuilder.create_get_program_id

    def shifted(builder, axis):
        handle = program(builder, axis)
        return interpreter.TensorHandle(handle.data + late * (axis == 0), handle.dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", shifted)
    scores = Phantom((late + 1, n), torch.float32)
    outputs = {"score": Phantom((late + 1, m), torch.float32), "index": Phantom((late + 1, m), torch.int64)}
    stand_in(row=scores, col=scores, scratch=Phantom((late + 1, 4 * m), torch.int32), **outputs)
    with Trace() as trace:
        topm.product_topm(torch.zeros(1, 1, n), torch.zeros(1, 1, n), m)
    assert trace.problems() == []
    assert min(access.offset.min() for access in trace.accesses("row")) == late * n * 4


@triton.jit
def _gather_with_int32_offsets(out, values, row, D: tl.constexpr):
    d = tl.arange(0, D)
    tl.store(out + d, tl.load(values + tl.load(row).to(tl.int32) * D + d).to(tl.float32))


def test_an_int32_offset_is_found():
    with Trace() as trace:
        values = Phantom((20_000_000, 1024), torch.bfloat16)
        _gather_with_int32_offsets[(1,)](torch.empty(1024), values, torch.tensor([3_000_000]), 1024)
    (problem,) = trace.problems()
    assert "1024 elements of values out of bounds" in problem


def test_an_index_out_of_range_is_found_and_not_followed():
    row = torch.tensor([[2, 8]])
    with Trace() as trace:
        out = lookup.weighted_lookup(torch.ones(8, 24), row, torch.ones(1, 2, 1))
    assert (out == 1).all()
    (problem,) = trace.problems()
    assert problem.startswith("_gather_sum: program (0, 0, 0) loads 24 elements of values out of bounds")


@triton.jit
def _copy(out, x, n, SHIFT: tl.constexpr, ROUND: tl.constexpr, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + (at - SHIFT) // ROUND, value, mask=at < n)


def test_two_programs_writing_one_address_are_found():
    with Trace() as trace:
        _copy[(2,)](torch.empty(16), torch.ones(16), 16, 0, 16, 8)
    assert trace.problems() == ["_copy: 1 addresses are written by one program and touched by another"]


def test_one_program_reading_what_another_writes_is_found_through_an_alias():
    x = torch.ones(16)
    with Trace() as trace:
        _copy[(2,)](x[2:], x, 14, 0, 1, 8)
    assert trace.problems()[0] == "_copy: 2 addresses are written by one program and touched by another"


def test_a_store_below_the_start_is_found():
    with Trace() as trace:
        _copy[(1,)](torch.empty(8), torch.ones(8), 8, 3, 1, 8)
    assert trace.problems() == ["_copy: program (0, 0, 0) stores 3 elements of out out of bounds, first at byte -12 of 32"]


@triton.jit
def _reverse(out, scratch, B: tl.constexpr, BARRIER: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(scratch + at, at)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + at, tl.load(scratch + (B - 1 - at)))


def test_a_missing_barrier_is_found():
    for barrier, found in ((True, 0), (False, 1)):
        with Trace() as trace:
            _reverse[(1,)](torch.empty(8, dtype=torch.int32), torch.empty(8, dtype=torch.int32), 8, barrier)
        assert len(trace.problems()) == found


@triton.jit
def _sum_without_group_mask(out, values, row, weight, group, M: tl.constexpr, D: tl.constexpr, BJ: tl.constexpr):
    j = tl.arange(0, BJ)
    d = tl.arange(0, D)
    r = tl.load(row + j, mask=j < M, other=0)
    w = tl.load(weight + j, mask=j < M, other=0.0)
    w = tl.where(tl.load(group + j, mask=j < M, other=-1) == tl.program_id(0), w, 0.0)
    v = tl.load(values + r[:, None] * D + d[None, :], mask=(j < M)[:, None], other=0.0)
    tl.store(out + tl.program_id(0) * D + d, tl.sum(v * w[:, None], 0))


def test_rows_read_for_nothing_are_found():
    """Right numbers, twice the traffic: only the byte count tells."""
    row, group = torch.randint(9, (5,)), torch.randint(2, (5,))
    values, weight, out = torch.randn(9, 16), torch.randn(5), torch.empty(2, 16)
    with Trace() as trace:
        _sum_without_group_mask[(2,)](out, values, row, weight, group, 5, 16, 8)
    want = lookup.weighted_lookup(values, row[None], weight[None, :, None], group[None], 2)[0]
    assert torch.allclose(out, want)
    assert trace.problems() == []
    assert trace.requested("values") == 2 * traffic.lookup_requested(1, 5, 16, 1, 2, 4)["values"]


def test_outside_a_trace_the_interpreter_is_as_before():
    before = interpreter.InterpreterBuilder.create_masked_load
    with pytest.raises(RuntimeError), Trace():
        raise RuntimeError
    assert interpreter.InterpreterBuilder.create_masked_load is before
