"""A re-run agrees, a changed setting differs, unusable folders are one sentence; every rule at its edge."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from repository import ROOT
from synthetic import chain_runs, grid_run, row, write

from evals import compare
from evals.agreement.told import sentence
from evals.claims.evidence.scores import SCORES
from evals.records import schema
from evals.records.errors import UserError
from evals.records.schema.column import RUN, number


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
    a, b = changed(tmp_path, "runs", wall_s=99.0, core_seconds=5.0, ended="later", git_commit="other", test_loss=4.0001)
    assert compare.main([str(a), str(b)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("reproduced: all 6 losses agree (within 0.1%); ")


@pytest.mark.parametrize(
    ("table", "values", "column"),
    [
        ("runs", {"config_sha": "other"}, "config_sha"),
        ("runs", {"params": 2}, "params"),
        ("runs", {"tokens": 999_999}, "tokens"),
        ("runs", {"val_loss": 4.01}, "val_loss"),
        ("runs", {"test_loss": 4.01}, "test_loss"),
        ("runs", {"test_loss": None}, "test_loss"),
        ("runs", {"test_loss": float("inf")}, "test_loss"),
        ("train", {"loss": 5.01}, "loss"),
        ("evals", {"value": 0.52}, "value"),
        ("access", {"bytes": 1001.0}, "bytes"),
        ("latency", {"bytes_counted": 2e6}, "bytes_counted"),
        ("arms", {"label": "other"}, "label"),
    ],
)
def test_one_changed_cell_differs(tmp_path, table, values, column):
    a, b = changed(tmp_path, table, **values)
    assert differing(a, b) == {(table, column)}
    assert differing(b, a) == {(table, column)}


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("evals", {"value": 0.51}),
        ("latency", {"p50_ms": 2.5}),
        ("latency", {"p50_ms": 0.5}),
        ("train", {"loss": 5.004}),
        ("claims", {"reason": "y"}),
    ],
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
    (finding,) = [f for f in compare.compare(a, b) if f.status == "note"]
    assert (finding.a, finding.b) == ("1.5", "3.0")


def curve(*ratios):
    """Dense and UltraMem at rising batches, UltraMem that many times as slow."""
    return [timing(a, 2.0 * r, batch=i + 1) for i, x in enumerate(ratios) for a, r in (("dense", 1.0), ("ultramem", x))]


def test_one_noisy_time_is_a_note_and_a_slower_architecture_differs(tmp_path):
    a = folder(tmp_path / "a", latency=curve(1.5, 1.5, 1.5))
    noisy = folder(tmp_path / "b", latency=curve(1.5, 15.0, 1.5))
    findings = compare.compare(a, noisy)
    assert [(f.table, f.status) for f in findings if f.status != "agree"] == [("latency", "note")]
    assert compare.reproduced(findings)
    for name, other in (("slow", (3.0, 2.9, 1.5)), ("fast", (0.5, 0.5, 0.5))):
        slow = folder(tmp_path / name, latency=curve(*other))
        (finding,) = [f for f in compare.compare(a, slow) if f.status == "differ"]
        assert (finding.table, finding.rule) == ("latency", "ratio: 1.5, median over 3 points")
    assert not differing(a, folder(tmp_path / "few", latency=curve(3.0, 3.0)))


def test_a_yardstick_that_one_folder_lacks_is_no_yardstick(tmp_path):
    both = [timing("moe2", 4.0, batch=i) for i in range(3)] + [timing("ultramem", 6.0, batch=i) for i in range(3)]
    a = folder(tmp_path / "a", latency=both)
    b = folder(tmp_path / "b", latency=both + [timing("dense", 1.0, batch=i) for i in range(3)])
    assert {f.status for f in compare.compare(a, b) if f.table == "latency"} == {"agree", "one side"}


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


def statuses(a, b, table="runs", **options):
    return {
        f.key: f.status for f in compare.compare(a, b, **options) if f.table == table and f.column.endswith(("loss", "value"))
    }


def test_another_machine_is_compared_over_seeds(tmp_path):
    here = folder(tmp_path / "here")
    near = folder(tmp_path / "near", hardware="CUDA: other", shift=0.01)
    findings = compare.compare(here, near)
    assert compare.reproduced(findings)
    assert sentence(findings).startswith("reproduced: all 4 losses agree (equivalence within 0.05 nats/token")
    far = folder(tmp_path / "far", hardware="CUDA: other", shift=0.2)
    assert differing(here, far) == {("runs", "val_loss"), ("runs", "test_loss")}
    rules = {f.rule for f in compare.compare(here, far) if f.status == "differ"}
    assert any("2 pairs" in rule for rule in rules)
    assert any("1 pairs" in rule for rule in rules)
    slow = [timing("dense", 1.0, device="CUDA: other"), timing("ultramem", 9.0, device="CUDA: other")]
    noted = compare.compare(here, folder(tmp_path / "slow", hardware="CUDA: other", latency=slow))
    assert {(f.table, f.status) for f in noted if f.table == "latency" and f.status != "agree"} == {("latency", "note")}


def seeds(path, device="CPU: one", **losses):
    runs = [grid_run(a, seed=s, val_loss=x, device=device) for a, of in losses.items() for s, x in enumerate(of)]
    return write(path, runs=runs)


def test_two_seeds_far_apart_do_not_agree(tmp_path, capsys):
    """The interval of two seeds holds 0 when it is wide enough; it lies inside no margin then."""
    a = seeds(tmp_path / "a", dense=[4.0, 4.1])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.3, 4.15])
    assert statuses(a, b) == {"dense-s": "undecided"}
    assert compare.main([str(a), str(b)]) == 1
    n = counted(a, b)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"not reproduced: 0 of {n} comparisons differ; 0 of 1 losses agree; 1 of them cannot be told to agree or to differ; "
        f"{n - 2} comparisons agree"  # the two that do not: its losses on validation and on test
    )
    assert statuses(a, seeds(tmp_path / "c", "CPU: two", dense=[4.3, 4.4])) == {"dense-s": "differ"}


def counted(a, b):
    return sum(f.status in ("agree", "undecided", "differ") for f in compare.compare(a, b))


def test_the_interval_lies_inside_the_margin(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0, 4.1, 4.2], moe2=[4.0, 4.1, 4.2])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.01, 4.09, 4.21], moe2=[4.03, 4.13, 4.23])
    assert statuses(a, b) == {"dense-s": "agree", "moe2-s": "agree"}
    assert statuses(a, b, margin=0.02) == {"dense-s": "agree", "moe2-s": "undecided"}
    assert statuses(a, b, margin=0.01) == {"dense-s": "undecided", "moe2-s": "differ"}
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--margin"):
            compare.compare(a, b, margin)


def test_one_seed_takes_its_noise_from_the_other_models(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0], moe2=[4.0], moe8=[4.0], pkm=[4.0])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.005], moe2=[3.995], moe8=[4.006], pkm=[4.3])
    assert statuses(a, b) == {"dense-s": "undecided", "moe2-s": "undecided", "moe8-s": "undecided", "pkm-s": "differ"}
    b = seeds(tmp_path / "c", "CPU: two", dense=[4.005], moe2=[3.995], moe8=[4.006], pkm=[4.002])
    assert set(statuses(a, b).values()) == {"agree"}
    a, b, c = (seeds(tmp_path / f"lone{x}", f"CPU: {x}", dense=[x]) for x in (4.0, 4.02, 4.2))
    assert statuses(a, b) == {"dense-s": "undecided"}
    assert statuses(a, c) == {"dense-s": "differ"}


def test_a_run_that_ended_on_one_machine_only_differs(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0, 4.1])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.0, None])
    assert statuses(a, b) == {"dense-s-s1": "differ", "dense-s": "agree"}


def scored(path, values, device="CPU: one", metric="acc", n=400, stderr=0.025):
    names = [f"m{i}-s-s0" for i in range(len(values))]
    scores = [
        row("evals", run=name, task="t", metric=metric, n=n, value=x, stderr=stderr)
        for name, x in zip(names, values, strict=True)
    ]
    return write(path, runs=[grid_run("dense", run=name, device=device) for name in names], evals=scores)


@pytest.mark.parametrize(
    ("metric", "here", "there", "status"),
    [
        ("acc", [0.50, 0.50, 0.50], [0.51, 0.49, 0.50], {"t acc 1": "agree"}),
        ("acc", [0.50, 0.50, 0.50], [0.58, 0.59, 0.58], {"t acc 1": "differ"}),
        # 0.06 apart is 1.7 independent standard errors: once let through.
        ("acc", [0.50, 0.50, 0.50], [0.58, 0.42, 0.56], {"t acc 1": "undecided"}),
        ("acc", [0.50], [0.56], {"t acc 1": "undecided"}),
        ("acc", [0.50], [0.80], {"t acc 1": "differ", "m0-s-s0 t acc 1": "differ"}),
        ("acc", [0.50] * 20, [0.50] * 19 + [0.80], {"t acc 1": "agree", "m19-s-s0 t acc 1": "differ"}),
        ("acc", [0.50], [0.50], {"t acc 1": "agree"}),
        ("loss", [2.0, 3.0, 4.0], [2.01, 2.99, 4.01], {"t loss 1": "agree"}),
        (
            "loss",
            [2.0, 3.0, 4.0],
            [2.2, 3.2, 4.2],
            {"t loss 1": "differ", **{f"m{i}-s-s0 t loss 1": "differ" for i in range(3)}},
        ),
        ("loss", [2.0, 3.0], [float("inf"), 3.0], {"t loss 1": "differ"}),
    ],
)
def test_scores_of_another_machine_are_paired_over_runs(tmp_path, metric, here, there, status):
    a = scored(tmp_path / "a", here, metric=metric)
    b = scored(tmp_path / "b", there, "CPU: two", metric=metric)
    assert statuses(a, b, "evals") == status
    assert statuses(b, a, "evals") == status
    decided = "differ" not in status.values()
    assert compare.reproduced(compare.compare(a, b)) == decided
    assert ("scores have too few runs or items to decide" in sentence(compare.compare(a, b))) == (
        "undecided" in status.values()
    )


def test_none_right_of_a_few_items_is_not_a_certain_score(tmp_path):
    a = scored(tmp_path / "a", [0.0, 0.5, 0.5, 0.5], n=6, stderr=0.0)
    b = scored(tmp_path / "b", [0.5, 0.5, 0.5, 0.5], "CPU: two", n=6, stderr=0.0)
    assert statuses(a, b, "evals") == {"t acc 1": "undecided"}


@pytest.mark.parametrize("metric", SCORES)
def test_every_score_may_move_by_one_item_and_no_mean_may(tmp_path, metric):
    def one(path, name, value):
        return folder(path, evals=[row("evals", run="dense-s-s0", task="t", metric=name, n=100, value=value)])

    assert not differing(one(tmp_path / "a", metric, 0.5), one(tmp_path / "b", metric, 0.51))
    assert differing(one(tmp_path / "a", metric, 0.5), one(tmp_path / "c", metric, 0.52)) == {("evals", "value")}
    assert differing(one(tmp_path / "d", "bacc_loss", 0.5), one(tmp_path / "e", "bacc_loss", 0.51)) == {("evals", "value")}


def test_times_that_one_side_lacks_are_listed(tmp_path):
    cuda = [timing(a, 1.0, device="CUDA: x", threads=None) for a in ("dense", "ultramem")]
    cpu = [timing(a, 1.0) for a in ("dense", "ultramem")]
    a, b = folder(tmp_path / "a", latency=cpu), folder(tmp_path / "b", latency=cpu + cuda)
    assert not differing(a, b)
    assert [f.status for f in compare.compare(a, b) if f.status != "agree"] == ["one side"] * 2
    assert not differing(a, folder(tmp_path / "c", latency=cpu[:1]))


def tuning(*settings):
    return [row("tuning", arch="dense", setting=f'{{"lr": {lr}}}', run=f"tune-{lr}", val_loss=4.0) for lr in settings]


def test_what_one_folder_holds_is_listed_and_not_held_against_it(tmp_path, capsys):
    """A fresh run has its winners' rows of tuning.csv, the reference the whole sweep."""
    a = folder(tmp_path / "a", tuning=tuning(0.1), train=[])
    (a / "train.csv").unlink()
    b = folder(tmp_path / "b", tuning=tuning(0.1, 0.2, 0.3))
    assert compare.main([str(a), str(b)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert f'only in {b}: tuning dense {{"lr": 0.2}} tune-0.2' in lines
    assert f"only in {b}: train (the whole table)" in lines
    assert last == (
        f"reproduced: all 6 losses agree to the last digit; {counted(a, b)} comparisons agree; "
        "in one folder only: 2 rows of tuning, all of train"
    )
    assert compare.main([str(b), str(a)]) == 0
    assert f"only in {b}: train (the whole table)" in capsys.readouterr().out


def test_not_reproduced_says_by_how_much(tmp_path):
    a, b = changed(tmp_path, "runs", test_loss=4.5, params=2)
    findings = compare.compare(a, b)
    n = counted(a, b)
    assert sentence(findings) == (
        f"not reproduced: 2 of {n} comparisons differ (runs 2); 5 of 6 losses agree; {n - 2} comparisons agree"
    )


def test_folders_that_share_no_run_reproduce_nothing(tmp_path):
    findings = compare.compare(seeds(tmp_path / "a", dense=[4.0]), seeds(tmp_path / "b", moe2=[4.0]))
    assert not compare.reproduced(findings)
    assert sentence(findings) == (
        "not reproduced: the two folders share no run that has a final loss; 0 comparisons agree; "
        "in one folder only: 2 rows of runs"
    )


def test_columns_and_tables_of_a_later_schema_are_no_obstacle(tmp_path, monkeypatch):
    later = (RUN, number("unheard_of", "", "", False))
    monkeypatch.setitem(schema.TABLES, "runs", schema.TABLES["runs"] + later[1:])
    monkeypatch.setitem(schema.TABLES, "unheard_of", later)
    a, b, c = (
        write(tmp_path / name, runs=[grid_run("dense", test_loss=loss, unheard_of=x)], unheard_of=[{"run": "a"}])
        for name, loss, x in (("a", 4.0, 1.0), ("b", 4.0, 2.0), ("c", 5.0, 1.0))
    )
    findings = compare.compare(a, b)
    assert compare.reproduced(findings)
    assert [(f.table, f.rule) for f in findings if f.status == "note"] == [
        ("unheard_of", "no rule: name its key in evals/compare.py")
    ]
    assert differing(a, c) == {("runs", "test_loss")}
    assert "0 of 1 losses agree" in sentence(compare.compare(a, c))


# Tables and columns that other branches bring.
def test_every_table_and_every_named_column_has_its_place():
    assert schema.TABLES.keys() - set(compare.UNCOMPARED) <= compare.KEYS.keys()
    assert compare.KEYS.keys() <= schema.TABLES.keys()
    named = {table: list(columns) for table, columns in compare.KEYS.items()}
    for rules in ({t: words.split() for t, words in compare.EXACT.items()}, compare.LOSSES, compare.ROUGHLY):
        for table, columns in rules.items():
            named[table] += columns
    for table in named.keys() & schema.TABLES.keys():
        assert set(named[table]) - {column.name for column in schema.columns(table)} == set()


def test_make_ends_with_the_sentence(tmp_path):
    """The tail of the Makefile's recipe, run on made-up results: 0 whatever it says, and not 0 if it can say nothing."""
    recipe = (ROOT / "Makefile").read_text().split("\nall: env\n")[1].split("\n\n")[0].replace("\\\n", "")
    tail = recipe.splitlines()[-1].strip().removeprefix("@")
    command = tail.replace("$(BIN)/python", sys.executable).replace("$(PRESET)", "cpu").replace("$$", "$")

    def ends(**replaced):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        folder(tmp_path / "results" / "reference")
        folder(tmp_path / "results" / "cpu", **replaced)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    same, other, unusable = ends(), ends(shift=1.0), ends(runs=[])
    assert (same.returncode, other.returncode) == (0, 0)
    assert same.stdout.splitlines()[-1].startswith("reproduced: all 6 losses agree to the last digit; ")
    assert other.stdout.splitlines()[-1].startswith("not reproduced: ")
    assert not same.stderr + other.stderr
    assert unusable.returncode != 0


def test_a_row_or_table_of_one_folder_is_no_difference(tmp_path):
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", evals=[])
    assert not differing(a, b)
    assert [(f.table, f.status) for f in compare.compare(a, b) if f.status != "agree"] == [("evals", "one side")]
    (b / "evals.csv").unlink()
    assert [(f.table, f.key, f.status) for f in compare.compare(a, b) if f.status != "agree"] == [("evals", "", "one side")]


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
    b = b.rename(tmp_path / "<img src=x> & co")
    out = tmp_path / "out"

    def code(*arguments):
        command = [sys.executable, "-m", "evals.compare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert code(a, b, "--out", out).returncode == 1
    page = (out / "compare.html").read_text()
    assert "4.5" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<img" not in page
    assert page.count("&lt;img src=x&gt; &amp; co</th>") == 1
    assert not re.search(r"<[^>]*(src|href)=", page)
    lines = (out / "compare.csv").read_text().splitlines()
    assert lines[0] == "table,key,column,a,b,rule,status"
    assert any(line.endswith(",differ") for line in lines)
    broken = code(a, tmp_path / "nowhere")
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: ")
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.stderr


def test_a_noisy_step_may_move_as_far_as_its_own_spread(tmp_path):
    def moved(a, b):
        return {f.column for f in compare.compare(a, b) if f.status == "note"}

    calm = [timing("dense", 2.0), timing("ultramem", 3.0)]
    a, b = folder(tmp_path / "a", latency=calm), folder(tmp_path / "b", latency=[timing("dense", 2.0), timing("ultramem", 6.0)])
    assert moved(a, b) == {"p50_ms over yardstick"}
    noisy = [timing("dense", 2.0), timing("ultramem", 6.0, p20_ms=3.0, p80_ms=6.5)]
    assert not moved(a, folder(tmp_path / "c", latency=noisy))
