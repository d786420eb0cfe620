"""A part keeps what it measured, goes on where it stopped, and says what it could not do."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import kernels
from evals import gpu
from evals.agreement import kernels as problems
from evals.device import checks, decode, grid, parts
from evals.device.parts import Bench, Item, NotNow, Part
from evals.records import schema
from evals.records.errors import UserError

ROW = {
    "operation": "nothing", "impl": "ours", "shape": "none", "dtype": "bf16", "p50_ms": 1.0, "ratio": 1.0, "versus": "ours",
    "n_iters": 1,
}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    return Bench("cpu", tmp_path, tiny=True)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    made_by = parts.made_by("cpu")
    monkeypatch.setattr(parts, "made_by", lambda device: dict(made_by))
    return made_by


def part(*actions):
    """A part of items a, b, ...; an action is a row, or an error to raise. And the list of what was measured."""
    seen = []

    def measure(name, action, bench):
        seen.append(name)
        if isinstance(action, Exception):
            raise action
        return [action]

    items = [Item(name, partial(measure, name, action)) for name, action in zip("abcd", actions, strict=False)]
    return Part("some", "gpu_speed", "something", 10.0, lambda bench: items), seen


def test_what_is_measured_is_not_measured_again(bench):
    some, seen = part(ROW, ROW | {"rows": 3})
    assert parts.run(some, bench) == "finished"
    before = (bench.folder / "some.csv").read_text()
    assert parts.run(some, bench) == "finished"
    assert seen == ["a", "b"]
    assert (bench.folder / "some.csv").read_text() == before
    assert list(schema.read(bench.folder / "some.csv", "gpu_speed")["item"]) == ["a", "b"]


@pytest.mark.parametrize("changed", ["source", "device", "driver"])
def test_other_code_or_another_device_is_measured_again(bench, machine, monkeypatch, changed, capsys):
    some, seen = part(ROW)
    parts.run(some, bench)
    monkeypatch.setattr(parts, "made_by", lambda device: machine | {changed: "another"})
    assert parts.run(some, bench) == "finished"
    assert seen == ["a", "a"]
    assert "is of other code, device or shapes" in capsys.readouterr().out
    assert set(schema.read(bench.folder / "some.csv", "gpu_speed")[changed]) == {"another"}


def test_a_part_out_of_time_writes_what_it_has_and_goes_on_later(bench):
    some, seen = part(ROW, NotNow("after step 3"), ROW)
    assert parts.run(some, bench) == "out of time before b; run the same command again"
    some, seen = part(ROW, ROW, ROW)
    bench.until = 0.0
    assert parts.run(some, bench) == "out of time before b; run the same command again"
    assert json.loads((bench.folder / "some.json").read_text())["state"].startswith("out of time")
    bench.until = float("inf")
    assert parts.run(some, bench) == "finished"
    assert seen == ["b"]


def test_an_item_that_fails_does_not_cost_the_others_and_is_tried_again(bench, capsys):
    some, seen = part(RuntimeError("out of memory"), ROW)
    assert parts.run(some, bench) == "failed: a"
    assert "some: a failed: RuntimeError: out of memory" in capsys.readouterr().err
    assert parts.run(some, bench) == "failed: a"
    assert seen == ["a", "b", "a"]


def test_a_killed_part_keeps_its_finished_items(bench):
    """Killed between the CSV and the note: the row without a note does not count."""
    some, seen = part(ROW, ROW)
    parts.run(some, bench)
    note = json.loads((bench.folder / "some.json").read_text())
    (bench.folder / "some.json").write_text(json.dumps(note | {"items": ["a"]}))
    assert parts.run(some, bench) == "finished"
    assert seen == ["a", "b", "b"]


def test_all_parts_together_have_a_limit(tmp_path, monkeypatch):
    some, seen = part(ROW)
    assert gpu.run_all([some, replace(some, name="other")], "cpu", tmp_path, seconds=0.0)["other"].startswith("out of time")
    assert seen == []
    assert sum(one.seconds for one in gpu.PARTS.values()) <= gpu.SECONDS <= 540


def test_a_wrong_kernel_is_found(bench, monkeypatch):
    make = checks.shapes(True)["lookup of one token"]
    assert all(row["passed"] for row in checks.against_twin("x", make, bench))
    right = kernels.weighted_lookup
    monkeypatch.setattr(kernels, "weighted_lookup", lambda **given: 1.05 * right(**given))
    wrong = checks.against_twin("x", make, bench)
    assert [row["passed"] for row in wrong if row["check"] == "float64"] == [False] * 3
    monkeypatch.setattr(kernels, "weighted_lookup", lambda **given: right(**given) * (1 + 1e-4 * torch.rand(1)))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    assert not all(row["passed"] for row in checks.against_twin("x", make, bench) if row["check"] == "repeats")


def test_addresses_that_wrap_are_found(bench, monkeypatch):
    assert all(row["passed"] for row in checks.beyond_31_bits(bench))
    right = kernels.weighted_lookup
    monkeypatch.setattr(kernels, "weighted_lookup", lambda values, row, weight: right(values, row % 120, weight))
    assert [row["passed"] for row in checks.beyond_31_bits(bench)] == [False, True]


def test_another_choice_of_cells_is_no_agreement():
    problem = problems.product_cells(torch.float32, 2, 1, 20, 5)
    with pytest.raises(problems.OtherCells):
        problems.disagreement(problem, lambda row_THn, col_THn, m: kernels.product_topm(row_THn, -col_THn, m))


def test_tables_are_halved_until_they_fit():
    cfg = decode.config("UltraMem-1.6B-x12", 2048, tiny=False)
    fitted = decode.fitted(cfg, 20e9)
    assert 10e9 < 2 * fitted.cost().params <= 20e9
    assert decode.fitted(cfg, 80e9) == cfg
    mixture = decode.fitted(decode.config("MoE-1.6B-2in34", 2048, tiny=False), 25e9)
    assert mixture.arch.n_experts == 17
    assert decode.fitted(decode.config("Dense-1.6B", 8, tiny=False), 1.0).arch.name == "dense"


def test_a_trainer_that_is_cut_off_is_told_so_and_saves(packed, bench, monkeypatch):
    folder, _, _ = packed
    monkeypatch.setattr(grid, "CARRIED", folder / "carried")
    bench.until = 0.0
    with pytest.raises(NotNow, match="seconds are left"):
        grid.trained("large", replace(bench, tiny=False))
    with pytest.raises(NotNow):
        grid.trained("large", bench)  # no patience: its trainer is stopped while it starts


def test_what_cannot_run_is_one_sentence(tmp_path):
    for words, arguments in (
        ("say --out FOLDER", []),
        ("--parts: sorcery is not one of checks", ["--out", str(tmp_path), "--parts", "sorcery"]),
        ("--device tpu is not one of cpu, cuda", ["--out", str(tmp_path), "--device", "tpu"]),
    ):
        with pytest.raises(UserError, match=words):
            gpu.main(arguments)
