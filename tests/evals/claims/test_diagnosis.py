"""The table of anomalies: arms against their base by seed, and a verdict only with a reading."""

import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from scipy import stats as distributions
from synthetic import grid_run, row, write

from evals.claims import diagnosis
from evals.records import schema
from evals.records.errors import UserError

TOPICS = """
diagnosis_softmax: {question: Why does it cost, base: none, verdict: finding, reading: It costs 0.2 with three seeds.}
diagnosis_peer: {question: What diverges, verdict: bug mended}
"""


@pytest.fixture
def results(tmp_path) -> Path:
    losses = {"with": {0: 4.5, 1: 4.7, 2: 4.65}, "none": {0: 4.3, 1: 4.6, 2: 4.4}, "lone": {1: 4.4}}
    runs, arms = [], []

    def arm(chain, order, step, by_seed):
        for seed, loss in by_seed.items():
            run = f"{chain}.{step}-s-s{seed}"
            runs.append(grid_run("ultramem", seed=seed, run=run, val_loss=1.0, test_loss=loss))
            arms.append(row("arms", chain=chain, kind="sweep", step=step, order=order, label=f"the arm {step}", run=run))

    for order, (step, by_seed) in enumerate(losses.items()):
        arm("diagnosis_softmax", order, step, by_seed)
    arm("diagnosis_peer", 0, "base", {0: 4.0})
    arm("diagnosis_peer", 1, "fast", {0: 4.1})
    arm("diagnosis_unasked", 0, "base", {0: 4.0})
    arm("diagnosis_unasked", 1, "stopped", {0: None})
    arm("sparsity", 0, "base", {0: 4.0})
    (tmp_path / "topics.yaml").write_text(TOPICS)
    return write(tmp_path, runs=runs, arms=arms)


def written(results: Path):
    out = results / "diagnosis.csv"
    diagnosis.main(["--results", str(results), "--out", str(out), "--topics", str(results / "topics.yaml")])
    return schema.read(out, "diagnosis").set_index(["topic", "arm"])


def test_deltas_are_paired_by_seed_with_a_t_interval(results):
    rows = written(results)
    this = rows.loc[("diagnosis_softmax", "with")]
    pairs = [4.5 - 4.3, 4.7 - 4.6, 4.65 - 4.4]
    low, high = distributions.ttest_1samp(pairs, 0).confidence_interval()
    assert (this["loss"], this["n"]) == (pytest.approx((4.5 + 4.7 + 4.65) / 3), 3)
    assert [this["delta"], this["ci_low"], this["ci_high"]] == pytest.approx([sum(pairs) / 3, low, high])
    assert this["runs"] == " ".join(f"diagnosis_softmax.with-s-s{seed}" for seed in range(3))


def test_the_base_has_no_delta_and_one_seed_no_interval(results):
    rows = written(results)
    base, lone = rows.loc[("diagnosis_softmax", "none")], rows.loc[("diagnosis_softmax", "lone")]
    assert base[["delta", "ci_low", "ci_high"]].isna().all()
    assert lone["delta"] == pytest.approx(4.4 - 4.6)
    assert lone[["ci_low", "ci_high"]].isna().all()
    assert rows.loc[("diagnosis_peer", "fast"), "delta"] == pytest.approx(0.1)


def test_a_topic_without_a_reading_is_open(results, capsys):
    rows = written(results)
    verdicts = rows["verdict"].groupby("topic").unique().map(list).to_dict()
    assert verdicts == {"diagnosis_peer": ["open"], "diagnosis_softmax": ["finding"], "diagnosis_unasked": ["open"]}
    assert rows.loc[("diagnosis_softmax", "with"), "reading"] == "It costs 0.2 with three seeds."
    assert ("diagnosis_unasked", "stopped") not in rows.index
    assert "diagnosis_unasked: stopped is left out: none of its runs has a test loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("diagnosis_softmax: {bass: none}", "diagnosis_softmax has bass; allowed: question, base"),
        ("diagnosis_softmax: {verdict: maybe}", "has verdict 'maybe', allowed: bug mended, finding, open"),
        ("diagnosis_softmax: {reading: 4}", "holds something that is not text"),
        ("diagnosis_softmax: {base: elsewhere}", "the base 'elsewhere' of diagnosis_softmax is none of its arms: with, none"),
        ("- a list", "is not a file of topics"),
    ],
)
def test_a_bad_topic_is_one_sentence(results, text, words):
    (results / "topics.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        written(results)


def test_the_command_says_what_to_train_where_nothing_was(results):
    schema.write(results / "arms.csv", "arms", schema.read(results / "arms.csv", "arms").query("chain == 'sparsity'"))
    command = [
        sys.executable,
        "-m",
        "evals.claims.diagnosis",
        "--results",
        str(results),
        "--out",
        str(results / "diagnosis.csv"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "has no chain that begins with diagnosis_" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_committed_topics_can_be_read():
    assert all(name.startswith(diagnosis.PREFIX) for name in diagnosis.load())
