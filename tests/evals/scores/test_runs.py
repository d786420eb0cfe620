"""The harness over several runs: one process as one for each, what is up to date, what fails, items paired between two."""

from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from made_up_sets import corpus
from scored_models import SEQ_LEN, SPARSE, build

from evals import load
from evals.records import schema
from evals.records.errors import UserError
from evals.records.recipe import Train
from evals.records.runs import RunConfig
from evals.records.tensors import write_tensors
from evals.scores import harness, items, olmo
from models.feed_forward import DenseConfig

ASKED = ("perplexity", "arc_easy", "hellaswag", "squad", "corpus_facts:8", "kv_retrieval:6")


@pytest.fixture
def runs(tmp_path, tokenizer, wheel, monkeypatch):
    """Folders of three finished runs on one prepared corpus; `runs.loaded` lists the sets that were read."""
    data = tmp_path / "data"
    data.mkdir()
    corpus(data, tokenizer)
    tokenizer.save(str(data / "tokenizer.json"))
    archs = (DenseConfig(d_ff=48), SPARSE[1], SPARSE[3])
    folders = []
    for seed, arch in enumerate(archs):
        model = build(tokenizer, seed, arch).float()
        trained = {"model": model.cfg, "train": Train(tokens=1000, batch_size=1, seq_len=SEQ_LEN, lr=0.01), "data": str(data)}
        config = RunConfig(run=f"r{seed}", preset="p", arch=arch.name, size="s", seed=0, **trained)
        folder = tmp_path / "runs" / config.run
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
        write_tensors(folder / "model.safetensors", model.state_dict(), {})
        folders.append(folder)
    monkeypatch.setattr(load, "fetch", lambda pin, cache: wheel)
    found = SimpleNamespace(folders=folders, loaded=[])
    reading = olmo.load
    monkeypatch.setattr(olmo, "load", lambda name, *rest: found.loaded.append(name) or reading(name, *rest))
    return found


def harness_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["harness", *map(str, arguments), "--device", "cpu", "--tasks", *ASKED])
    harness.main()


def test_one_process_for_several_runs_gives_what_one_for_each_gives(runs, tmp_path, monkeypatch):
    harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", *runs.folders)
    assert sorted(runs.loaded) == ["arc_easy", "hellaswag", "squad"]  # once for all three
    together = [(folder / "evals.csv").read_bytes() for folder in runs.folders]
    kept = [items.read(folder) for folder in runs.folders]
    assert len(set(together)) == 3
    head = together[0].splitlines()[0]
    joined = [line for text in together for line in text.splitlines()[1:]]
    assert (tmp_path / "joined.csv").read_bytes().splitlines() == [head, *joined]
    for folder, text, parts in zip(runs.folders, together, kept, strict=True):
        for name in ("evals.csv", items.FILE):
            (folder / name).unlink()
        harness_main(monkeypatch, "--run", folder)
        assert (folder / "evals.csv").read_bytes() == text
        pd.testing.assert_frame_equal(items.read(folder), parts, check_exact=True)


def test_a_run_that_is_up_to_date_is_passed_over(runs, monkeypatch, capsys):
    first, second, _ = runs.folders
    harness_main(monkeypatch, "--run", first)
    stamp = (first / "evals.csv").stat().st_mtime_ns
    harness_main(monkeypatch, "--run", first, second)
    assert (first / "evals.csv").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == f"{first / 'evals.csv'} is up to date\n"

    def scored_again(*more):
        stamp = (first / "evals.csv").stat().st_mtime_ns
        harness_main(monkeypatch, "--run", first, *more)
        return (first / "evals.csv").stat().st_mtime_ns != stamp

    assert not scored_again()
    assert scored_again("--limit", "1")
    assert scored_again()
    (first / "evals.csv").write_text("")
    (first / items.FILE).write_bytes(b"cut")
    assert scored_again()
    tensors = build_state(first)
    tensors["embedding.weight"] = tensors["embedding.weight"] * 1.5
    write_tensors(first / "model.safetensors", tensors, {})
    assert scored_again()
    monkeypatch.setattr(load, "stage_source", lambda *_, **__: "newer code")
    assert scored_again()
    assert not scored_again()
    (first / "evals.csv").unlink()
    harness_main(monkeypatch, "--run", first)
    assert schema.read(first / "evals.csv", "evals").run.eq("r0").all()


def test_scores_of_a_run_without_weights_stand_or_are_left_out(runs, tmp_path, monkeypatch, capsys):
    """An adopted run has its scores and no weights: other questions cannot be asked of it."""
    first, second, third = runs.folders
    harness_main(monkeypatch, "--run", first, second)
    for folder in runs.folders:
        (folder / "model.safetensors").unlink()
        (folder / "runs.csv").touch()
    (first / items.FILE).unlink()  # what each item gave is not kept in a store
    before, joined = (first / "evals.csv").read_bytes(), tmp_path / "joined.csv"
    harness_main(monkeypatch, "--run", first, third, "--out", joined)
    assert (first / "evals.csv").read_bytes() == joined.read_bytes() == before
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{third}: left out of evals.csv: the run was adopted without weights and it came without evals.csv; "
        "train it again to make it anew (--config adopt=false)"
    )
    harness_main(monkeypatch, "--run", first, "--limit", "1", "--out", joined)
    assert "its evals.csv is of other questions; train it again" in capsys.readouterr().err
    assert not (first / "evals.csv").exists()
    assert schema.read(joined, "evals").empty
    monkeypatch.setattr(load, "stage_source", lambda *_, **__: "newer code")
    harness_main(monkeypatch, "--run", second)
    assert "its evals.csv is of other code; train it again" in capsys.readouterr().err


def build_state(folder):
    return load.read_tensors(folder / "model.safetensors")[0]


def test_a_run_that_fails_leaves_those_before_it(runs, tmp_path, monkeypatch):
    first, second, third = runs.folders
    (second / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"r1/model.safetensors does not exist: train the run first"):
        harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", *runs.folders)
    assert schema.read(first / "evals.csv", "evals").run.eq("r0").all()
    assert not any((folder / "evals.csv").exists() for folder in (second, third))
    assert not (tmp_path / "joined.csv").exists()
    stamp = (first / "evals.csv").stat().st_mtime_ns
    harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", first, third)
    assert (first / "evals.csv").stat().st_mtime_ns == stamp
    assert set(schema.read(tmp_path / "joined.csv", "evals").run) == {"r0", "r2"}


def test_items_pair_two_runs(runs, monkeypatch):
    harness_main(monkeypatch, "--run", *runs.folders[:2])
    a, b = (items.read(folder) for folder in runs.folders[:2])
    rows = [schema.read(folder / "evals.csv", "evals").query("primary") for folder in runs.folders[:2]]
    left, right = (table.set_index("task").value for table in rows)
    assert list(left.index) == list(dict.fromkeys(left.index))  # one primary metric for each task
    for task in ("arc_easy", "squad", "corpus_facts", "kv_retrieval"):
        assert items.paired(a, b, [task]).value == pytest.approx(left[task] - right[task], abs=1e-12), task
    gap = items.paired(a, b, ["arc_easy", "corpus_f*"])
    assert gap.value == pytest.approx((left - right)[["arc_easy", "corpus_facts"]].mean(), abs=1e-12)
    assert not gap.bounded  # one item of arc_easy allows no interval
    with pytest.raises(UserError, match="no common item of lambada: evaluate both with the same tasks"):
        items.paired(a, b, ["lambada"])
    with pytest.raises(UserError, match=r"cannot be read .*: run python -m evals.scores.harness --run"):
        items.read(runs.folders[2])
