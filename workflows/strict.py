"""Turns parsed YAML into frozen dataclasses and refuses whatever does not fit: no coercion, no unknown key."""

from __future__ import annotations

import dataclasses
import types
import typing
from difflib import get_close_matches
from typing import Any

from workflows.errors import UserError


def build(cls: type, data: Any, where: str) -> Any:
    """An instance of dataclass `cls` from a mapping.

    Args:
        where: what the mapping is, for the message ("workflows/configs/cpu.yaml: train").

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type; says which and what is allowed.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a mapping of {cls.__name__} fields, found {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    check_keys(data, fields, where)
    hints = typing.get_type_hints(cls)
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
            raise UserError(f"{where}: unknown key {key!r}{hint}; allowed are {', '.join(allowed)}")


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; ints pass as floats and lists as tuples, nothing else is changed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a mapping, found {value!r}")
        return {key: convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        found = type(value).__name__
        raise UserError(f"{where}: expected {hint.__name__}, found {found} {value!r}")
    return value
