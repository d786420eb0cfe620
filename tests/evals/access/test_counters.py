"""ncu's output is read rightly, and where there are no counters a sentence says why. A shell script stands in for ncu."""

import sys

import pytest
import torch
import yaml

from evals.access import hardware as counters
from evals.access.hardware import FROM_L2, FROM_MEMORY, NoCounters, read_counters
from evals.records import schema
from reports import access

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",'
    '"Section Name","Metric Name","Metric Unit","Metric Value"'
)


def line(number, kernel, metric, unit, value):
    return (
        f'"{number}","7","python3.11","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(64, 1, 1)","0","9.0",'
        f'"Command line profiler metrics","{metric}","{unit}","{value}"'
    )


def log(*lines):
    head = ["==PROF== Connected to process 7 (python3.11)", '==PROF== Profiling "gemm" - 0: 0%....50%....100% - 1 pass']
    return "\n".join([*head, HEADER, *lines, "==PROF== Disconnected from process 7", ""])


GOOD = log(
    line(0, "_gather_sum", FROM_MEMORY, "byte", "1,048,576"),
    line(0, "_gather_sum", FROM_L2, "sector", "4000"),
    line(1, "void gemm<float, (int)2>(T1, T2)", FROM_MEMORY, "byte", "424"),
    line(1, "void gemm<float, (int)2>(T1, T2)", FROM_L2, "sector", "1"),
    line(1, "void gemm<float, (int)2>(T1, T2)", "gpu__time_duration.sum", "nsecond", "n/a"),
)
PERMISSION = """==PROF== Connected to process 31 (python3.11)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the target device 0.
==PROF== Disconnected from process 31
"""


def test_kernels_are_added_up_and_sectors_are_32_bytes():
    assert read_counters(GOOD) == {FROM_MEMORY: 1_048_576 + 424, FROM_L2: 4001 * 32}


@pytest.mark.parametrize(
    ("unit", "value", "read"),
    [("byte", "512", 512), ("Kbyte", "1.5", 1500), ("Mbyte", "2.25", 2_250_000), ("Gbyte", "0.5", 500_000_000)],
)
def test_units(unit, value, read):
    assert read_counters(log(line(0, "k", FROM_MEMORY, unit, value)))[FROM_MEMORY] == read


def test_output_of_the_program_in_between_does_not_matter():
    assert read_counters(GOOD.replace(HEADER, f'loading weights\n"quoted", he said\n{HEADER}\nwarming up')) == read_counters(
        GOOD
    )


