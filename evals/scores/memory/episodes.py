"""In-context memory tasks: episodes of facts and questions, drawn from a seed.

An `Episode` is facts in a prompt, then questions about them. A training document holds the prompt and questions with their
answers; a test item (`items.py`) holds the prompt and one question, answered by choosing among values of the prompt. What a
test item asks for is held out of training by a hash: the pair of a key and its value (a name and its number, a word and its
label), or the whole prompt where there are no pairs. Only the pair is held out. Keys and values are trained, with other
partners, and no choice of an item was trained with the key that it asks for, so knowing which pairs were trained neither
helps nor misleads: such a model scores chance.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd
from typing import Any, NamedTuple

_WORDS = (
    "apple army baby bank bird blood board boat body bone book box boy bread bridge cat chair child church city clock "
    "cloud coat corn cow crown cup deer desert dog door dream dust ear earth egg eye face farm field finger fire fish "
    "floor flower food foot forest fruit game garden gate girl glass gold grass hair hand hat head heart hill horse "
    "house ice iron island king knife lake lamp leaf letter lion milk mind money moon mouth nail neck night oil paper "
    "pen plant queen rain ring river road rock room root rose salt sand school sea seed ship shoe silk snow song stone "
    "storm street sugar sun table tail tree wall water wheel wind window wine wing wood wool"
)
WORDS = tuple(_WORDS.split())
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
NUMBERS = tuple(_NUMBERS.split())
_LABELS = "red blue green white black brown yellow grey orange pink purple silver"
LABELS = tuple(_LABELS.split())
DIGITS = range(10, 100)
_FIRST = (
    "Adam Alice Anna Arthur Barbara Carl Clara David Edith Edward Ella Emma Eric Frank George Grace Harry Helen Henry "
    "Ida Jack James Jane John Karl Laura Lewis Louis Lucy Mark Martha Mary Nora Oscar Paul Peter Ruth Sarah Simon Thomas"
)
FIRST = _FIRST.split()
_LAST = (
    "Adams Allen Baker Bell Brown Carter Clark Cook Cooper Davis Evans Fisher Ford Fox Gray Green Hall Harris Hill Howard "
    "Hunt Jackson King Lee Long Marshall Martin Mason Moore Nelson Parker Perry Price Reed Rose Scott Stone Taylor Ward Wood"
)
LAST = _LAST.split()
NAMES = [f"{first} {last}" for first in FIRST for last in LAST]
FILLER = (
    "The grass is green and the sky is blue.",
    "The sun is warm and the water is cold.",
    "Here we go, there and back again.",
    "A long road leads over the hill to the sea.",
    "The old house stands near a small river.",
    "Snow fell on the mountain in the night.",
    "People came to the market with bread and fruit.",
    "The ship was built of wood and iron.",
)
PRIME = 7
QUESTIONS = 3  # at most in a training document: more would make it too long for a window


class Question(NamedTuple):
    text: str
    answer: str


class Episode(NamedTuple):
    """`shown`: the values that the prompt states, in its order; `choices`: the values that may answer, in random order."""

    prompt: str
    questions: list[Question]
    shown: list[str]
    choices: list[str]

    def document(self) -> str:
        return self.prompt + "".join(f"{question.text} {question.answer}\n" for question in self.questions)

    def shorter(self) -> list[Episode]:
        """The episode without its last question; none if it has but one."""
        return [self._replace(questions=self.questions[:-1])] if len(self.questions) > 1 else []


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=100_000)
def _half(task: str, key: Hashable, values: Any, split: int) -> list:
    """The values that `split` (0 train, 1 test) may give to `key`: a half of them, other for each key."""
    n = len(values)
    shift, factor = divmod(_hash(task, key), n)
    while gcd(factor, n) != 1:
        factor += 1
    return [values[(i * factor + shift) % n] for i in (range(n // 2), range(n // 2, n))[split]]


class Draw:
    """A seeded source of key-value pairs of one task and one split ("train" or "test")."""

    def __init__(self, rng: random.Random, task: str, split: str):
        self.rng, self.task, self.split = rng, task, ("train", "test").index(split)

    def owns(self, *parts: object) -> bool:
        """Whether a combination belongs to this split, for things that are no pairs."""
        return _hash(self.task, *parts) & 1 == self.split

    def pairs(self, keys: list, values: Any) -> list[tuple]:
        """(key, value) for each of `keys`, values all different; the first is the one that a test item asks for.

        A training pair comes from its key's `train` half. In a test item all values come from the `test` half of the first
        key: to one who remembers the trained pairs they are equally unknown.
        """
        pairs: dict = {}
        for key in keys:
            half = _half(self.task, keys[0] if self.split else key, values, self.split)
            pairs[self.rng.choice([value for value in half if value not in pairs])] = key
        return [(key, value) for value, key in pairs.items()]

    def order(self, things: Sequence) -> list:
        return self.rng.sample(things, len(things))


def _look_up(
    draw: Draw, pairs: list[tuple], fact: str, question: str
) -> tuple[list[str], list[Question], list[str], list[str]]:
    """Facts in random order, questions, the values in the facts' order and in random order."""
    told = draw.order(pairs)
    values = [str(value) for _, value in told]
    facts = [fact.format(key, value) for key, value in told]
    return facts, [Question(question.format(key), str(value)) for key, value in pairs], values, draw.order(values)


