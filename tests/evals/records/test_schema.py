"""The CSV schema: exact round trips, and one sentence for every way a file can be unusable."""

import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from evals.records import schema
from evals.records.errors import UserError
from evals.records.schema.__main__ import main

VALUES = {
    str: st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text not in schema.MISSING)
    | st.sampled_from(['a,"b"', "two\nlines"]),
    int: st.integers(-(2**62), 2**62),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
}


# What pandas keeps: text that it cannot take for a number, and whole numbers that a float holds (it has no other column
# for whole numbers of which some are missing).
KEPT = VALUES | {str: VALUES[str].map("x{}".format), int: st.integers(-(2**53), 2**53)}


def rows_of(table: str, values: dict[type, st.SearchStrategy] = VALUES) -> st.SearchStrategy[dict]:
    def cell(column: schema.Column):
        value = st.sampled_from(column.choices) if column.choices else values[column.dtype]
        return value if column.required else value | st.none()

    return st.fixed_dictionaries({column.name: cell(column) for column in schema.columns(table)})


HEALTH = [
    {"run": "pkm-a-s0", "step": 10, "layer": 0, "metric": "used", "value": 0.1 + 0.2},
    {"run": "pkm-a-s0", "step": 20, "layer": 1, "metric": "recall@m", "value": 1e-300},
]


@given(st.data())
def test_every_table_round_trips_exactly(tmp_path_factory, data):
    table = data.draw(st.sampled_from(sorted(schema.TABLES)))
    rows = data.draw(st.lists(rows_of(table), min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("csv") / f"{table}.csv"
    schema.write(path, table, rows)
    frame = schema.read(path, table)
    for row, (_, got) in zip(rows, frame.iterrows(), strict=True):
        for column in schema.columns(table):
            want, value = row[column.name], frame[column.name][got.name]
            if want is None:
                assert value == "" if column.dtype is str else pd.isna(value)
            else:
                assert value == want
    again = path.with_name("again.csv")
    schema.write(again, table, frame)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("table", sorted(schema.TABLES))
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_table_that_went_through_pandas_reads_as_before(tmp_path_factory, table, data):
    rows = data.draw(st.lists(rows_of(table, KEPT), min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("csv") / f"{table}.csv"
    schema.write(path, table, rows)
    before = schema.read(path, table)
    with_index, order = data.draw(st.booleans()), data.draw(st.permutations(list(before)))
    frame = pd.read_csv(path, float_precision="round_trip")[order]
    frame.to_csv(path, index=with_index, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])))
    pd.testing.assert_frame_equal(schema.read(path, table), before, check_exact=True)
    pd.read_csv(path).to_csv(path, index=False)  # the index is now a column of a name that pandas made up
    pd.testing.assert_frame_equal(schema.read(path, table), before, rtol=1e-14)


EVALS = [
    {"run": "a", "task": "t", "metric": "acc", "n_shot": 0, "n": 100000, "value": 0.5, "higher_is_better": True}
    | {"primary": True},
    {"run": "b,c", "task": 'a "b"', "metric": "loss", "n_shot": 5, "n": 3, "value": -1e-05, "stderr": 0.25, "chance": 2.0}
    | {"higher_is_better": False, "primary": False},
]
FOREIGN = {
    "R's write.csv": '"","run","task","metric","n_shot","n","value","stderr","chance","higher_is_better","primary"\n'
    '"1","a","t","acc",0,1e+05,0.5,NA,NA,TRUE,TRUE\n"2","b,c","a ""b""","loss",5,3,-1e-05,0.25,2,FALSE,FALSE\n',
    "a spreadsheet's": "\ufeffrun,task,metric,n_shot,n,value,stderr,chance,higher_is_better,primary\r\n"
    'a,t,acc,0,100000,0.5,#N/A,,TRUE,TRUE\r\n"b,c","a ""b""",loss,5,3,-1.00E-05,0.25,2,FALSE,FALSE\r\n\r\n',
    "pandas' with everything as float": "task,run,metric,n_shot,n,value,stderr,chance,higher_is_better,primary\n"
    't,a,acc,0.0,100000.0,0.5,NaN,<NA>,1.0,1.0\n"a ""b""","b,c",loss,5.0,3.0,-1e-05,0.25,2.0,0.0,0.0\n',
    "initials": "run,task,metric,n_shot,n,value,stderr,chance,higher_is_better,primary\n"
    '"a","t","acc","0","100000","0.5","nan","NULL","T","T"\n"b,c","a ""b""",loss,5,3,-1e-05,0.25,2,f,f\n',
}


@pytest.mark.parametrize("who", FOREIGN)
def test_what_other_programs_write_is_read(tmp_path, who):
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    schema.write(ours, "evals", EVALS)
    theirs.write_bytes(FOREIGN[who].encode())
    pd.testing.assert_frame_equal(schema.read(theirs, "evals"), schema.read(ours, "evals"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",true\n", ",yes\n", "line 2 does not fit table 'evals': primary is 'yes', not true or false"),
        (",true\n", ",2\n", "primary is '2', not true or false"),
        (",true\n", ",NA\n", "primary is 'NA', a missing value"),
        ("100000", "100000.5", "n is '100000.5', not a whole number"),
        ("100000", "9.1e+15", "n is '9.1e+15', not a whole number"),
        ("100000", "inf", "n is 'inf', not a whole number"),
        ("100000", "<NA>", "n is '<NA>', a missing value"),
    ],
)
def test_what_no_program_means_stays_refused(tmp_path, old, new, words):
    path = tmp_path / "evals.csv"
    schema.write(path, "evals", EVALS)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as error:
        schema.read(path, "evals")
    assert words in str(error.value)


