"""A committed run is taken over whole and byte for byte, or not at all; what is stored is of the grid's config and source."""

import json

import pytest
import yaml
from synthetic import row

from evals.records import schema, store
from evals.records.errors import UserError
from workflows import adopt, forecast, gather, presets, reference
from workflows.grid import load_grid

SAME = {"config_sha": "c1", "source_sha": "s1"}


def finished(folder, data, **values):
    """A run's folder as training and evaluation leave it."""
    names = {"run": folder.name, "preset": "reference", "arch": "dense", "size": "d64"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(names | {"seed": 0}))
    made = SAME | {"data_sha": data, "device": "CPU: elsewhere", "git_commit": "c0ffee", "ended": "noon"} | names | values
    schema.write(folder / "runs.csv", "runs", [row("runs", **made)])
    steps = [row("train", run=folder.name, step=step, loss=1 / (3 + step)) for step in range(50)]
    for table, rows in {"train": steps, "health": [row("health", run=folder.name)]}.items():
        schema.write(folder / f"{table}.csv", table, rows)
    schema.write(folder / "evals.csv", "evals", [row("evals", run=folder.name, task='a "b", c')])
    schema.write(folder / "access.csv", "access", [row("access", run=folder.name, arch="dense", size="d64")])
    for name in ("evals.json", "access.json"):
        (folder / name).write_text("{}")
    for name in ("tokens.safetensors", "model.safetensors"):
        (folder / name).write_bytes(b"\0\r\n\xff" + folder.name.encode())
    return folder


@pytest.fixture
def here(tmp_path, corpus):
    """(results folder with a run `mine` that is still to be had, store, hash of the data)"""
    results, data = tmp_path / "results/tiny", json.loads((corpus / "meta.json").read_text())["sha256"]["train.bin"][:12]
    entry = {"sha": "c1", "source": "s1"}
    (results / "runs/mine").mkdir(parents=True)
    names = {"run": "mine", "preset": "tiny", "arch": "dense", "size": "d64"}
    (results / "runs/mine/config.yaml").write_text(yaml.safe_dump(names))
    (results / "grid.json").write_text(json.dumps({"preset": "tiny", "data": str(corpus), "runs": {"mine": entry}}))
    return results, tmp_path / "store", data


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_adopted_run_is_the_stored_one_byte_for_byte(here, tmp_path, capsys):
    results, kept, data = here
    run = results / "runs/mine"
    theirs = finished(tmp_path / "theirs/mine", data, preset="tiny")
    store.keep(theirs, kept)
    assert not (kept / "mine/model.safetensors").exists()
    config = (run / "config.yaml").read_bytes()
    for stale in ("model.safetensors", "checkpoint.safetensors", "items.parquet"):
        (run / stale).write_bytes(b"of older code")
    assert adopt.main([str(results), "mine", "--store", str(kept)]) == 0
    wanted = written(theirs) | {"config.yaml": config}
    del wanted["model.safetensors"]
    assert written(run) == wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"mine: adopted from {kept / 'mine'}, trained on CPU: elsewhere at commit c0ffee, ended noon"


def test_a_run_that_has_another_name_there_gets_ours_and_nothing_else_changes(here, tmp_path):
    results, kept, data = here
    store.keep(finished(tmp_path / "theirs/chain.base-d64-s0", data), kept)
    assert adopt.adopt(results, "mine", kept)
    expected = finished(tmp_path / "again/mine", data, preset="tiny")
    for table in ("runs", "train", "health", "evals", "access"):
        assert (results / f"runs/mine/{table}.csv").read_bytes() == (expected / f"{table}.csv").read_bytes(), table


def test_a_source_that_trains_alike_is_the_same(here, tmp_path, capsys, monkeypatch):
    results, kept, data = here
    finished(results / "runs/mine", data, source_sha="s0")
    store.keep(results / "runs/mine", kept)
    pairs = {"s0": "first", "s1": "between", "between": "first", "s2": "s3"}
    noted = [row("same_source", source=source, same_as=before) for source, before in pairs.items()]
    schema.write(kept / "same_source.csv", "same_source", noted)
    monkeypatch.setattr(gather, "STORE", kept)
    monkeypatch.setattr(forecast, "STORE", kept)
    grid, jobs = gather.read_grid(results), [forecast.Job(1, "train_d64", "train", "mine", [], [], [], {}, 0, "training", None)]
    assert gather.finished_runs(results, grid) == ["mine"]
    assert forecast.taken_over(jobs, grid, True) == {"mine"}
    assert adopt.adopt(results, "mine", kept)
    assert store.row_of(results / "runs/mine")["source_sha"] == "s0"  # who trained it stays known
    grid["runs"]["mine"]["source"] = "s2"
    (results / "grid.json").write_text(json.dumps(grid))
    assert gather.finished_runs(results, grid) == []
    assert forecast.taken_over(jobs, grid, True) == set()
    assert not adopt.adopt(results, "mine", kept)
    assert "another source (s0, here s2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config_sha": "c2"}, "is of another config (c2, here c1), so it is trained"),
        ({"source_sha": "s2"}, "is of another source (s2, here s1), so it is trained"),
        ({"data_sha": "d2"}, "is of another data (d2, here {data}), so it is trained"),
        ({"source_sha": "s2", "data_sha": "d2"}, "is of another source (s2, here s1) and another data (d2, here {data})"),
        ({"run": "other", "config_sha": "c2"}, "mine: no run of config c1 is stored, so it is trained"),
    ],
)
def test_a_run_of_another_hash_is_left_to_the_trainer(here, tmp_path, capsys, change, told):
    results, kept, data = here
    store.keep(finished(tmp_path / "theirs" / change.get("run", "mine"), data, **change), kept)
    before = written(results / "runs/mine")
    assert adopt.main([str(results), "mine", "--store", str(kept)]) == 1
    assert written(results / "runs/mine") == before
    (line,) = capsys.readouterr().err.splitlines()
    assert told.format(data=data) in line


