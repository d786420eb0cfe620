"""A column of a CSV: what its cells hold, and how a cell is written and read."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Column:
    """`dtype` is str, int, float or bool; a `required` cell is never empty; `choices` are the words allowed, if any."""

    name: str
    dtype: type
    unit: str
    doc: str
    required: bool = True
    choices: tuple[str, ...] = ()

    def parse(self, cell: str) -> Any:
        """The value of a cell as `format`, pandas, R or a spreadsheet write it; None where it is missing.

        Raises:
            ValueError: what is wrong with the cell.
        """
        if cell in MISSING:
            if self.required:
                raise ValueError(f"{self.name} is {f'{cell!r}, a missing value' if cell else 'empty'}")
            return None
        if self.choices and cell not in self.choices:
            raise ValueError(f"{self.name} is {cell!r}, allowed: {', '.join(self.choices)}")
        try:
            value = READ[self.dtype](cell)
        except (ValueError, KeyError):
            value = math.nan
        if value != value:
            raise ValueError(f"{self.name} is {cell!r}, not {WORDS[self.dtype]}")
        return value

    def format(self, value: Any) -> str:
        """The cell for a value: floats in their shortest exact form; None and NaN are missing values."""
        if value is None or value is pd.NA or (isinstance(value, numbers.Real) and math.isnan(value)):
            text = ""
        elif self.dtype is bool and type(value).__name__ in ("bool", "bool_"):
            text = str(bool(value)).lower()
        elif self.dtype is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            text = str(int(value))
        elif self.dtype is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            text = repr(float(value))
        elif self.dtype is str and isinstance(value, str):
            text = value
        else:
            raise ValueError(f"{self.name} is {value!r}, not {WORDS[self.dtype]}")
        if self.parse(text) is None and text:
            raise ValueError(f"{self.name} is {text!r}, which reads back as a missing value")
        return text


def _whole(cell: str) -> int:
    """Also of 3.0 and 1e+05, as far as a float holds every whole number."""
    try:
        return int(cell)
    except ValueError:
        value = float(cell)
        if not value.is_integer() or abs(value) > 2**53:
            raise
        return int(value)


WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
MISSING = frozenset(("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"))
BOOLS = {"true": True, "t": True, "1": True, "1.0": True, "false": False, "f": False, "0": False, "0.0": False}
READ: dict[type, Callable[[str], Any]] = {str: str, int: _whole, float: float, bool: lambda cell: BOOLS[cell.lower()]}


def text(name: str, doc: str, required: bool = True, choices: tuple[str, ...] = ()) -> Column:
    return Column(name, str, "", doc, required, choices)


def whole(name: str, unit: str, doc: str, required: bool = True) -> Column:
    return Column(name, int, unit, doc, required)


def number(name: str, unit: str, doc: str, required: bool = True) -> Column:
    return Column(name, float, unit, doc, required)


def flag(name: str, doc: str, required: bool = True) -> Column:
    return Column(name, bool, "", doc, required)


def percentiles(what: str) -> tuple[Column, ...]:
    names = ((20, "20th percentile"), (50, "median"), (80, "80th percentile"))
    return tuple(number(f"p{p}_ms", "ms", f"{word} of {what}", required=p == 50) for p, word in names)


RUN = text("run", "id of the run, the key into `runs`")
ARCH = text("arch", "architecture: a name of the table in `models`")
DEVICE = text("device", "kind first: `CPU: …` or `CUDA: …`; a modelled row names the modelled one")
