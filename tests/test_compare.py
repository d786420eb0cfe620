"""A re-run agrees, a changed setting differs, unusable folders are one sentence; every rule at its edge."""

import re
import shutil
import subprocess
import sys

import pytest
from synthetic import chain_runs, grid_run, row, write

from evals import compare, schema
from workflows.errors import UserError


def timing(arch, p50, **values):
    times = {
        "variant": "plain",
        "bytes_counted": 1e6,
        "p20_ms": p50,
        "p50_ms": p50,
        "p80_ms": p50,
        "n_iters": 20,
        "bytes_declared": 1e6,
        "run": "",
    }
    how = {"phase": "decode", "part": "model", "kind": "measured", "device": "CPU: made up", "batch": 16, "threads": 1}
    return row("latency", **(times | how | {"arch": arch, "sparse_ratio": 0.0 if arch == "dense" else 12.0} | values))


def folder(path, hardware="CPU: made up", shift=0.0, **replaced):
    """A small results folder; `shift` moves every loss, `replaced` gives whole tables."""
    grid = [grid_run(a, seed=s, val_loss=4 + s / 10 + shift, device=hardware) for a in ("dense", "ultramem") for s in (0, 1)]
    runs, arms = chain_runs("c", {"base": [4.2 + shift], "+x": [4.1 + shift]}, device=hardware)
    tables = {
        "runs": grid + runs,
        "arms": arms,
        "train": [row("train", run="dense-s-s0", step=i, split="train", loss=5.0 - i + shift) for i in range(3)],
        "evals": [row("evals", run="dense-s-s0", task="t", metric="acc", n=100, value=0.5, stderr=0.05)],
        "access": [
            row("access", run="ultramem-s-s0", layer=None, batch=16, routing="uniform", bytes=1000.0),
            row("access", run="ultramem-s-s0", layer=None, batch=16, routing="trained", kind="counted", bytes=900.0),
        ],
        "latency": [timing("dense", 2.0, device=hardware), timing("ultramem", 3.0, device=hardware)],
        "machine": [row("machine", device=hardware, quantity="read", value=1e10)],
        "claims": [row("claims", id="1", verdict="reproduced")],
    }
    return write(path, **(tables | replaced))


def differing(a, b):
    return {(f.table, f.column) for f in compare.compare(a, b) if f.status == "differ"}


def changed(tmp_path, table, **values):
    """Two folders that are equal but for one cell of the table's first row."""
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    frame = schema.read(b / f"{table}.csv", table).astype(object)
    for column, value in values.items():
        frame.loc[0, column] = value
    schema.write(b / f"{table}.csv", table, frame)
    return a, b


def test_a_rerun_agrees_though_clocks_differ(tmp_path, capsys):
    a, b = changed(tmp_path, "runs", wall_s=99.0, core_seconds=5.0, ended="later", git_commit="other", val_loss=4.0001)
    assert compare.main([str(a), str(b)]) == 0
    assert "agree: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "values", "column"),
    [
        ("runs", {"config_sha": "other"}, "config_sha"),
        ("runs", {"params": 2}, "params"),
        ("runs", {"tokens": 999_999}, "tokens"),
        ("runs", {"val_loss": 4.01}, "val_loss"),
        ("runs", {"val_loss": None}, "val_loss"),
        ("train", {"loss": 5.01}, "loss"),
        ("evals", {"value": 0.52}, "value"),
        ("access", {"bytes": 1001.0}, "bytes"),
        ("latency", {"bytes_counted": 2e6}, "bytes_counted"),
        ("latency", {"p50_ms": 0.5}, "p50_ms over yardstick"),
        ("arms", {"label": "other"}, "label"),
    ],
)
def test_one_changed_cell_differs(tmp_path, table, values, column):
    a, b = changed(tmp_path, table, **values)
    assert differing(a, b) == {(table, column)}
    assert differing(b, a) == {(table, column)}


@pytest.mark.parametrize(
    ("table", "values"),
    [("evals", {"value": 0.51}), ("latency", {"p50_ms": 2.5}), ("train", {"loss": 5.004}), ("claims", {"reason": "y"})],
)
def test_noise_of_a_rerun_is_let_through(tmp_path, table, values):
    assert not differing(*changed(tmp_path, table, **values))


