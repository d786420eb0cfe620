"""Mappings are read strictly: what does not fit is named, with the key and what is allowed."""

from dataclasses import dataclass

import pytest

from evals.records import strict
from evals.records.errors import UserError


@dataclass(frozen=True)
class Toy:
    lr: float
    steps: int = 3
    names: tuple[str, ...] = ()
    maybe: int | None = None


def test_fields_are_read_as_their_types():
    assert strict.build(Toy, {"lr": 1, "names": ["a"], "maybe": None}, "toy") == Toy(1.0, 3, ("a",), None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"lr": 0.1, "stpes": 4}, ["stpes", "did you mean steps", "lr, steps, names, maybe"]),
        ({"lr": "0.1"}, ["toy.lr", "float", "'0.1'"]),
        ({"lr": 0.1, "steps": 2.5}, ["toy.steps", "int"]),
        ({"lr": 0.1, "steps": True}, ["toy.steps", "int"]),
        ({"lr": 0.1, "names": "a"}, ["toy.names", "list"]),
        ({}, ["missing lr"]),
    ],
)
def test_misfits_are_named(data, words):
    with pytest.raises(UserError) as error:
        strict.build(Toy, data, "toy")
    assert all(word in str(error.value) for word in words)
