"""When the rules of the rulings were decided, what they were, and what changed after: decided.yaml, read strictly."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from evals.records import strict
from evals.records.errors import UserError

DECIDED = Path(__file__).with_name("decided.yaml")


def check_commit(commit: str) -> None:
    """ValueError unless it is 7 to 40 hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        raise ValueError(f"commit {commit!r} is not 7 to 40 hexadecimal digits; quote it in the file")


def check_zone(date: datetime.datetime) -> None:
    """ValueError unless the time has a zone, without which it is not before or after another."""
    if date.tzinfo is None:
        raise ValueError(f"date {date} has no time zone; write it as `git log --format=%cI` does")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What was decided, in words: where rulings are cut, what is compared, what is left out, how often and what is run."""

    thresholds: str
    contrasts: str
    exclusions: str
    seeds: str
    design: str

    def __post_init__(self) -> None:
        empty = [name for name, words in vars(self).items() if not words.strip()]
        if empty:
            raise ValueError(f"{', '.join(empty)} says nothing")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the rules after they were decided; `commit` holds it, `why` is its reason."""

    date: datetime.datetime
    commit: str
    what: str
    why: str

    def __post_init__(self) -> None:
        check_commit(self.commit)
        check_zone(self.date)
        if not (self.what.strip() and self.why.strip()):
            raise ValueError("a change says what and why")


@dataclass(frozen=True, kw_only=True)
class Decided:
    """The file: the commit that wrote the rules down and its time, both None as long as they are not decided.

    `preset` names the runs that the rules judge.
    """

    commit: str | None
    date: datetime.datetime | None
    preset: str
    rules: Rules
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if (self.commit is None) != (self.date is None):
            raise ValueError("commit and date are both null or neither is")
        if self.commit is None or self.date is None:
            if self.changes:
                raise ValueError("what is not decided cannot have changed; give the commit of the rules, or no changes")
            return
        check_commit(self.commit)
        check_zone(self.date)
        dates = [self.date, *(change.date for change in self.changes)]
        if dates != sorted(dates):
            raise ValueError("changes are listed first to last, none before the rules")


def load(path: Path = DECIDED) -> Decided:
    """The file as it stands; UserError names the key and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    return strict.build(Decided, data, path.name)