def test_no_permission():
    with pytest.raises(NoCounters, match="NVreg_RestrictProfilingToAdminUsers"):
        read_counters(PERMISSION)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no kernel"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        (log(), "no kernel"),
        (log(line(0, "k", FROM_MEMORY, "byte", "n/a")), "n/a"),
        (log(line(0, "k", FROM_MEMORY, "furlong", "3")), "furlong"),
        (log(line(0, "k", FROM_MEMORY, "byte", "3"), line(1, "k", FROM_MEMORY, "byte", "3")[:60]), "cut short"),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_a_number(text, told):
    with pytest.raises(ValueError, match=told):
        read_counters(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A CUDA machine whose ncu prints what `says` is given; returns the function that runs the module's main."""
    model = {"n_heads": 8, "n_kv_heads": 2}
    models = [{"arch": arch, "sparse_ratio": ratio, "model": model | more} for ratio, arch, more in (
        (12.0, "dense", {"n_kv_heads": None}), (12.0, "moe8", {}), (24.0, "dense", {}),
    )]  # fmt: skip
    settings = {"size": "decode", "archs": ["dense", "moe8"], "dtypes": ["bf16"], "batches": [1, 64], "context": 256}
    (tmp_path / "latency.yaml").write_text(yaml.safe_dump({"settings": settings, "models": models}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(counters, "device_name", lambda device: "CUDA: Test")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_HOME", raising=False)

    def says(text, status=0, error=""):
        (tmp_path / "says").write_text(text)
        ncu = tmp_path / "ncu"
        ncu.write_text(f"""#!{sys.executable}
import os, shutil, sys
open({str(tmp_path / "asked")!r}, "a").write(" ".join(sys.argv[1:]) + " " + os.environ["LC_ALL"] + "\\n")
shutil.copy({str(tmp_path / "says")!r}, sys.argv[sys.argv.index("--log-file") + 1])
print({error!r}, file=sys.stderr)
sys.exit({status})
""")
        ncu.chmod(0o755)

    def main(*options):
        out = tmp_path / "access.csv"
        monkeypatch.setattr(sys, "argv", ["counters", "--results", str(tmp_path), "--out", str(out), *options])
        counters.main()
        return schema.read(out, "access")

    main.says, main.asked = says, lambda: (tmp_path / "asked").read_text().splitlines()
    return main


def test_rows_of_the_table(machine):
    machine.says(GOOD)
    rows = machine()
    assert list(zip(rows.arch, rows.batch, rows.kv, strict=True)) == [
        ("dense", 1, "mha"), ("dense", 64, "mha"), ("moe8", 1, "gqa"), ("moe8", 64, "gqa"),
    ]  # fmt: skip
    assert set(rows.bytes) == {1_049_000.0}
    assert set(rows.kind) == {"hardware"}
    assert set(rows.device) == {"CUDA: Test"}
    asked = machine.asked()
    assert len(asked) == 4
    assert asked[3].endswith("--one-step moe8 64 bf16 C")
    for option in ("--profile-from-start off", "--cache-control all", f"--metrics {FROM_MEMORY},{FROM_L2} --csv"):
        assert option in asked[0]


def test_a_choice_of_steps(machine):
    machine.says(GOOD)
    rows = machine("--arch", "moe8", "--batch", "4", "--dtype", "fp32")
    assert rows[["arch", "batch", "dtype"]].values.tolist() == [["moe8", 4, "fp32"]]


def test_without_permission_there_is_one_sentence_and_no_row(machine, capsys):
    machine.says(PERMISSION, status=1)
    assert len(machine()) == 0
    assert len(machine.asked()) == 1, "what is forbidden once is not tried again"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_ncu_there_is_one_sentence_and_no_row(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(machine()) == 0
    assert "ncu" in capsys.readouterr().err


def test_without_a_device_there_is_one_sentence_and_no_row(machine, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert len(machine()) == 0
    assert "no CUDA device" in capsys.readouterr().err


def test_a_step_that_fails_is_told_and_left_out(machine, capsys):
    machine.says("==ERROR== The application returned an error code (2)\n", 2, "error: batch 1024 does not fit the memory")
    assert len(machine("--arch", "dense", "--batch", "1024")) == 0
    assert capsys.readouterr().err.splitlines() == ["dense, batch 1024, bf16: error: batch 1024 does not fit the memory"]


def test_an_unknown_architecture_is_a_sentence(machine):
    machine.says(GOOD)
    with pytest.raises(counters.UserError, match=r"no architecture moe9; it has dense, moe8"):
        machine("--arch", "moe9")


def test_counters_are_held_against_the_formula_of_the_same_step(tmp_path):
    same = {
        "arch": "moe2",
        "size": "decode",
        "part": "model",
        "dtype": "bf16",
        "kv": "gqa",
        "context": 8,
        "device": "CUDA: made up",
    }
    plain = {"phase": "decode", "variant": "plain", "sparse_ratio": 12.0, "p50_ms": 1.0, "n_iters": 3, "kind": "measured"}
    timed = [same | plain | {"batch": batch, "bytes_declared": 1e6 * batch} for batch in (1, 4)]
    timed.insert(0, timed[1] | {"part": "ffn", "bytes_declared": 7.0})
    schema.write(tmp_path / "latency.csv", "latency", timed)
    what = {"run": "moe2-decode", "routing": "untrained", "kind": "hardware", "bytes": 4.1e6}
    counted = [same | what | {"batch": 4}, same | what | {"batch": 16}]
    assert counters.expected(tmp_path / "nowhere", counted) == counters.expected(tmp_path, []) == []
    (row,) = counters.expected(tmp_path, counted)
    assert (row["batch"], row["bytes"], row["kind"], row["routing"]) == (4, 4e6, "declared-expected", "uniform")
    schema.write(tmp_path / "access.csv", "access", [*counted, row])
    (table,) = access._agreement(schema.read(tmp_path / "access.csv", "access"), "")
    assert [cell.text for cell in table.rows[0][-1:]] == ["1.025"]
