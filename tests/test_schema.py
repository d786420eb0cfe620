"""The CSV schema: exact round trips, and one sentence for every way a file can be unusable."""

import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import schema
from workflows.errors import UserError

ROOT = Path(__file__).parents[1]
VALUES = {
    str: st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(['a,"b"', "two\nlines"]),
    int: st.integers(-(2**62), 2**62),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
}


def rows_of(table: str) -> st.SearchStrategy[dict]:
    def cell(column: schema.Column):
        value = st.sampled_from(column.choices) if column.choices else VALUES[column.dtype]
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
        ("step,run,layer,metric,value\n1,a,0,used,0.5\n", "another order"),
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
    with pytest.raises(ValueError, match="split is 'test', allowed: train, validation"):
        schema.write(path, "train", [{"run": "a", "step": 1, "tokens": 1, "split": "test", "loss": 1.0}])


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
    schema.main([str(copy)])
    assert copy.read_text(encoding="utf-8") == readme, "run `python -m evals.schema results/README.md`"
    for table, columns in schema.TABLES.items():
        assert len({column.name for column in columns}) == len(columns)
        assert f"### {table}.csv" in readme