def test_a_damaged_or_incomplete_stored_run_is_one_sentence_and_adopts_nothing(here, tmp_path):
    results, kept, data = here
    store.keep(finished(tmp_path / "theirs/mine", data), kept)
    curve = kept / "mine/train.csv.gz"
    curve.write_bytes(curve.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train.csv.gz is damaged .*check it out again"):
        adopt.adopt(results, "mine", kept)
    curve.unlink()
    with pytest.raises(UserError, match="lacks train"):
        adopt.adopt(results, "mine", kept)
    assert list(written(results / "runs/mine")) == ["config.yaml"]


def test_storing_is_repeatable_adds_later_files_and_replaces_a_run_trained_again(tmp_path):
    run, kept = finished(tmp_path / "runs/r", "d1"), tmp_path / "store"
    later = {name: (run / name).read_bytes() for name in ("evals.csv", "evals.json")}
    for name in later:
        (run / name).unlink()
    assert "evals.csv" not in store.keep(run, kept)
    first = written(kept / "r")
    assert first["train.csv.gz"][4:8] == bytes(4)  # no time
    assert store.keep(run, kept) == []
    for name, content in later.items():
        (run / name).write_bytes(content)
    assert store.keep(run, kept) == list(later)
    assert written(kept / "r") == first | later
    (run / "evals.csv").unlink()  # as where an adopted run's scores are left out
    assert store.keep(run, kept) == []
    assert "evals.csv" in written(kept / "r")
    finished(run, "d1", ended="later")
    (run / "evals.csv").unlink()
    store.keep(run, kept)
    assert "evals.csv" not in written(kept / "r")


def test_only_runs_of_the_grids_config_and_source_are_stored(here, tmp_path, capsys):
    results, kept, data = here
    grid = json.loads((results / "grid.json").read_text())
    grid["runs"] |= dict.fromkeys(("config", "source", "unfinished"), grid["runs"]["mine"])
    grid |= {"grid": [], "arms": []}
    (results / "grid.json").write_text(json.dumps(grid))
    (finished(results / "runs/mine", data) / "tokens.safetensors").write_bytes(b"losses")
    finished(results / "runs/config", data, config_sha="c2")
    finished(results / "runs/source", data, source_sha="s2")
    (finished(results / "runs/unfinished", data) / "train.csv").unlink()
    assert reference.copy_runs(results, [], kept) == ["mine"]
    told = capsys.readouterr().out
    assert "left out config: it was trained with config c2" in told
    assert "left out source: it was trained by source s2" in told
    assert [path.name for path in kept.iterdir()] == ["mine"]
    assert not (kept / "mine/tokens.safetensors").exists()  # nothing is asked of single tokens of a chain's arm
    grid["grid"] = ["mine"]
    (results / "grid.json").write_text(json.dumps(grid))
    assert reference.copy_runs(results, [], kept) == ["mine"]
    assert (kept / "mine/tokens.safetensors").read_bytes() == b"losses"
    for refused in ("config", "source", "unfinished"):
        with pytest.raises(UserError, match=f"{refused}: no finished run of .* that its grid's config and the present source"):
            reference.copy_runs(results, [refused, "mine"], kept)


def test_every_committed_run_is_whole_and_of_the_config_that_it_names():
    for run in store.stored(reference.REFERENCE / "runs"):
        config = yaml.safe_load(run.content("config.yaml"))
        store.restored(run, {})
        assert reference.sha({k: v for k, v in config.items() if k not in store.NAMES}) == run.hash("config"), run.folder


@pytest.mark.parametrize(
    ("config", "adopts"),
    [({"preset": "reference"}, True), ({"preset": "cpu"}, False)]
    + [({"preset": "reference", "adopt": value}, False) for value in ("false", "False", False)]
    + [({"preset": "smoke", "adopt": value}, True) for value in ("true", True)],
)
def test_a_preset_says_whether_it_adopts_and_the_command_line_overrides(config, adopts):
    name = config.pop("preset")
    assert presets.load_preset(name, config).adopt is adopts


@pytest.mark.parametrize("value", ["no", 0, None, ["true"], "falsch"])
def test_adopt_is_true_or_false(value, tmp_path):
    with pytest.raises(UserError, match="--config adopt: expected bool"):
        load_grid({"preset": "smoke", "adopt": value}, tmp_path)


def test_the_reference_is_not_made_where_it_is_committed(tmp_path):
    assert store.working_folder(tmp_path, "cpu") == tmp_path / "cpu"
    assert store.working_folder(tmp_path, "reference") == tmp_path / "reference.run"
