"""The memory tasks: right answers, disjoint splits, and a chance that no rule without memory beats."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from evals.scores.memory.episodes import NUMBERS, TASKS, WORDS, Episode, Question
from evals.scores.memory.items import Item, chance, items_of, rule_scores

EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def modular_line(points):
    """a and b of the only line mod 7 through two points."""
    (x0, y0), (x1, y1) = points[:2]
    a = (y1 - y0) * pow(x1 - x0, -1, 7) % 7
    return a, (y0 - a * x0) % 7


def pairs_phone_book(text):
    return re.findall(r"^(\w+ \w+): (\d+)", text, re.M)


def pairs_rounds(text):
    return re.findall(r"^- (\w+) is (\w+)\. - Yes", text, re.M)


def pairs_label_map(text):
    return re.findall(r"^(\w+) -> (\w+)", text, re.M)


def pairs_linear_map(text):
    return [modular_line([(int(x), int(y)) for x, y in re.findall(r"f \( (\d+) \) = (\d+)", text)])]


def pairs_needle(text):
    return re.findall(r"The magic number for (\w+) is (\d+)\.", text)


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
    if name in ASKED:
        return dict(PAIRS[name](facts + "\n"))[asked_key(name, context)]  # dict: the last value of a key counts
    if name == "linear_map":
        a, b = pairs_linear_map(facts)[0]
        return str((a * int(re.search(r"\d+", question)[0]) + b) % 7)
    return str(facts.split().count(question.split()[-1].rstrip("?")))


ASKED = {
    "phone_book": r"^(.*):",
    "multi_round": r"^- (\w+)\?",
    "multi_round_overwrite": r"^- (\w+)\?",
    "label_map": r"^(\w+) ->",
    "needle": r"for (\w+) is",
    "kv_retrieval": r"^(\w+)",
    "variable_tracking": r"of (\w) is",
}


def asked_key(name, context):
    return re.search(ASKED[name], context.rsplit("\n", 1)[1])[1]


def train_documents(task, seed, n):
    return [episode.document() for episode in task.train_episodes(seed, n)]


@EACH_TASK
def test_gold_is_what_the_text_says(task):
    for level in task.levels:
        for item in items_of(task, 3, 40, level):
            assert item.choices[item.gold] == solve(task.name, item.context)
            assert len(set(item.choices)) == len(item.choices)


@EACH_TASK
def test_training_documents_answer_their_questions_rightly(task):
    asked = 0
    for document in train_documents(task, 3, 30):
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
    if name in ("label_map", "linear_map"):  # a question looks like a fact
        asked = min(3, len({line.rsplit(" ", 1)[0] for line in lines})) if name == "label_map" else 3
        return i == len(lines) - asked
    return i > 0 and not lines[i].endswith("- Yes.")


@EACH_TASK
def test_what_is_asked_for_is_held_out(task):
    """The pair of the key and any of the choices, or the whole prompt."""
    documents = train_documents(task, 0, 600)
    trained = {pair for document in documents for pair in PAIRS[task.name](document)}
    items = [item for level in task.levels for item in items_of(task, 1, 200, level)]
    if task.name in ASKED:
        tested = {(asked_key(task.name, item.context), choice) for item in items for choice in item.choices}
        assert {value for _, value in tested} <= {value for _, value in trained}  # held out is the pair, not the value
        assert len({key for key, _ in tested} & {key for key, _ in trained}) > 10
    elif task.name == "count":
        tested = {pair for item in items for pair in PAIRS[task.name](item.context)}
    else:  # the points, in order, up to the one asked for
        trained = {line.rsplit(" ", 1)[0] for line in points_asked(documents)}
        tested = {item.context.replace("\n", " ") for item in items}
    assert min(len(trained), len(tested)) > 50
    assert not trained & tested


def points_asked(documents):
    """Each training document up to its first question."""
    for document in documents:
        lines = document.splitlines()
        yield " ".join(lines[: len(lines) - 2])


@EACH_TASK
def test_every_level_changes_the_difficulty_of_its_axis(task):
    lengths = [np.mean([len(item.context) for item in items_of(task, 0, 20, level)]) for level in task.levels]
    assert lengths == sorted(lengths)
    assert lengths[-1] > 1.2 * lengths[0]


def memory_free(items, documents):
    """Rule -> its accuracy on each item. Written from the text alone, apart from the rules that set the chance."""
    words = Counter(re.findall(r"\w+", "\n".join(documents)))
    for item in items:
        prompt = item.context.rsplit("\n", 1)[0]
        said = [word for word in re.findall(r"\w+", re.sub(r"f \( \d+ \)", "", prompt)) if word in item.choices]
        counts = Counter(said)
        rules = {
            "any": item.choices,
            "place": item.choices[:1],
            "copy": said,
            "first": said[:1],
            "second": said[1:2],
            "last": said[-1:],
            "not first": [choice for choice in item.choices if choice not in said[:1]],
            "not last": [choice for choice in item.choices if choice not in said[-1:]],
            "frequent": [choice for choice in item.choices if counts[choice] == max(counts.values(), default=0)],
            "rare": [choice for choice in item.choices if counts[choice] == min(counts[c] for c in item.choices)],
            "unsaid": [choice for choice in item.choices if choice not in said],
            "trained": [max(item.choices, key=words.__getitem__)],
        }
        for name, picked in rules.items():
            picked = picked or item.choices
            yield name, picked.count(item.choices[item.gold]) / len(picked)


def excess(items, documents):
    """The largest lead of a rule over the stated chance, in standard errors, and its name."""
    scores = {}
    for name, score in memory_free(items, documents):
        scores.setdefault(name, []).append(score)
    chance = items[0].chance
    noise = math.sqrt(chance * (1 - chance) / len(items))
    return max(((np.mean(found) - chance) / noise, name) for name, found in scores.items())


@EACH_TASK
def test_no_rule_without_memory_beats_the_stated_chance(task):
    documents = train_documents(task, 0, 300)
    for level in task.levels:
        items = items_of(task, 5, 2000, level)
        assert {item.chance for item in items} == {chance(task, level)}
        assert excess(items, documents) < (4.0, "")


def test_an_unfair_generator_is_noticed():
    """Choices from everywhere and a single needle, as they were."""
    rounds = [
        replace(item, choices=list(NUMBERS), gold=NUMBERS.index(item.choices[item.gold]), chance=1 / len(NUMBERS))
        for item in items_of(TASKS["multi_round"], 5, 2000, 6)
    ]
    needles = [
        Item(f"The magic number for {key} is {n}.\nThe magic number for {key} is", [str(n), "11", "99"], 0, "0", 1 / 3)
        for key, n in zip(WORDS, range(20, 90), strict=False)
    ]
    assert min(excess(items, [""])[0] for items in (rounds, needles)) > 10


def test_the_best_rule_is_found():
    def episode(answer, shown):
        return Episode("", [Question("", answer)], shown, ["1", "2", "3", "4"])

    for best, answer, shown in [
        ("copy any value", "1", ["1"]),
        ("copy the most frequent value", "2", ["3", "2", "2", "1"]),
        ("copy the first value", "3", ["3", "1", "1", "2", "4"]),
        ("copy the last value", "4", ["3", "1", "1", "2", "4"]),
        ("leave out shown values", "4", ["1", "2", "3"]),
        ("commonest answer in training", "2", ["1", "2", "3", "4"]),
    ]:
        scores = rule_scores([episode(answer, shown)] * 9, Counter({"2": 5, "1": 3}))
        assert scores[best] == (1.0, 0.0)
        assert scores["uniform"] == (0.25, 0.0)


def test_chance_is_that_of_the_best_rule():
    chances = {name: [round(chance(task, level), 3) for level in task.levels] for name, task in TASKS.items()}
    assert chances == {
        "phone_book": [0.5, 0.25, 0.125],
        "multi_round": [0.5, 0.25, 0.167],
        "multi_round_overwrite": [0.333, 0.2],  # of 4 and 6 values the first never counts
        "label_map": [0.5, 0.25, 0.25],
        "linear_map": [0.2, 0.25, 0.333],
        "needle": [0.333] * 3,
        "kv_retrieval": [0.5, 0.25, 0.125],
        "variable_tracking": [0.333] * 3,
        "count": [0.333, 0.167, 0.167],
    }


@pytest.mark.parametrize("name", ASKED)
def test_one_who_remembers_the_trained_pairs_scores_chance(name):
    """Neither more, nor less because what is held out was never trained."""
    task = TASKS[name]
    trained = Counter(pair for document in train_documents(task, 0, 4000) for pair in PAIRS[name](document))
    for level in task.levels:
        items, right = items_of(task, 5, 1000, level), []
        for item in items:
            key = asked_key(name, item.context)
            seen = [trained[key, choice] for choice in item.choices]
            right.append((seen[item.gold] == max(seen)) / seen.count(max(seen)))
        uniform = 1 / len(items[0].choices)
        assert np.mean(right) == pytest.approx(uniform, abs=4 * math.sqrt(uniform * (1 - uniform) / len(items)))


@EACH_TASK
def test_seeds(task):
    level = task.levels[0]
    assert train_documents(task, 0, 6) == train_documents(task, 0, 6)
    assert items_of(task, 0, 6, level) == items_of(task, 0, 6, level)
    assert items_of(task, 0, 6, level) != items_of(task, 1, 6, level)
    assert train_documents(task, 0, 6) != train_documents(task, 1, 6)


def test_overwrites_ask_for_keys_that_had_another_value():
    task = TASKS["multi_round_overwrite"]
    for item in items_of(task, 0, 40, 6):
        key = asked_key(task.name, item.context)
        told = [value for k, value in pairs_rounds(item.context) if k == key]
        assert len(set(told)) == 2
        assert item.choices[item.gold] == told[-1]


def test_the_point_asked_for_is_not_among_the_examples():
    for item in items_of(TASKS["linear_map"], 0, 60, 4):
        *shown, asked = re.findall(r"f \( (\d+) \)", item.context)
        assert asked not in shown
