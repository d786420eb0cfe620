"""The ahead-of-time gate passes on our kernels, rejects what breaks each of its rules, and reads machine code rightly."""

import csv
import dataclasses

import pytest

from kernels import aot

GOOD = aot.Build(
    registers=64,
    stack_bytes=0,
    spills=0,
    shared_bytes=0,
    loads_128=8,
    loads_narrow=2,
    async_copies_128=4,
    tensor_cores=16,
    instructions=500,
    ptx_sha256="0",
)
CASE = aot.Case("any", None, (), (), wide_loads=8, tensor_cores=True)


def test_the_gate_passes(tmp_path, capsys):
    """Compiles every kernel twice: 76 builds, about half a minute on an empty Triton cache."""
    table = tmp_path / "aot.csv"
    status = aot.main(["--csv", str(table)])
    assert status == 0, capsys.readouterr().out
    rows = list(csv.DictReader(table.open()))
    kernels = {row["case"].split()[0] for row in rows}
    assert kernels == {
        *("gather_sum", "gather_dot", "scatter_sum", "join_pieces", "scatter_atomic"),
        *("rows_times_weight", "rows_times_rows", "topm", "topm_backward"),
    }
    assert {row["sm"] for row in rows} == {"80", "90"}
    assert len({row["case"] for row in rows}) == len(rows) / 2, "two cases share a name, hence a ceiling"
    refused = [row["complaints"] for row in rows if "control" in row["case"]]
    assert len(refused) == 6
    assert all(refused)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spills": 2}, "spill"),
        ({"stack_bytes": 8}, "stack"),
        ({"loads_128": 7}, "128-bit loads"),
        ({"tensor_cores": 0}, "tensor core"),
        ({"async_copies_128": 0}, "asynchronous"),
        ({"registers": 73}, "73 registers, at most 72"),
    ],
)
def test_every_rule_is_enforced(change, complaint):
    assert aot.complaints(CASE, GOOD, 72) == []
    (found,) = aot.complaints(CASE, dataclasses.replace(GOOD, **change), 72)
    assert complaint in found


def test_a_kernel_without_recorded_ceiling_fails():
    assert aot.judge(CASE, GOOD, None) == (False, "no register count recorded (--record)")


def test_a_control_that_passes_every_rule_fails_the_gate():
    control = dataclasses.replace(CASE, rejected_for="spill")
    assert aot.judge(control, GOOD, 72) == (False, "")
    assert aot.judge(control, dataclasses.replace(GOOD, spills=1), 72)[0]


@pytest.mark.parametrize(("shift", "status"), [(0, 0), (-aot.MARGIN - 1, 1)])
def test_one_register_beyond_the_ceiling_fails_the_gate(shift, status, monkeypatch, capsys):
    small = next(iter(aot.cases()))
    monkeypatch.setattr(aot, "cases", lambda: [small])
    recorded = aot.read_ceilings()
    monkeypatch.setattr(aot, "read_ceilings", lambda: {key: ceiling + shift for key, ceiling in recorded.items()})
    assert aot.main([]) == status
    assert ("registers, at most" in capsys.readouterr().out) == bool(status)


def test_recording_writes_what_reading_expects(tmp_path, monkeypatch):
    small = next(iter(aot.cases()))
    monkeypatch.setattr(aot, "cases", lambda: [small])
    monkeypatch.setattr(aot, "CEILINGS", tmp_path / "ceilings.csv")
    before = aot.read_ceilings()
    assert aot.main(["--record"]) == 0
    after = aot.read_ceilings(aot.CEILINGS)
    assert after == {key: before[key] for key in after}
    assert len(after) == 2


def test_instructions_are_counted_by_width():
    sass = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDG.E.U16 R8, desc[UR4][R2.64+0x10] ;
        /*0020*/             @UP1  LDG.E.64.CONSTANT R8, desc[UR4][R2.64+0x10] ;
        /*0030*/              @PT  LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0040*/                   REDG.E.ADD.F32x4.RN desc[UR4][R2.64], R4 ;
        /*0050*/                   STL [R1], R4 ;
        /*0060*/                   LDL.LU R4, [R1] ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
    .L_x_3:
    """
    assert aot.count_instructions(sass) == {
        "instructions": 8,
        "loads_128": 1,
        "loads_narrow": 2,
        "async_copies_128": 1,
        "spills": 2,
        "tensor_cores": 1,
    }