def counted_off_by(factor):
    return [row("access", run="ultramem-s-s0", layer=None, routing="trained", kind="counted", bytes=900.0 * factor)]


def test_counted_bytes_may_stray_where_declared_ones_may_not(tmp_path):
    a, near, far = (folder(tmp_path / str(f), access=counted_off_by(f)) for f in (1.0, 1.05, 1.3))
    assert not differing(a, near)
    assert differing(a, far) == {("access", "bytes")}


def test_the_speed_of_a_machine_is_a_note(tmp_path):
    a, b = changed(tmp_path, "machine", value=2e10)
    assert [(f.table, f.status) for f in compare.compare(a, b) if f.status != "agree"] == [("machine", "note")]
    elsewhere = folder(tmp_path / "c", machine=[row("machine", device="CUDA: other", quantity="read", value=1e12)])
    assert not differing(a, elsewhere)


def test_modelled_and_measured_times_are_one_table(tmp_path):
    modelled = [timing(a, p, kind="modelled", device="CUDA: A") for a, p in (("dense", 1.0), ("moe2", 3.0))]
    a, b = (folder(tmp_path / name) for name in "ab")
    for path, last in ((a, 3.0), (b, 3.1)):
        schema.write(path / "latency_modelled.csv", "latency", [modelled[0], modelled[1] | {"p50_ms": last}])
    assert differing(a, b) == {("latency", "p50_ms over yardstick")}


def test_a_variant_is_held_against_the_plain_yardstick(tmp_path):
    def rows(overlap):
        # The yardstick is plain even where another variant of it comes first.
        return [timing("dense", 9.0, variant="folded"), timing("dense", 2.0), timing("ultramem", overlap, variant="overlap")]

    a, b = (folder(tmp_path / str(ms), latency=rows(ms)) for ms in (3.0, 6.0))
    (finding,) = [f for f in compare.compare(a, b) if f.status == "differ"]
    assert (finding.a, finding.b) == ("1.5", "3.0")


def test_milliseconds_alone_are_never_compared(tmp_path):
    twice = [timing("dense", 4.0), timing("ultramem", 6.0)]
    assert not differing(folder(tmp_path / "a"), folder(tmp_path / "b", latency=twice))


def test_modelled_times_of_each_device_are_kept_apart(tmp_path):
    devices = ("CUDA: A", "CUDA: B")
    rows = [timing(a, p, kind="modelled", device=d) for a, p in (("dense", 1.0), ("moe2", 3.0)) for d in devices]
    a, b = (
        folder(tmp_path / "a", latency=rows),
        folder(tmp_path / "b", latency=[*rows[:2], rows[2] | {"p50_ms": 3.1}, rows[3]]),
    )
    assert not differing(a, a)
    assert differing(a, b) == {("latency", "p50_ms over yardstick")}


def test_another_machine_is_compared_over_seeds(tmp_path):
    here = folder(tmp_path / "here")
    near = folder(tmp_path / "near", hardware="CUDA: other", shift=0.004)
    assert not differing(here, near)
    far = folder(tmp_path / "far", hardware="CUDA: other", shift=0.2)
    assert differing(here, far) == {("runs", "val_loss")}
    rules = {f.rule for f in compare.compare(here, far) if f.status == "differ"}
    assert any("2 seeds" in rule for rule in rules)
    assert any("one seed" in rule for rule in rules)
    slow = [timing("dense", 1.0, device="CUDA: other"), timing("ultramem", 9.0, device="CUDA: other")]
    noted = compare.compare(here, folder(tmp_path / "slow", hardware="CUDA: other", latency=slow))
    assert {(f.table, f.status) for f in noted if f.table == "latency" and f.status != "agree"} == {("latency", "note")}


def test_times_on_a_device_that_one_side_lacks_are_a_note(tmp_path):
    cuda = [timing(a, 1.0, device="CUDA: x", threads=None) for a in ("dense", "ultramem")]
    cpu = [timing(a, 1.0) for a in ("dense", "ultramem")]
    a, b = folder(tmp_path / "a", latency=cpu), folder(tmp_path / "b", latency=cpu + cuda)
    assert not differing(a, b)
    assert differing(a, folder(tmp_path / "c", latency=cpu[:1])) == {("latency", "")}


