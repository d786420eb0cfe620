"""Synthetic memory tasks: their generators, their test items and their share of the training stream.

The suites behind P2 table 9 (long context) are private and described there by one line each; these are SYNTHETIC
ANALOGUES and their scores are not comparable to the paper's. They are small enough for 256 tokens of context.

An in-context task draws an `Episode`: facts in a prompt, then questions about them. A training document holds the prompt
and every question with its answer; a test item holds the prompt and one question, answered by choosing among words.
Whatever ties a key to its value (a name and its number, a word and its label, the coefficients of a line) belongs to
`train` or to `test` by a hash, so no test item can be answered from a training document.

`bios` is the exception and the direct test of a memory table: facts about people who exist only in the training stream,
asked back without context (Allen-Zhu & Li 2024, "Physics of Language Models 3.3", bioS). Test asks for people that were
trained, in a sentence form that was trained; what is disjoint is the person's biography from everything else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd, log2
from typing import NamedTuple

from workflows.errors import UserError

_WORDS = (
    "apple army baby bank bird blood board boat body bone book box boy bread bridge cat chair child church city clock "
    "cloud coat corn cow crown cup deer desert dog door dream dust ear earth egg eye face farm field finger fire fish "
    "floor flower food foot forest fruit game garden gate girl glass gold grass hair hand hat head heart hill horse "
    "house ice iron island king knife lake lamp leaf letter lion milk mind money moon mouth nail neck night oil paper "
    "pen plant queen rain ring river road rock room root rose salt sand school sea seed ship shoe silk snow song stone "
    "storm street sugar sun table tail tree wall water wheel wind window wine wing wood wool"
)
WORDS = _WORDS.split()
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LABELS = ["red", "blue", "green", "white", "black", "brown", "yellow", "grey"]
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
PRIME = 11
QUESTIONS = 3  # in a training document: more would push it beyond 256 tokens, and its facts out of a window


@dataclass(frozen=True)
class Item:
    """One multiple-choice question: `choices` follow `context` after one space; `level` is the difficulty.

    `n_values` is the number of answers possible to one who knows only the form of the answer.
    """

    context: str
    choices: list[str]
    gold: int
    level: str
    n_values: int


class Question(NamedTuple):
    text: str
    answer: str
    choices: list[str]


class Episode(NamedTuple):
    prompt: str
    questions: list[Question]

    def document(self) -> str:
        asked = self.questions[:QUESTIONS]
        return self.prompt + "".join(f"{question.text} {question.answer}\n" for question in asked)


def _hash(*parts) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


class Draw:
    """A seeded source of key-value pairs of one task and one split ("train" or "test").

    Each key orders the values in its own way, by an affine map drawn from a hash of the key: the first half of them is
    its `train` half. So every key has values in both splits and no pair is in both.
    """

    def __init__(self, rng: random.Random, task: str, split: str):
        self.rng, self.task, self.split = rng, task, ("train", "test").index(split)

    def owns(self, *parts) -> bool:
        """Whether a combination belongs to this split, for things that are no pairs."""
        return _hash(self.task, *parts) & 1 == self.split

    def value(self, key, values, taken=()):
        """A value that this split may give to `key`."""
        n = len(values)
        shift, factor = divmod(_hash(self.task, key), n)
        while gcd(factor, n) != 1:
            factor += 1
        half = (range(n // 2), range(n // 2, n))[self.split]
        while True:
            value = values[(self.rng.choice(half) * factor + shift) % n]
            if value not in taken:
                return value

    def pairs(self, keys, values, n: int, distinct: bool = True) -> list[tuple]:
        """n keys, all different, each with a value; values differ too where `distinct`."""
        pairs, taken = [], set()
        for key in self.rng.sample(keys, n):
            value = self.value(key, values, taken if distinct else ())
            taken.add(value)
            pairs.append((key, value))
        return pairs

    def order(self, things) -> list:
        return self.rng.sample(things, len(things))


def phone_book(draw: Draw, entries: int) -> Episode:
    """`entries` lines of name and number, then names to look up; chance 1 / entries (Jelassi et al. 2024)."""
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    book = draw.pairs(names, range(1000, 10000), entries)
    numbers = [str(number) for _, number in book]
    prompt = "Phone book\n" + "".join(f"{name}: {number}\n" for name, number in book) + "Look up\n"
    return Episode(prompt, [Question(f"{name}:", str(number), numbers) for name, number in draw.order(book)])


def _rounds(draw: Draw, rounds: int, overwrites: int) -> Episode:
    pairs = draw.pairs(WORDS, NUMBERS, rounds - overwrites, distinct=False)
    later = [(key, draw.value(key, NUMBERS, taken=(value,))) for key, value in pairs[:overwrites]]
    told = draw.order(pairs[overwrites:] + later)
    told = draw.order(pairs[:overwrites]) + told if overwrites else told
    prompt = "".join(f"User: remember {key} is {value}. Assistant: ok.\n" for key, value in told)
    last = dict(told)
    asked = later if overwrites else pairs
    return Episode(prompt, [Question(f"User: what is {key}? Assistant:", last[key], NUMBERS) for key, _ in draw.order(asked)])


def multi_round(draw: Draw, rounds: int) -> Episode:
    """A dialogue of `rounds` facts, then questions; chance 1 / 10."""
    return _rounds(draw, rounds, 0)


def multi_round_overwrite(draw: Draw, rounds: int) -> Episode:
    """The same, but a third of the rounds give a new value to an earlier key, and only those keys are asked."""
    return _rounds(draw, rounds, rounds // 3)


def label_map(draw: Draw, shots: int) -> Episode:
    """In-context learning: `shots` examples of a map from 4 words to labels drawn anew each time; chance 1 / 8."""
    pairs = draw.pairs(WORDS, LABELS, 4, distinct=False)
    shown = draw.order(pairs + [draw.rng.choice(pairs) for _ in range(shots - len(pairs))])
    prompt = "".join(f"{word} -> {label}\n" for word, label in shown)
    return Episode(prompt, [Question(f"{word} ->", label, LABELS) for word, label in draw.order(pairs)])


def linear_map(draw: Draw, shots: int) -> Episode:
    """In-context regression, discretised: y = a x + b mod 11 from `shots` points; the x asked is new; chance 1 / 11."""
    a, b = draw.value("line", [(a, b) for a in range(1, PRIME) for b in range(PRIME)])
    points = [(x, (a * x + b) % PRIME) for x in draw.order(range(PRIME))]
    prompt = "".join(f"f ( {x} ) = {y}\n" for x, y in points[:shots])
    values = [str(y) for y in range(PRIME)]
    return Episode(prompt, [Question(f"f ( {x} ) =", str(y), values) for x, y in points[shots:]])


def needle(draw: Draw, sentences: int) -> Episode:
    """One number hidden among `sentences` filler sentences (after RULER niah); nine wrong numbers beside it."""
    ((key, number),) = draw.pairs(WORDS, range(100, 1000), 1)
    text = [draw.rng.choice(FILLER) for _ in range(sentences)]
    text.insert(draw.rng.randint(0, sentences), f"One of the special magic numbers for {key} is: {number}.")
    wrong = draw.rng.sample([n for n in range(100, 1000) if n != number], 9)
    choices = [str(n) for n in draw.order([number, *wrong])]
    return Episode(" ".join(text) + "\n", [Question(f"The special magic number for {key} is:", str(number), choices)])


def kv_retrieval(draw: Draw, pairs: int) -> Episode:
    """`pairs` keys with values, then keys to look up; chance 1 / pairs (MQAR of Arora et al. 2024, as words)."""
    half = len(WORDS) // 2
    table = draw.pairs(WORDS[:half], WORDS[half:], pairs)
    prompt = " ; ".join(f"{key} {value}" for key, value in table) + "\n"
    values = [value for _, value in table]
    return Episode(prompt, [Question(key, value, values) for key, value in draw.order(table)])


def variable_tracking(draw: Draw, hops: int) -> Episode:
    """Four chains of assignments, each `hops` copies long, interleaved (after RULER vt); chance 1 / 4."""
    letters = draw.order("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    chains = [letters[4 * hop : 4 * hop + 4] for hop in range(hops + 1)]
    values = []
    for end in chains[-1]:
        values.append(draw.value(end, range(10, 100), values))
    lines = [f"VAR {name} = {value};" for name, value in draw.order(list(zip(chains[0], values, strict=True)))]
    for before, after in pairwise(chains):
        lines += [f"VAR {name} = {source};" for name, source in draw.order(list(zip(after, before, strict=True)))]
    choices = [str(value) for value in values]
    asked = draw.order(list(zip(chains[-1], choices, strict=True)))
    return Episode(" ".join(lines) + "\n", [Question(f"The value of {name} is", value, choices) for name, value in asked])


def count(draw: Draw, length: int) -> Episode:
    """Aggregation: how often a colour occurs in a list of `length`; chance 1 / 6."""
    asked, *others = draw.rng.sample(LABELS, 3)
    while True:
        n = draw.rng.randint(1, 6)
        listed = draw.order([asked] * n + [draw.rng.choice(others) for _ in range(length - n)])
        if draw.owns(*listed):
            break
    counts = [str(n) for n in range(1, 7)]
    return Episode(" ".join(listed) + "\n", [Question(f"How many {asked}?", str(n), counts)])


@dataclass(frozen=True)
class MemoryTask:
    """`levels` of the difficulty `axis`; `n_values(level)` as in `Item`; `is_shots`: the axis counts demonstrations."""

    episode: Callable[[Draw, int], Episode]
    axis: str
    levels: tuple[int, ...]
    n_values: int
    is_shots: bool = False

    @property
    def name(self) -> str:
        return self.episode.__name__

    def chance(self, level: int) -> float:
        """Accuracy of a blind guess among the choices."""
        return 1 / len(self.test_items(0, 1, level)[0].choices)

    def _episodes(self, seed: int, split: str, level: int) -> Iterator[Episode]:
        rng = random.Random(f"{self.name} {split} {level} {seed}")
        while True:
            yield self.episode(Draw(rng, self.name, split), level)

    def train_documents(self, seed: int, n: int) -> list[str]:
        """n documents, the levels in turn."""
        streams = [self._episodes(seed, "train", level) for level in self.levels]
        return [next(streams[i % len(streams)]).document() for i in range(n)]

    def test_items(self, seed: int, n: int, level: int) -> list[Item]:
        """n items of one level, from combinations that no training document holds."""
        items = []
        for _, episode in zip(range(n), self._episodes(seed, "test", level), strict=False):
            question = episode.questions[0]
            gold = question.choices.index(question.answer)
            context = episode.prompt + question.text
            items.append(Item(context, list(question.choices), gold, str(level), self.n_values))
        return items


TASKS = {
    task.name: task
    for task in (
        MemoryTask(phone_book, "entries", (4, 8, 16), 9000),
        MemoryTask(multi_round, "rounds", (4, 7, 10), 10),
        MemoryTask(multi_round_overwrite, "rounds", (3, 6, 9), 10),
        MemoryTask(label_map, "shots", (4, 8, 16), 8, is_shots=True),
        MemoryTask(linear_map, "shots", (2, 4, 8), PRIME, is_shots=True),
        MemoryTask(needle, "filler sentences", (2, 6, 12), 900),
        MemoryTask(kv_retrieval, "pairs", (4, 8, 16), len(WORDS) // 2),
        MemoryTask(variable_tracking, "hops", (1, 2, 3), 90),
        MemoryTask(count, "list length", (6, 9, 12), 6),
    )
}


def _syllables(onsets: str, middles: str, codas: str, n: int) -> list[str]:
    """n made-up words, all different, in a fixed order."""
    words = [a + b + c for c in codas.split() for b in middles.split() for a in onsets.split()]
    return [word.capitalize() for word in words[:n]]


ONSETS = "b br c d dr f g gr h k l m n p r s st t tr w"
GIVEN = _syllables(ONSETS, "a e i o u", "n l ra nie", 400)
MIDDLE = _syllables(ONSETS, "a e i o u", "m d sa vin", 400)
FAMILY = _syllables(ONSETS, "al en im or un", "son man ley ton ter well field ford burg worth", 1000)
_MONTHS = "January February March April May June July August September October November December"
MONTHS = _MONTHS.split()
CITIES = _syllables(ONSETS, "ar el", "ville port mouth stead haven", 200)
UNIVERSITIES = [f"University of {name}" for name in _syllables(ONSETS, "an ed ing", "ham wick dale bury ria", 300)]
MAJORS = [f"{a} {b}" for b in ("Science", "Studies", "History", "Theory", "Design") for a in (
    "Animal", "Art", "Body", "City", "Earth", "Food", "Forest", "Game", "Health", "Land", "Language", "Law", "Machine",
    "Market", "Music", "Plant", "Power", "Space", "War", "Water")]  # fmt: skip
EMPLOYERS = [f"{name} Company" for name in _syllables(ONSETS, "ax ex ix ox", "on er in um", 263)]

ATTRIBUTES: dict[str, tuple[int, tuple[str, ...]]] = {
    "birth date": (12 * 28 * 200, ("{name} was born on", "The birthday of {name} is", "{name} came into the world on")),
    "birth city": (200, ("{name} was born in the city of", "The home town of {name} is", "{name} grew up in")),
    "university": (300, ("{name} studied at the", "{name} has a degree from the", "{name} was taught at the")),
    "major": (100, ("{name} took a degree in", "The subject of {name} was", "{name} learned all about")),
    "employer": (263, ("{name} works for the", "The employer of {name} is the", "{name} has a job at the")),
}
VALUES = {"birth city": CITIES, "university": UNIVERSITIES, "major": MAJORS, "employer": EMPLOYERS}


def _value(attribute: str, rng: random.Random) -> str:
    if attribute == "birth date":
        return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(1800, 1999)}"
    return rng.choice(VALUES[attribute])


@dataclass(frozen=True)
class BioS:
    """bioS(n_people): each person's five attributes are drawn uniformly and stated in each of `exposures` documents.

    Sentences are permuted and one of three forms is drawn for each, anew in every document (the paper has 50 forms, and
    a sixth sentence, the pronoun and the employer's city, that carry 1 and 0 bits: left out).
    """

    n_people: int = 200
    exposures: int = 20
    seed: int = 0

    name = "bios"
    axis = "attribute"
    levels = tuple(ATTRIBUTES)

    def chance(self, level: str) -> float:
        """Accuracy of a blind guess among the ten choices."""
        return 0.1

    @property
    def bits_per_person(self) -> float:
        """Entropy of one person's attributes."""
        return sum(log2(n) for n, _ in ATTRIBUTES.values())

    def person(self, i: int) -> tuple[str, dict[str, str]]:
        """Name and attributes of person i; no two share a name."""
        n_names = len(GIVEN) * len(MIDDLE) * len(FAMILY)
        rest, given = divmod(i * 48_271_001 % n_names, len(GIVEN))  # coprime to n_names: a permutation of all names
        family, middle = divmod(rest, len(MIDDLE))
        rng = random.Random(f"bios {self.seed} {i}")
        name = f"{GIVEN[given]} {MIDDLE[middle]} {FAMILY[family]}"
        return name, {attribute: _value(attribute, rng) for attribute in ATTRIBUTES}

    def train_documents(self, seed: int) -> list[str]:
        """n_people x exposures biographies, in person order: shuffle before use."""
        rng = random.Random(f"bios train {seed}")
        documents = []
        for i in range(self.n_people):
            name, values = self.person(i)
            for _ in range(self.exposures):
                sentences = [
                    f"{rng.choice(forms).format(name=name)} {values[attribute]}."
                    for attribute, (_, forms) in ATTRIBUTES.items()
                ]
                rng.shuffle(sentences)
                documents.append(" ".join(sentences) + "\n")
        return documents

    def test_items(self, seed: int, n: int, level: str) -> list[Item]:
        """n questions on the attribute `level` of trained people, all different while n <= n_people."""
        rng = random.Random(f"bios test {level} {seed}")
        n_values, forms = ATTRIBUTES[level]
        asked = rng.sample(range(self.n_people), min(n, self.n_people))
        items = []
        for i in asked:
            name, values = self.person(i)
            choices = {values[level]: None}
            while len(choices) < 10:
                choices[_value(level, rng)] = None
            choices = rng.sample(list(choices), 10)
            items.append(Item(rng.choice(forms).format(name=name), choices, choices.index(values[level]), level, n_values))
        return items


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The share of the training stream that these tasks take.

    Args:
        n_tokens: total length; biographies take what they need, the in-context tasks share the rest equally.
        n_people, exposures: of bioS.
    """

    n_tokens: int
    n_people: int = 200
    exposures: int = 20

    @property
    def bios(self) -> BioS:
        return BioS(self.n_people, self.exposures)


def mixture(cfg: MixtureConfig, tokenizer, seed: int) -> list[tuple[str, str]]:
    """(task, document) of every document of the training mix, in random order.

    The mix depends on `cfg`, the tokenizer and `seed` alone, so every architecture sees the same.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; it decides how many documents make cfg.n_tokens, an end of text counted for
            each. The mix is shorter than that by less than one document of each task.

    Raises:
        UserError: the biographies alone are longer than cfg.n_tokens.
    """
    documents = [(BioS.name, text) for text in cfg.bios.train_documents(seed)]
    used = sum(_lengths(tokenizer, [text for _, text in documents]))
    if used > cfg.n_tokens:
        raise UserError(
            f"n_people {cfg.n_people} x exposures {cfg.exposures} take {used} tokens, more than n_tokens {cfg.n_tokens}: "
            "lower one of them or raise n_tokens"
        )
    share = (cfg.n_tokens - used) // len(TASKS)
    for name, task in TASKS.items():
        documents += [(name, text) for text in _fill(tokenizer, task, seed, share)]
    random.Random(f"mixture {seed}").shuffle(documents)
    return documents


def end_of_text(tokenizer) -> int:
    end = tokenizer.token_to_id("<|endoftext|>")
    if end is None:
        raise UserError("the tokenizer has no <|endoftext|> token: build it with `python -m workflows.prepare`")
    return end


def _lengths(tokenizer, documents: list[str]) -> Iterator[int]:
    """Tokens of each document and of the end of text before it."""
    for start in range(0, len(documents), 1024):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 1024], add_special_tokens=False):
            yield len(encoding.ids) + 1


def _fill(tokenizer, task: MemoryTask, seed: int, n_tokens: int) -> list[str]:
    """Documents of `task` up to n_tokens. Drawn by a fixed rule, so a longer fill begins with the shorter one."""
    pilot = list(_lengths(tokenizer, task.train_documents(seed, 30)))
    documents = task.train_documents(seed, int(1.2 * n_tokens * len(pilot) / sum(pilot)) + len(task.levels))
    ends = accumulate(_lengths(tokenizer, documents))
    return [document for document, end in zip(documents, ends, strict=True) if end <= n_tokens]
