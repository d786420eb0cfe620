"""Committed runs that are trained again: equal, near, or different, and why; the trainer is a stand-in."""

import csv
import shutil
import subprocess

import pytest
import yaml
from synthetic import grid_run, row

from evals import compare
from evals.agreement import rerun
from evals.records import schema, store
from evals.records.errors import UserError


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Two models of three seeds each, whose test losses deviate by 0.01; data is taken to be there."""
    for arch in ("dense", "pkm"):
        for seed, loss in enumerate((3.99, 4.0, 4.01)):
            run = tmp_path / "made" / f"{arch}-s-s{seed}"
            values = {"config_sha": "c", "source_sha": "s", "data_sha": "d", "test_loss": loss}
            schema.write(run / "runs.csv", "runs", [grid_run(arch, seed=seed, **values)])
            curve = [row("train", run=run.name, step=step, split="train", loss=5 - step / 3) for step in range(4)]
            schema.write(run / "train.csv", "train", curve)
            schema.write(run / "health.csv", "health", [])
            (run / "config.yaml").write_text(yaml.safe_dump({"data": "results/data/none", "run": run.name}))
            store.keep(run, tmp_path / "reference/runs")
    monkeypatch.setattr(rerun, "ready", lambda run: None)
    return tmp_path / "reference"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Stands in for training: writes what the run was, with other cells of runs.csv, and after `at` another curve."""

    def trains(at=None, **cells):
        def train(folder):
            made = tmp_path / "made" / folder.name
            for name in ("runs.csv", "train.csv"):
                shutil.copy(made / name, folder / name)
            with open(made / "runs.csv", newline="") as file:
                (before,) = csv.DictReader(file)
            values = {key: str(float(before[key]) + value) if key == "test_loss" else value for key, value in cells.items()}
            with open(folder / "runs.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, before)
                writer.writeheader()
                writer.writerow(before | values)
            if at is not None:
                steps = schema.read(folder / "train.csv", "train").astype(object)
                steps.loc[steps.step >= at, "loss"] += 1e-9
                schema.write(folder / "train.csv", "train", steps)

        monkeypatch.setattr(rerun, "train", train)

    return trains


def said(committed, capsys, *words):
    code = compare.main(["--rerun", "2", "--seed", "1", *words, str(committed)])
    return code, capsys.readouterr().out.splitlines()


def test_equal_to_the_last_digit(committed, trainer, capsys):
    trainer(wall_s="99.0", ended="later", git_commit="other")
    code, lines = said(committed, capsys)
    assert code == 0
    assert lines[-1] == "reproduced: 2 of 2 runs agree (2 to the last digit)"
    assert lines[0].startswith("drawn with --seed 1: ")
    assert "4 degrees of freedom" in lines[1]
    assert [line.partition(":")[0] for line in lines[2:4]] == ["equal", "equal"]
    assert "and all 4 losses of the curve, to the last digit" in lines[2]


@pytest.mark.parametrize(
    ("cells", "code", "last", "told"),
    [
        ({"test_loss": 0.02, "device": "CPU: B"}, 0, "reproduced: 2 of 2 runs agree (2 within the noise)", "another device"),
        ({"test_loss": 0.2, "device": "CPU: B"}, 1, "not reproduced: 0 of 2 runs agree; ", "beyond"),
        ({"test_loss": 0.02, "torch": "9", "source_sha": "t"}, 0, "reproduced: ", "another torch and another source"),
        ({"test_loss": 1e-9}, 1, "not reproduced: ", "at the end, though device, torch and source are the same"),
        ({"config_sha": "e"}, 1, "not reproduced: ", "the config reads as another one now (e)"),
    ],
)
def test_other_numbers_agree_on_another_build_within_the_noise_of_seeds(committed, trainer, capsys, cells, code, last, told):
    trainer(**cells)
    found, lines = said(committed, capsys)
    assert found == code
    assert lines[-1].startswith(last)
    assert told in lines[2]


def test_a_curve_that_parts_on_the_same_build_differs_and_says_where(committed, trainer, capsys):
    trainer(at=2)
    code, lines = said(committed, capsys)
    assert code == 1
    assert "from step 2 on, though device, torch and source are the same" in lines[2]


@pytest.fixture
def edited(monkeypatch):
    """The code trains by source t now, the committed runs by s."""
    monkeypatch.setattr(rerun, "source_here", lambda run: "t")


def vouched(committed, capsys, n):
    code = compare.main(["--rerun", str(n), "--vouch", "one home", str(committed)])
    return code, capsys.readouterr().out.splitlines(), store.same_sources(committed / "runs")


def test_a_source_whose_runs_come_out_equal_stands_for_the_new_one(committed, trainer, edited, capsys):
    trainer(source_sha="t", git_commit="later")
    code, lines, same = vouched(committed, capsys, 2)
    assert (code, same) == (0, {"t": "s"})
    assert lines[-1] == "reproduced: 2 of 2 runs agree (2 to the last digit)"
    (noted,) = schema.read(committed / "runs/same_source.csv", "same_source").to_dict("records")
    assert (noted["runs"], noted["losses"], noted["reason"]) == ("dense-s-s0 dense-s-s1", 8, "one home")
    assert noted["commit"] == "later"
    code, lines, same = vouched(committed, capsys, 2)
    assert (code, same) == (0, {"t": "s"})
    assert lines == [f"every run in {committed / 'runs'} is of a source that trains as the code here does"]


def test_the_next_edit_is_told_by_the_first_source_and_a_way_back_is_none(committed, trainer, edited, capsys, monkeypatch):
    trainer(source_sha="t")
    vouched(committed, capsys, 1)
    trainer(source_sha="u")
    monkeypatch.setattr(rerun, "source_here", lambda run: "u")
    code, _, same = vouched(committed, capsys, 1)
    assert (code, same) == (0, {"t": "s", "u": "s"})
    monkeypatch.setattr(rerun, "source_here", lambda run: "s")
    assert vouched(committed, capsys, 1)[0] == 0
    assert {store.first_source(source, same) for source in "stu"} == {"s"}


@pytest.mark.parametrize("change", [{"at": 3}, {"test_loss": 1e-9}])
def test_a_source_that_moves_a_loss_stands_for_nothing(committed, trainer, edited, capsys, change):
    trainer(source_sha="t", **change)
    code, lines, same = vouched(committed, capsys, 1)
    assert (code, same) == (1, {})
    assert lines[-2].startswith("near: ")
    assert not (committed / "runs/same_source.csv").exists()
    for n, reason in (("0", "one home"), ("1", " ")):
        with pytest.raises(UserError, match=f"--rerun {n} --vouch .*: give at least one run of each source, and say what"):
            compare.main(["--rerun", n, "--vouch", reason, str(committed)])
    with pytest.raises(UserError, match="--vouch goes with --rerun"):
        compare.main(["--vouch", "one home", str(committed)])


def test_the_noise_is_that_of_two_runs_and_without_seeds_the_margin(committed):
    runs = store.stored(committed / "runs")
    allowed, _ = rerun.tolerance(runs, 1)
    assert allowed == pytest.approx(2.776445 * 0.01 * 2**0.5, rel=1e-5)  # t of 4 degrees of freedom
    assert rerun.tolerance(runs, 5)[0] > allowed
    assert rerun.tolerance(runs[:1], 1)[0] == rerun.MARGIN


def test_runs_are_drawn_at_random_by_the_seed(committed):
    draws = [tuple(run.run for run in rerun.drawn(committed, 2, seed)) for seed in range(60)]
    assert draws == [tuple(run.run for run in rerun.drawn(committed, 2, seed)) for seed in range(60)]
    assert {run for draw in draws for run in draw} == {run.run for run in store.stored(committed / "runs")}
    assert all(len(set(draw)) == 2 for draw in draws)


def test_what_cannot_be_trained_again_is_one_sentence(committed, tmp_path, monkeypatch, capsys):
    for n in (0, 7):
        with pytest.raises(UserError, match=f"--rerun {n}: .*runs holds 6 runs, so give a number from 1 to that"):
            rerun.rerun(committed, n, 0)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"results/data/none does not exist, .* snakemake --cores all prepare --config preset=cpu"
    ):
        rerun.rerun(committed, 1, 0)
    done = subprocess.CompletedProcess([], 2, stderr="loading\nerror: the disk is full\n")
    monkeypatch.setattr(rerun.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match="broken could not be trained again: the disk is full"):
        rerun.train(tmp_path / "broken")
    for words in ([], ["a"], ["--rerun", "1", "a", "b"]):
        with pytest.raises(UserError, match=r"two results folders are compared|--rerun takes one"):
            compare.main(words)