def test_one_noisy_pair_does_not_differ(tmp_path):
    def seeds(path, losses, device):
        return write(path, runs=[grid_run("a", seed=s, val_loss=x, device=device) for s, x in enumerate(losses)])

    a = seeds(tmp_path / "a", [4.0, 4.1, 4.2], "CPU: one")
    assert not differing(a, seeds(tmp_path / "b", [4.03, 4.08, 4.21], "CPU: two"))
    assert differing(a, seeds(tmp_path / "c", [4.03, 4.13, 4.23], "CPU: two")) == {("runs", "val_loss")}


def test_a_missing_row_differs_a_missing_table_is_a_note(tmp_path):
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", evals=[])
    assert differing(a, b) == {("evals", "")}
    (b / "evals.csv").unlink()
    assert not differing(a, b)
    assert any(f.status == "note" and f.table == "evals" for f in compare.compare(a, b))


def test_a_changed_verdict_is_told_but_not_counted(tmp_path):
    a, b = changed(tmp_path, "claims", verdict="inconclusive")
    notes = [f for f in compare.compare(a, b) if f.status == "note"]
    assert [(f.a, f.b) for f in notes] == [("reproduced", "inconclusive")]
    assert not differing(a, b)


def damage(path, how):
    runs = path / "runs.csv"
    if how == "missing folder":
        shutil.rmtree(path)
    elif how == "missing":
        runs.unlink()
    elif how == "truncated":
        runs.write_bytes(runs.read_bytes()[:-20])
    elif how == "cut train":
        (path / "train.csv").write_text((path / "train.csv").read_text()[:-3])
    elif how == "foreign":
        runs.write_text("model,loss\ngpt,3.2\n")
    elif how == "empty":
        runs.write_text("")
    elif how == "header only":
        runs.write_text(runs.read_text().splitlines()[0] + "\n")
    elif how == "binary":
        runs.write_bytes(b"\x89PNG\x00\xff\xfe\n")
    elif how == "twice":
        lines = runs.read_text().splitlines()
        runs.write_text("\n".join([*lines, lines[-1]]) + "\n")


@pytest.mark.parametrize(
    "how",
    ["missing folder", "missing", "truncated", "cut train", "foreign", "empty", "header only", "binary", "twice"],
)
@pytest.mark.parametrize("which", ["a", "b"])
def test_unusable_input_is_one_sentence_naming_the_file(tmp_path, how, which):
    folders = {name: folder(tmp_path / name) for name in "ab"}
    damage(folders[which], how)
    with pytest.raises(UserError) as error:
        compare.main([str(folders["a"]), str(folders["b"])])
    assert str(folders[which]) in str(error.value)
    assert "\n" not in str(error.value)


def test_exit_status_and_files(tmp_path):
    a, b = changed(tmp_path, "runs", val_loss=4.5, arch="<script>")
    out = tmp_path / "out"

    def code(*arguments):
        command = [sys.executable, "-m", "evals.compare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert code(a, b, "--out", out).returncode == 1
    page = (out / "compare.html").read_text()
    assert "4.5" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page)
    lines = (out / "compare.csv").read_text().splitlines()
    assert lines[0] == "table,key,column,a,b,rule,status"
    assert any(line.endswith(",differ") for line in lines)
    broken = code(a, tmp_path / "nowhere")
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: ")
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.stderr


def test_a_noisy_step_may_move_as_far_as_its_own_spread(tmp_path):
    calm = [timing("dense", 2.0), timing("ultramem", 3.0)]
    moved = [timing("dense", 2.0), timing("ultramem", 6.0)]
    a, b = folder(tmp_path / "a", latency=calm), folder(tmp_path / "b", latency=moved)
    assert ("latency", "p50_ms over yardstick") in differing(a, b)
    noisy = [timing("dense", 2.0), timing("ultramem", 6.0, p20_ms=3.0, p80_ms=6.5)]
    assert ("latency", "p50_ms over yardstick") not in differing(a, folder(tmp_path / "c", latency=noisy))