@pytest.mark.parametrize("word", sorted(schema.MISSING - {""}))
def test_text_that_would_read_back_as_missing_is_not_written(tmp_path, word):
    for column in ("run", "target"):
        with pytest.raises(ValueError, match=f"{column} is '{word}'"):
            schema.write(tmp_path / "cost.csv", "cost", [{"target": "t", "core_seconds": 1.0} | {column: word}])


def test_missing_value_is_an_empty_cell_and_not_zero(tmp_path):
    path = tmp_path / "cost.csv"
    schema.write(path, "cost", [{"target": "train", "core_seconds": 1.5, "tokens": float("nan")}])
    assert path.read_text() == "target,run,core_seconds,tokens,flops\ntrain,,1.5,,\n"
    assert schema.read(path, "cost")["tokens"].isna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"typo": 1}, "'typo'"),
        ({"step": 1.5}, "step is 1.5, not a whole number"),
        ({"step": True}, "step is True"),
        ({"value": "0.5"}, "value is '0.5', not a number"),
        ({"value": None}, "value is empty"),
        ({"run": ""}, "run is empty"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_leaves_the_file_alone(tmp_path, change, words):
    path = tmp_path / "health.csv"
    schema.write(path, "health", HEALTH)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="row 2") as error:
        schema.write(path, "health", [HEALTH[0], HEALTH[1] | change])
    assert words in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["health.csv"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        schema.write(tmp_path / "health.csv", "health", HEALTH)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing"),
        ("", "cut short"),
        ("run,step,layer,metric,value\na,1,0,used,0.5\na,2,0,us", "cut short"),
        ("run,step,layer,metric,value\na,1,0,used,0.5\na,2,0\n", "line 3 has 3 cells"),
        ("run,step,layer,metric\na,1,0,used\n", "lacks 'value'"),
        ("name,step,layer,metric,value\na,1,0,used,0.5\n", "lacks 'run' and it has 'name'"),
        ("run,step,layer,metric,value,run\na,1,0,used,0.5,a\n", "a column is repeated"),
        ("run,step,layer,metric,value\na,1,0,used,0.5x\n", "line 2 does not fit table 'health': value is '0.5x'"),
        ("run,step,layer,metric,value\na,1,0,used,nan\n", "value is 'nan'"),
        ("run,step,layer,metric,value\na,,0,used,0.5\n", "step is empty"),
        ('run,step,layer,metric,value\na,1,0,"used,0.5\n', "is not CSV"),
    ],
)
def test_an_unusable_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "health.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        schema.read(path, "health")
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_binary_file_and_a_folder_are_one_sentence(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\n")
    for path in (tmp_path, tmp_path / "x.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            schema.read(path, "health")


def test_a_word_outside_the_choices_is_refused(tmp_path):
    path = tmp_path / "train.csv"
    with pytest.raises(ValueError, match="split is 'tset', allowed: train, validation, validation-final, test"):
        schema.write(path, "train", [{"run": "a", "step": 1, "tokens": 1, "split": "tset", "loss": 1.0}])


def test_gather_joins_in_order_and_names_the_bad_file(tmp_path):
    parts = [tmp_path / name for name in ("a.csv", "b.csv")]
    for path, row in zip(parts, HEALTH, strict=True):
        schema.write(path, "health", [row])
    schema.gather(reversed(parts), "health", tmp_path / "out.csv")
    assert list(schema.read(tmp_path / "out.csv", "health")["step"]) == [20, 10]
    parts[1].write_text("foreign\n1\n")
    with pytest.raises(UserError, match=r"b.csv is not a CSV of table 'health'"):
        schema.gather(parts, "health", tmp_path / "out.csv")


def test_unknown_table_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no table 'run'.*runs, train"):
        schema.read(tmp_path / "run.csv", "run")


def test_the_readme_explains_the_columns_as_they_are(tmp_path):
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(readme, encoding="utf-8")
    main([str(copy)])
    assert copy.read_text(encoding="utf-8") == readme, "run `python -m evals.records.schema results/README.md`"
    for table, columns in schema.TABLES.items():
        assert len({column.name for column in columns}) == len(columns)
        assert f"### {table}.csv" in readme
