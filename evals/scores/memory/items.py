"""What the memory tasks ask of a trained model, and what one without memory would score; nothing here is trained on.

Chance is the score of the best rule that reads neither the key asked for nor what the prompt says of it (`RULES`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import sqrt
from statistics import fmean

from evals.scores.memory.bios import ATTRIBUTES, BioS
from evals.scores.memory.episodes import Episode, MemoryTask


@dataclass(frozen=True)
class Item:
    """One multiple-choice question: `choices` follow `context` after one space; `level` is the difficulty.

    `chance` is the score of the best rule without memory; `n_values` the number of answers possible to one who knows only
    the form of the answer (of a biography, else 0).
    """

    context: str
    choices: list[str]
    gold: int
    level: str
    chance: float
    n_values: int = 0


# What a rule without memory may read: the values that the prompt shows, the choices, how often each answered in training.
# It returns a weight for each choice and picks in proportion.
RULES: dict[str, Callable[[list[str], list[str], Counter], list[float]]] = {
    "uniform": lambda shown, choices, trained: [1] * len(choices),
    "copy any value": lambda shown, choices, trained: [shown.count(choice) for choice in choices],
    "copy the most frequent value": lambda shown, choices, trained: _largest([shown.count(choice) for choice in choices]),
    "copy the first value": lambda shown, choices, trained: [choice in shown[:1] for choice in choices],
    "copy the last value": lambda shown, choices, trained: [choice in shown[-1:] for choice in choices],
    "leave out the first value": lambda shown, choices, trained: [choice not in shown[:1] for choice in choices],
    "leave out shown values": lambda shown, choices, trained: [choice not in shown for choice in choices],
    "commonest answer in training": lambda shown, choices, trained: _largest([trained[choice] for choice in choices]),
}
RULE_EPISODES = 1000


def _largest(counts: list[int]) -> list[float]:
    return [n == max(counts) for n in counts]


def rule_scores(episodes: list[Episode], trained: Counter) -> dict[str, tuple[float, float]]:
    """Rule -> its expected accuracy on the first question of each episode, and the standard error of that."""
    scores = {}
    for name, rule in RULES.items():
        right = []
        for episode in episodes:
            weights = rule(episode.shown, episode.choices, trained)
            weights = weights if any(weights) else [1] * len(weights)
            right.append(weights[episode.choices.index(episode.questions[0].answer)] / sum(weights))
        mean = fmean(right)
        scores[name] = mean, sqrt(sum((score - mean) ** 2 for score in right)) / len(right)
    return scores


@lru_cache
def chance(task: MemoryTask, level: int) -> float:
    """Accuracy of the best of `RULES`, run on 1,000 episodes; a lead of under 4 standard errors is noise."""
    trained = Counter(
        question.answer for episode in islice(task.episodes("rules", "train", level), 500) for question in episode.questions
    )
    scores = rule_scores(list(islice(task.episodes("rules", "test", level), RULE_EPISODES)), trained)
    best = 0.0
    for error, mean in sorted((error, mean) for mean, error in scores.values()):
        best = mean if mean - 4 * error > best else best
    return best


def items_of(task: MemoryTask | BioS, seed: int, n: int, level: int | str) -> list[Item]:
    """n items of one level, at most one for each of the people of bioS; what others ask for is in no training document."""
    if isinstance(task, BioS):
        return bios_items(task, seed, n, str(level))
    items, level = [], int(level)
    for prompt, questions, _, choices in islice(task.episodes(seed, "test", level), n):
        text, answer = questions[0]
        items.append(Item(prompt + text, choices, choices.index(answer), str(level), chance(task, level)))
    return items


def bios_items(bios: BioS, seed: int, n: int, level: str) -> list[Item]:
    """At most n questions on the attribute `level`, each of another trained person.

    Choices are the values of up to ten people, all different; which of them is asked for is drawn last, so that none is
    likelier for being common in the stream.
    """
    rng = random.Random(f"bios test {level} {seed}")
    n_values, forms = ATTRIBUTES[level]
    items: list[Item] = []
    asked: set[int] = set()
    for _ in range(20 * n):
        if len(items) == min(n, bios.n_people):
            break
        people: dict[str, int] = {}
        for i in rng.sample(range(bios.n_people), min(bios.n_people, 40)):
            people.setdefault(bios.person(i)[1][level], i)
        choices = list(people)[:10]
        gold = rng.randrange(len(choices))
        person = people[choices[gold]]
        if person in asked:
            continue
        asked.add(person)
        context = rng.choice(forms).format(name=bios.person(person)[0])
        items.append(Item(context, choices, gold, level, 1 / len(choices), n_values))
    return items
