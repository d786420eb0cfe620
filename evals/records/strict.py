"""Turns parsed YAML into frozen dataclasses and refuses whatever does not fit: no coercion, no unknown key."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from difflib import get_close_matches
from functools import cache
from typing import Any

from evals.records.errors import UserError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


@dataclasses.dataclass(frozen=True)
class Range:
    """Both ends belong to it: `Annotated[int, Range(1, 8)]`."""

    low: float
    high: float

    def complaint(self, value: float) -> str:
        inside = self.low <= value <= self.high  # false for NaN
        return "" if inside else f"must lie between {self.low:,} and {self.high:,}"


@dataclasses.dataclass(frozen=True)
class Distinct:
    """At least one item, none twice: `Annotated[tuple[str, ...], Distinct()]`."""

    def complaint(self, value: tuple) -> str:
        twice = [item for item in value if value.count(item) > 1]
        if twice:
            return f"must name {shown(twice[0])} once"
        return "" if value else "must name at least one"


def shown(value: Any) -> str:
    """A value in a message: one line, however long or deep it is."""
    try:
        return _REPR.repr(value)
    except ValueError:  # int: more digits than Python prints
        return "a number of thousands of digits"


@cache
def kinds(cls: type) -> dict[str, Any]:
    """Types of a class's fields, with what is written beside them."""
    return typing.get_type_hints(cls, include_extras=True)


def build(cls: type, data: Any, where: str) -> Any:
    """An instance of dataclass `cls` from a mapping.

    Args:
        where: what the mapping is, for the message ("workflows/configs/cpu.yaml: train").

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type; says which and what is allowed.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a mapping of {cls.__name__} fields, found {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    check_keys(data, fields, where)
    hints = kinds(cls)
    missing = [
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    values = {name: convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def check_keys(data: dict, allowed: typing.Iterable[str], where: str) -> None:
    allowed = list(allowed)
    for key in data:
        if key not in allowed:
            close = get_close_matches(str(key), allowed, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"{where}: unknown key {shown(key)}{hint}; allowed are {', '.join(allowed)}")


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; ints pass as floats and lists as tuples, nothing else is changed.

    The annotations of an `Annotated` type have `complaint(value)`: what the value must be, or nothing.

    Raises:
        UserError: another type, or outside what the type's annotations allow.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        value = convert(args[0], value, where)
        for annotation in args[1:]:
            if complaint := annotation.complaint(value):
                raise UserError(f"{where}: {complaint}, found {shown(value)}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {shown(value)}")
        return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a mapping, found {shown(value)}")
        return {convert(args[0], key, f"{where}: key"): convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}: {shown(value)} is not one of {', '.join(map(str, args))}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}: {shown(value)} is too large") from None
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        found = type(value).__name__
        raise UserError(f"{where}: expected {hint.__name__}, found {found} {shown(value)}")
    return value
