"""`bios`, the direct test of a memory table: facts about people who exist only in the training stream.

They are asked back without context (Allen-Zhu & Li 2024, "Physics of Language Models 3.3", bioS). Test (`items.py`) asks for
people that were trained, in a sentence form that was trained; what is disjoint is the person's biography from everything
else. The wrong choices belong to other people of the stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


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
