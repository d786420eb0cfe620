"""Synthetic memory tasks: their generators, their test items and their share of the training stream.

The suites behind P2 table 9 (long context) are private and described there by one line each; these are SYNTHETIC
ANALOGUES and their scores are not comparable to the paper's. Their documents are short: training places each whole inside
one window (`workflows/prepare.py`), so a question is never trained without the facts that answer it.

An in-context task draws an `Episode`: facts in a prompt, then questions about them. A training document holds the prompt
and questions with their answers; a test item holds the prompt and one question, answered by choosing among values of the
prompt. What a test item asks for is held out of training by a hash: the pair of a key and its value (a name and its number,
a word and its label), or the whole prompt where there are no pairs. Only the pair is held out. Keys and values are trained,
with other partners, and no choice of an item was trained with the key that it asks for, so knowing which pairs were trained
neither helps nor misleads: such a model scores chance.

Chance is the score of the best rule that reads neither the key asked for nor what the prompt says of it (`RULES`).

`bios` is the exception and the direct test of a memory table: facts about people who exist only in the training stream,
asked back without context (Allen-Zhu & Li 2024, "Physics of Language Models 3.3", bioS). Test asks for people that were
trained, in a sentence form that was trained; what is disjoint is the person's biography from everything else. The wrong
choices belong to other people of the stream.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from math import gcd, log2, sqrt
from statistics import fmean
from typing import NamedTuple

from evals.records.errors import UserError

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


def _hash(*parts) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=100_000)
def _half(task: str, key, values, split: int) -> list:
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

    def owns(self, *parts) -> bool:
        """Whether a combination belongs to this split, for things that are no pairs."""
        return _hash(self.task, *parts) & 1 == self.split

    def pairs(self, keys: list, values) -> list[tuple]:
        """(key, value) for each of `keys`, values all different; the first is the one that a test item asks for.

        A training pair comes from its key's `train` half. In a test item all values come from the `test` half of the first
        key: to one who remembers the trained pairs they are equally unknown.
        """
        pairs: dict = {}
        for key in keys:
            half = _half(self.task, keys[0] if self.split else key, values, self.split)
            pairs[self.rng.choice([value for value in half if value not in pairs])] = key
        return [(key, value) for value, key in pairs.items()]

    def order(self, things) -> list:
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
    facts, *rest = _look_up(draw, draw.pairs(draw.rng.sample(NAMES, entries), DIGITS), "{}: {}\n", "{}:")
    return Episode("Phone book\n" + "".join(facts) + "Look up\n", *rest)


def multi_round(draw: Draw, rounds: int) -> Episode:
    """A dialogue of `rounds` facts, then questions."""
    pairs = draw.pairs(draw.rng.sample(WORDS, rounds), NUMBERS)
    facts, *rest = _look_up(draw, pairs, ROUND, ASKED)
    return Episode("".join(facts), *rest)


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
    facts, *rest = _look_up(draw, pairs, "The magic number for {} is {}.", "The magic number for {} is")
    for _ in range(sentences):
        facts.insert(draw.rng.randint(0, len(facts)), draw.rng.choice(FILLER))
    return Episode(" ".join(facts) + "\n", *rest)


def kv_retrieval(draw: Draw, pairs: int) -> Episode:
    """`pairs` keys with values, then keys to look up (MQAR of Arora et al. 2024, as words)."""
    table = draw.pairs(draw.rng.sample(KEYS, pairs), VALUE_WORDS)
    facts, *rest = _look_up(draw, table, "{} {}", "{}")
    return Episode(" ; ".join(facts) + "\n", *rest)


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

    def chance(self, level: int) -> float:
        """Accuracy of the best of `RULES`, run on 1,000 episodes; a lead of under 4 standard errors is noise."""
        return _chance(self, level)

    def episodes(self, seed: int | str, split: str, level: int) -> Iterator[Episode]:
        rng = random.Random(f"{self.name} {split} {level} {seed}")
        while True:
            yield self.episode(Draw(rng, self.name, split), level)

    def train_episodes(self, seed: int, n: int) -> list[Episode]:
        """n episodes for documents, the levels in turn."""
        streams = [self.episodes(seed, "train", level) for level in self.levels]
        episodes = (next(streams[i % len(streams)]) for i in range(n))
        return [episode._replace(questions=episode.questions[:QUESTIONS]) for episode in episodes]

    def test_items(self, seed: int, n: int, level: int) -> list[Item]:
        """n items of one level; what they ask for is in no training document."""
        items = []
        for prompt, questions, _, choices in islice(self.episodes(seed, "test", level), n):
            text, answer = questions[0]
            items.append(Item(prompt + text, choices, choices.index(answer), str(level), self.chance(level)))
        return items


@lru_cache
def _chance(task: MemoryTask, level: int) -> float:
    trained = Counter(
        question.answer for episode in islice(task.episodes("rules", "train", level), 500) for question in episode.questions
    )
    scores = rule_scores(list(islice(task.episodes("rules", "test", level), RULE_EPISODES)), trained)
    best = 0.0
    for error, mean in sorted((error, mean) for mean, error in scores.values()):
        best = mean if mean - 4 * error > best else best
    return best


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

    def biographies(self, seed: int) -> list[list[str]]:
        """The sentences of n_people x exposures biographies, in person order: shuffle before use."""
        rng = random.Random(f"bios train {seed}")
        biographies = []
        for i in range(self.n_people):
            name, values = self.person(i)
            for _ in range(self.exposures):
                sentences = [
                    f"{rng.choice(forms).format(name=name)} {values[attribute]}."
                    for attribute, (_, forms) in ATTRIBUTES.items()
                ]
                rng.shuffle(sentences)
                biographies.append(sentences)
        return biographies

    def test_items(self, seed: int, n: int, level: str) -> list[Item]:
        """At most n questions on the attribute `level`, each of another trained person.

        Choices are the values of up to ten people, all different; which of them is asked for is drawn last, so that none is
        likelier for being common in the stream.
        """
        rng = random.Random(f"bios test {level} {seed}")
        n_values, forms = ATTRIBUTES[level]
        items, asked = [], set()
        for _ in range(20 * n):
            if len(items) == min(n, self.n_people):
                break
            people = {}
            for i in rng.sample(range(self.n_people), min(self.n_people, 40)):
                people.setdefault(self.person(i)[1][level], i)
            choices = list(people)[:10]
            gold = rng.randrange(len(choices))
            person = people[choices[gold]]
            if person in asked:
                continue
            asked.add(person)
            context = rng.choice(forms).format(name=self.person(person)[0])
            items.append(Item(context, choices, gold, level, 1 / len(choices), n_values))
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


def mixture(cfg: MixtureConfig, tokenizer, seed: int, longest: int) -> list[tuple[str, str]]:
    """(task, document) of every document of the training mix, in random order.

    The mix depends on the arguments alone, so every architecture sees the same. A biography of more than `longest` tokens
    becomes several documents of whole sentences; another document is left with fewer questions, or left out.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; it decides how many documents make cfg.n_tokens, an end of text counted for
            each. The mix is shorter than that by less than one document of each task.
        longest: tokens of a document, its end of text included.

    Raises:
        UserError: the biographies alone are longer than cfg.n_tokens, or no document of a task is so short as `longest`.
    """

    def halves(sentences: list[str]) -> list[list[str]]:
        if len(sentences) == 1:
            raise UserError(f"a sentence of a biography is longer than align {longest} tokens: raise align")
        return [sentences[: len(sentences) // 2], sentences[len(sentences) // 2 :]]

    biographies = _bounded(tokenizer, cfg.bios.biographies(seed), lambda part: " ".join(part) + "\n", halves, longest)
    documents = [(BioS.name, text) for text, _ in biographies]
    used = sum(length for _, length in biographies)
    if used > cfg.n_tokens:
        raise UserError(
            f"n_people {cfg.n_people} x exposures {cfg.exposures} take {used} tokens, more than n_tokens {cfg.n_tokens}: "
            "lower one of them or raise n_tokens"
        )
    share = (cfg.n_tokens - used) // len(TASKS)
    for name, task in TASKS.items():
        documents += [(name, text) for text in _fill(tokenizer, task, seed, share, longest)]
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


def _bounded(tokenizer, things: list, text: Callable, shorter: Callable, longest: int) -> list[tuple[str, int]]:
    """(document, tokens) of `things`, those beyond `longest` replaced by what `shorter` makes of them, until all fit."""
    documents = [text(thing) for thing in things]
    bounded = []
    for thing, document, length in zip(things, documents, _lengths(tokenizer, documents), strict=True):
        if length <= longest:
            bounded.append((document, length))
        else:
            bounded += _bounded(tokenizer, shorter(thing), text, shorter, longest)
    return bounded


def _fill(tokenizer, task: MemoryTask, seed: int, n_tokens: int, longest: int) -> list[str]:
    """Documents of `task` up to n_tokens. Drawn by a fixed rule, so a longer fill begins with the shorter one."""

    def draw(n: int) -> list[tuple[str, int]]:
        return _bounded(tokenizer, task.train_episodes(seed, n), Episode.document, Episode.shorter, longest)

    pilot = draw(30)
    if not pilot:
        raise UserError(f"no document of memory task {task.name} fits into align {longest} tokens: raise align")
    per_episode = sum(length for _, length in pilot) / 30
    documents = draw(int(1.2 * n_tokens / per_episode) + len(task.levels))
    ends = accumulate(length for _, length in documents)
    return [document for (document, _), end in zip(documents, ends, strict=True) if end <= n_tokens]