def phone_book(draw: Draw, entries: int) -> Episode:
    """`entries` lines of name and number, then names to look up (Jelassi et al. 2024)."""
    facts, questions, shown, choices = _look_up(draw, draw.pairs(draw.rng.sample(NAMES, entries), DIGITS), "{}: {}\n", "{}:")
    return Episode("Phone book\n" + "".join(facts) + "Look up\n", questions, shown, choices)


def multi_round(draw: Draw, rounds: int) -> Episode:
    """A dialogue of `rounds` facts, then questions."""
    pairs = draw.pairs(draw.rng.sample(WORDS, rounds), NUMBERS)
    facts, questions, shown, choices = _look_up(draw, pairs, ROUND, ASKED)
    return Episode("".join(facts), questions, shown, choices)


ROUND, ASKED = "- {} is {}. - Yes.\n", "- {}? - It is"


def multi_round_overwrite(draw: Draw, rounds: int) -> Episode:
    """The same, but each key is told twice and the later value counts.

    The round with the answer of the first question is any but the first, equally often.
    """
    keys = draw.rng.sample(WORDS, rounds // 2)
    new = draw.rng.randrange(1, rounds)
    old = draw.rng.randrange(new)
    told = iter(draw.order(keys[1:] * 2))
    order = [keys[0] if place in (old, new) else next(told) for place in range(rounds)]
    pairs = draw.pairs([keys[0], *order[:old], *order[old + 1 :]], NUMBERS)
    pairs = [*pairs[1 : old + 1], pairs[0], *pairs[old + 1 :]]
    last = dict(pairs)
    values = [value for _, value in pairs]
    questions = [Question(ASKED.format(key), last[key]) for key in keys]
    return Episode("".join(ROUND.format(*pair) for pair in pairs), questions, values, draw.order(values))


def label_map(draw: Draw, shots: int) -> Episode:
    """In-context learning: `shots` examples of a map from 4 words (2 where there are fewer shots) to labels."""
    pairs = draw.pairs(draw.rng.sample(WORDS, 4 if shots >= 4 else 2), LABELS)
    shown = draw.order(pairs + [draw.rng.choice(pairs) for _ in range(shots - len(pairs))])
    prompt = "".join(f"{word} -> {label}\n" for word, label in shown)
    questions = [Question(f"{word} ->", label) for word, label in pairs]
    return Episode(prompt, questions, [label for _, label in shown], draw.order([label for _, label in pairs]))


def linear_map(draw: Draw, shots: int) -> Episode:
    """In-context regression, discretised: y = a x + b mod 7 from `shots` points; the x asked is new, and so is its y.

    The choices are the values that no example shows: a line takes each value once, so the others are excluded anyway.
    """
    while True:
        a, b = draw.rng.randrange(1, PRIME), draw.rng.randrange(PRIME)
        points = [(x, (a * x + b) % PRIME) for x in draw.order(range(PRIME))]
        if draw.owns(*points[: shots + 1]):
            break
    prompt = "".join(f"f ( {x} ) = {y}\n" for x, y in points[:shots])
    questions = [Question(f"f ( {x} ) =", str(y)) for x, y in points[shots:]]
    return Episode(prompt, questions, [str(y) for _, y in points[:shots]], draw.order([q.answer for q in questions]))


def needle(draw: Draw, sentences: int) -> Episode:
    """Numbers of three keys hidden among `sentences` filler sentences, one of them asked for (after RULER niah)."""
    pairs = draw.pairs(draw.rng.sample(WORDS, 3), DIGITS)
    facts, questions, shown, choices = _look_up(draw, pairs, "The magic number for {} is {}.", "The magic number for {} is")
    for _ in range(sentences):
        facts.insert(draw.rng.randint(0, len(facts)), draw.rng.choice(FILLER))
    return Episode(" ".join(facts) + "\n", questions, shown, choices)


def kv_retrieval(draw: Draw, pairs: int) -> Episode:
    """`pairs` keys with values, then keys to look up (MQAR of Arora et al. 2024, as words)."""
    table = draw.pairs(draw.rng.sample(KEYS, pairs), VALUE_WORDS)
    facts, questions, shown, choices = _look_up(draw, table, "{} {}", "{}")
    return Episode(" ; ".join(facts) + "\n", questions, shown, choices)


KEYS, VALUE_WORDS = tuple(WORDS[: len(WORDS) // 2]), tuple(WORDS[len(WORDS) // 2 :])


def variable_tracking(draw: Draw, hops: int) -> Episode:
    """Three chains of assignments, each `hops` copies long, interleaved (after RULER vt)."""
    letters = draw.order("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    chains = [letters[3 * hop : 3 * hop + 3] for hop in range(hops + 1)]
    pairs = draw.pairs(chains[-1], DIGITS)
    starts = [(name, value) for name, (_, value) in zip(chains[0], pairs, strict=True)]
    lines, _, values, choices = _look_up(draw, starts, "VAR {} = {};", "")
    for before, after in pairwise(chains):
        lines += [f"VAR {name} = {source};" for name, source in draw.order(list(zip(after, before, strict=True)))]
    questions = [Question(f"The value of {name} is", str(value)) for name, value in pairs]
    return Episode(" ".join(lines) + "\n", questions, values, choices)


def count(draw: Draw, length: int) -> Episode:
    """Aggregation: how often a colour occurs in a list of `length`."""
    most = min(6, length - 1)
    n = draw.rng.randint(1, most)
    while True:
        asked, *others = draw.rng.sample(LABELS, 3)
        listed = draw.order([asked] * n + [draw.rng.choice(others) for _ in range(length - n)])
        if draw.owns(*listed):
            break
    counts = [str(n) for n in range(1, most + 1)]
    return Episode(" ".join(listed) + "\n", [Question(f"How many {asked}?", str(n))], [], draw.order(counts))


@dataclass(frozen=True)
class MemoryTask:
    """`levels` of the difficulty `axis`; `is_shots`: the axis counts demonstrations."""

    episode: Callable[[Draw, int], Episode]
    axis: str
    levels: tuple[int, ...]
    is_shots: bool = False

    @property
    def name(self) -> str:
        return self.episode.__name__

    def episodes(self, seed: int | str, split: str, level: int) -> Iterator[Episode]:
        rng = random.Random(f"{self.name} {split} {level} {seed}")
        while True:
            yield self.episode(Draw(rng, self.name, split), level)

    def train_episodes(self, seed: int, n: int) -> list[Episode]:
        """n episodes for documents, the levels in turn."""
        streams = [self.episodes(seed, "train", level) for level in self.levels]
        episodes = (next(streams[i % len(streams)]) for i in range(n))
        return [episode._replace(questions=episode.questions[:QUESTIONS]) for episode in episodes]


TASKS = {
    task.name: task
    for task in (
        MemoryTask(phone_book, "entries", (2, 4, 8)),
        MemoryTask(multi_round, "rounds", (2, 4, 6)),
        MemoryTask(multi_round_overwrite, "rounds", (4, 6)),
        MemoryTask(label_map, "shots", (2, 4, 8), is_shots=True),
        MemoryTask(linear_map, "shots", (2, 3, 4), is_shots=True),
        MemoryTask(needle, "filler sentences", (0, 2, 4)),
        MemoryTask(kv_retrieval, "pairs", (2, 4, 8)),
        MemoryTask(variable_tracking, "hops", (1, 2, 3)),
        MemoryTask(count, "list length", (4, 8, 12)),
    )
}
