"""The memory tasks: right answers, disjoint splits, chance, and a training mix that is the same for every architecture."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from evals import memory_tasks
from evals.memory_tasks import ATTRIBUTES, TASKS, BioS, MixtureConfig, mixture
from workflows.errors import UserError
from workflows.prepare import train_bpe

EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def modular_line(points):
    """a and b of the only line mod 11 through two points."""
    (x0, y0), (x1, y1) = points[:2]
    a = (y1 - y0) * pow(x1 - x0, -1, 11) % 11
    return a, (y0 - a * x0) % 11


def pairs_phone_book(text):
    return re.findall(r"^(\w+ \w+): (\d+)", text, re.M)


def pairs_rounds(text):
    return re.findall(r"remember (\w+) is (\w+)", text)


def pairs_label_map(text):
    return re.findall(r"^(\w+) -> (\w+)", text, re.M)


def pairs_linear_map(text):
    return [modular_line([(int(x), int(y)) for x, y in re.findall(r"f \( (\d+) \) = (\d+)", text)])]


def pairs_needle(text):
    return re.findall(r"One of the special magic numbers for (\w+) is: (\d+)", text)


def pairs_kv_retrieval(text):
    return [tuple(pair.split()) for pair in text.split("\n")[0].split(" ; ")]


def pairs_variable_tracking(text):
    source = dict(re.findall(r"VAR (\w) = (\w+);", text))
    ends = set(source) - set(source.values())
    return [(end, follow(source, end)) for end in ends]


def pairs_count(text):
    return [(text.split("\n")[0],)]


def follow(source, name):
    while name in source:
        name = source[name]
    return name


PAIRS = {
    "phone_book": pairs_phone_book,
    "multi_round": pairs_rounds,
    "multi_round_overwrite": pairs_rounds,
    "label_map": pairs_label_map,
    "linear_map": pairs_linear_map,
    "needle": pairs_needle,
    "kv_retrieval": pairs_kv_retrieval,
    "variable_tracking": pairs_variable_tracking,
    "count": pairs_count,
}


def solve(name, context):
    """The answer, worked out from the text alone."""
    facts, question = context.rsplit("\n", 1)
    if name == "linear_map":
        a, b = pairs_linear_map(facts)[0]
        return str((a * int(re.search(r"\d+", question)[0]) + b) % 11)
    if name == "count":
        return str(facts.split().count(question.split()[-1].rstrip("?")))
    asked = {
        "phone_book": r"^(.*):",
        "multi_round": r"what is (\w+)",
        "multi_round_overwrite": r"what is (\w+)",
        "label_map": r"^(\w+) ->",
        "needle": r"for (\w+) is:",
        "kv_retrieval": r"^(\w+)",
        "variable_tracking": r"of (\w) is",
    }[name]
    return dict(PAIRS[name](facts + "\n"))[re.search(asked, question)[1]]  # dict: the last value of a key counts


@EACH_TASK
def test_gold_is_what_the_text_says(task):
    for level in task.levels:
        for item in task.test_items(3, 40, level):
            assert item.choices[item.gold] == solve(task.name, item.context)
            assert len(set(item.choices)) == len(item.choices)


@EACH_TASK
def test_training_documents_answer_their_questions_rightly(task):
    asked = 0
    for document in task.train_documents(3, 30):
        lines = document.splitlines()
        start = next(i for i in range(len(lines)) if is_question(task.name, lines, i))
        for line in lines[start:]:
            question, answer = line.rsplit(" ", 1)
            assert answer == solve(task.name, "\n".join([*lines[:start], question]))
            asked += 1
    assert asked >= 30


def is_question(name, lines, i):
    if name == "phone_book":
        return lines[i - 1] == "Look up"
    if name in ("label_map", "linear_map"):  # a question looks like a fact: the last three lines (four words, 4 of them)
        return i == len(lines) - 3
    return i > 0 and not lines[i].startswith("User: remember")


@EACH_TASK
def test_no_combination_is_in_both_splits(task):
    trained = {pair for document in task.train_documents(0, 600) for pair in PAIRS[task.name](document)}
    tested = {
        pair for level in task.levels for item in task.test_items(1, 200, level) for pair in PAIRS[task.name](item.context)
    }
    assert len(trained) > 50
    assert len(tested) > 50
    assert not trained & tested


@EACH_TASK
def test_every_level_changes_the_difficulty_of_its_axis(task):
    lengths = [np.mean([len(item.context) for item in task.test_items(0, 20, level)]) for level in task.levels]
    assert lengths == sorted(lengths)
    assert lengths[-1] > 1.3 * lengths[0]


@EACH_TASK
def test_a_blind_guess_scores_chance(task):
    """Neither the place of an answer nor how common it is gives the answer away."""
    n = 400
    for level in (task.levels[0], task.levels[-1]):
        items = task.test_items(5, n, level)
        assert {len(item.choices) for item in items} == {round(1 / task.chance(level))}
        spread = 4 * math.sqrt(task.chance(level) / n)
        assert Counter(item.gold for item in items).most_common(1)[0][1] / n < task.chance(level) + spread


@EACH_TASK
def test_seeds(task):
    level = task.levels[0]
    assert task.train_documents(0, 6) == task.train_documents(0, 6)
    assert task.test_items(0, 6, level) == task.test_items(0, 6, level)
    assert task.test_items(0, 6, level) != task.test_items(1, 6, level)
    assert task.train_documents(0, 6) != task.train_documents(1, 6)


def test_overwrites_ask_for_keys_that_had_another_value():
    task = TASKS["multi_round_overwrite"]
    for item in task.test_items(0, 40, 9):
        key = re.search(r"what is (\w+)", item.context)[1]
        told = [value for k, value in pairs_rounds(item.context) if k == key]
        assert len(set(told)) == 2
        assert item.choices[item.gold] == told[-1]


def test_the_point_asked_for_is_not_among_the_examples():
    for item in TASKS["linear_map"].test_items(0, 60, 8):
        *shown, asked = re.findall(r"f \( (\d+) \)", item.context)
        assert asked not in shown


def test_biographies_state_what_is_asked():
    bios = BioS(n_people=30, exposures=4)
    documents = bios.train_documents(0)
    assert len(documents) == 120
    for attribute in ATTRIBUTES:
        for item in bios.test_items(0, 30, attribute):
            statement = f"{item.context} {item.choices[item.gold]}."
            _, forms = ATTRIBUTES[attribute]
            stated = [document for document in documents if any(is_form(form, statement, document) for form in forms)]
            assert len(stated) == 4, statement
            assert len(set(item.choices)) == 10
            assert item.n_values == ATTRIBUTES[attribute][0]


def is_form(form, statement, document):
    """Whether the document says of the person of `statement`, in `form`, the value of `statement`."""
    form = re.escape(form).replace(re.escape("{name}"), "(?P<name>[A-Z]\\w+ [A-Z]\\w+ [A-Z]\\w+)")
    said = re.search(form + r" (?P<value>[^.]*)\.", document)
    return said is not None and said["name"] in statement and statement.endswith(f" {said['value']}.")


def test_people_differ_and_keep_their_attributes():
    bios = BioS()
    assert len({bios.person(i)[0] for i in range(30_000)}) == 30_000
    assert bios.person(7) == BioS(n_people=9, exposures=1).person(7)
    assert bios.person(7)[1] != bios.person(8)[1]


def test_entropy_of_a_person():
    """12 * 28 * 200 dates, 200 cities, 300 universities, 100 majors, 263 employers."""
    assert BioS().bits_per_person == pytest.approx(math.log2(12 * 28 * 200) + math.log2(200 * 300 * 100 * 263))
    assert [len(memory_tasks.VALUES[name]) for name in memory_tasks.VALUES] == [200, 300, 100, 263]
    assert all(len(set(values)) == len(values) for values in memory_tasks.VALUES.values())


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe((document for task in TASKS.values() for document in task.train_documents(9, 12)), 512)


CFG = MixtureConfig(n_tokens=60_000, n_people=8, exposures=6)


def test_the_mixture_is_a_function_of_its_seed(tokenizer):
    documents = mixture(CFG, tokenizer, 1)
    assert documents == mixture(CFG, tokenizer, 1)
    assert documents != mixture(CFG, tokenizer, 2)


def test_the_mixture_holds_every_exposure_and_equal_shares(tokenizer):
    documents = mixture(CFG, tokenizer, 1)
    assert {task for task, _ in documents} == {*TASKS, "bios"}
    for i in range(CFG.n_people):
        name, values = CFG.bios.person(i)
        assert sum(name in text and values["employer"] in text for _, text in documents) == CFG.exposures
    share = Counter()
    for task, text in documents:
        share[task] += len(tokenizer.encode(text).ids) + 1
    assert 0.97 * CFG.n_tokens < share.total() <= CFG.n_tokens
    assert all(share[task] == pytest.approx(share["phone_book"], rel=0.1) for task in TASKS)


def test_shuffled_documents(tokenizer):
    """A stretch of the stream holds many tasks, not one."""
    assert {task for task, _ in mixture(CFG, tokenizer, 1)[:200]} == {*TASKS, "bios"}


def test_biographies_must_fit(tokenizer):
    with pytest.raises(UserError, match=r"n_people 500 x exposures 6 take \d+ tokens, more than n_tokens 60000"):
        mixture(MixtureConfig(n_tokens=60_000, n_people=500, exposures=6), tokenizer, 0)
