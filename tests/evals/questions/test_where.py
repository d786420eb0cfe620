"""Where a memory helps: fifths of tokens by reads and by frequency, on made-up tokens whose gains are known."""

import numpy as np
import pandas as pd
import pytest
from synthetic import grid_run, write
from synthetic_questions import folder_of, keep_tokens, kept, token_chain

from evals.claims.evidence import Results
from evals.questions import ask, where
from evals.records import schema
from evals.records.errors import UserError

ARCHS = ("dense", "moe8", "ultramem")


def helped(path, gain, seeds=3, sizes=("s", "m")):
    runs = [grid_run(arch, size, seed) for size in sizes for arch in ARCHS for seed in range(seeds)]
    return kept(write(path, runs=runs), runs, gain)


def rising(arch, reads, frequency):
    return 0.1 * (reads - 6) + 0.2 if arch == "ultramem" else 0.1


def test_gains_are_in_their_fifths(tmp_path):
    rows = pd.DataFrame(where.table(Results(helped(tmp_path, rising))))
    here = rows[(rows.arch == "ultramem") & (rows["size"] == "s")].set_index(["by", "bin"]).sort_index()
    reads = here.loc["reads"]
    assert list(reads.index) == [1, 2, 3, 4, 5]
    assert (reads.gain.diff()[1:] > 0).all()
    middle = np.log2(1 + (reads.low[3] + reads.high[3]) / 2)
    assert reads.gain[3] == pytest.approx(0.1 * (middle - 6) + 0.2, abs=0.03)
    assert ((reads.ci_low < reads.gain) & (reads.gain < reads.ci_high)).all()
    assert reads.targets.to_numpy() == pytest.approx([400] * 5, abs=4)
    assert (reads.n == 3).all()
    assert (reads.high.to_numpy()[:-1] == reads.low.to_numpy()[1:]).all()
    flat = rows[(rows.arch == "moe8") & (rows["size"] == "s")]
    assert set(flat.by) == {"frequency"}
    assert flat.gain.to_numpy() == pytest.approx([0.1] * 5, abs=0.03)
    schema.write(tmp_path / "where.csv", "where", rows)
    assert len(schema.read(tmp_path / "where.csv", "where")) == len(rows)


def test_reads_at_equal_frequency_take_apart_what_goes_together(tmp_path):
    """Here the gain follows frequency alone; reads, which go with it, seem to matter until frequency is held equal."""
    results = Results(helped(tmp_path, lambda arch, reads, frequency: 0.1 * (frequency - 8)))
    found = {answer.quantity: answer for answer in where.answers(results) if answer.arch == "ultramem"}
    alone, equal = (found[f"last minus first fifth by {by}"] for by in ("reads", "reads at equal frequency"))
    assert alone.value > 0.3
    assert alone.state == "answered"
    assert abs(equal.value) < 0.2 * alone.value
    assert found["last minus first fifth by frequency"].value > alone.value


def test_the_answer_is_of_the_size_with_most_seeds(tmp_path):
    runs = [grid_run(arch, "s", seed) for arch in ARCHS for seed in range(3)] + [grid_run(arch, "m", 0) for arch in ARCHS]
    found = where.answers(Results(kept(write(tmp_path, runs=runs), runs, rising)))
    assert {answer.n for answer in found} == {3}
    assert all("-s-s" in run for answer in found for run in answer.runs.split())


def test_only_runs_of_one_size_seed_and_budget_are_compared(tmp_path):
    runs, arms = token_chain(lambda arch, tokens: 0.1, seeds=2)
    results = Results(kept(folder_of(tmp_path, (runs, arms)), runs, rising))
    found = where.compared(results)
    dense = results.runs.loc[found.dense]
    for name in ("size", "seed", "tokens"):
        assert (dense[name].to_numpy() == found[name].to_numpy()).all()
    assert set(pd.DataFrame(where.table(results)).tokens) == {run["tokens"] for run in runs}


def test_other_tokens_are_refused_and_none_is_not_tested(tmp_path):
    path = write(tmp_path, runs=[grid_run(arch, "s", 0) for arch in ARCHS])
    (missing,) = where.answers(Results(path))
    assert (missing.state, where.table(Results(path))) == ("not tested", [])
    ones = np.ones(10)
    keep_tokens(path, "dense-s-s0", ones, ones)
    keep_tokens(path, "ultramem-s-s0", ones, 2 * ones, ones)
    with pytest.raises(UserError, match="ultramem-s-s0 and dense-s-s0 kept the losses of different test tokens"):
        where.table(Results(path))


def test_the_command_writes_both_tables(tmp_path, capsys):
    path = helped(tmp_path, rising, seeds=2, sizes=("s",))
    ask.main(["--results", str(path), "--out", str(path / "questions.csv"), "--where", str(path / "where.csv")])
    found = schema.read(path / "questions.csv", "questions")
    assert set(found.question) == {"gap", "split", "where"}
    assert set(found[found.question != "where"].state) == {"not tested"}
    assert len(schema.read(path / "where.csv", "where")) == 4 * 5
    assert "where ultramem last minus first fifth by reads: value" in capsys.readouterr().out
