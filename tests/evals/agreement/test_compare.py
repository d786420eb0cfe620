"""A re-run agrees, a changed setting differs; every rule of one machine at its edge."""

import pytest
from pairs import changed, differing, folder, timing
from synthetic import grid_run, row, write

from evals import compare
from evals.agreement.told import sentence
from evals.claims.evidence.scores import SCORES
from evals.records import schema
from evals.records.schema.column import RUN, number


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


def test_a_noisy_step_may_move_as_far_as_its_own_spread(tmp_path):
    def moved(a, b):
        return {f.column for f in compare.compare(a, b) if f.status == "note"}

    calm = [timing("dense", 2.0), timing("ultramem", 3.0)]
    a, b = folder(tmp_path / "a", latency=calm), folder(tmp_path / "b", latency=[timing("dense", 2.0), timing("ultramem", 6.0)])
    assert moved(a, b) == {"p50_ms over yardstick"}
    noisy = [timing("dense", 2.0), timing("ultramem", 6.0, p20_ms=3.0, p80_ms=6.5)]
    assert not moved(a, folder(tmp_path / "c", latency=noisy))
