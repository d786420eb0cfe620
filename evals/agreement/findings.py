"""One comparison of two results folders, and what counts as equal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

TIGHT = 1e-3
FINAL = ("test_loss", "val_loss")
STATUSES = ("differ", "undecided", "one side", "note", "agree")


@dataclass(frozen=True)
class Finding:
    """One comparison. `status` is agree, differ, undecided (neither is shown), one side (a row, or with an empty key a table,
    that the other folder lacks), or note (told, but not counted)."""

    table: str
    key: str
    column: str
    a: str
    b: str
    rule: str
    status: str


def one_side(table: str, key: str, in_a: bool) -> Finding:
    """A row, or with an empty key a table, that one folder lacks."""
    return Finding(table, key, "", *(("there", "missing") if in_a else ("missing", "there")), "same rows", "one side")


def finding(table: str, key: str, column: str, a: Any, b: Any, rule: str, agree: bool) -> Finding:
    """One comparison of two cells."""
    return Finding(table, key, column, text(a), text(b), rule, "agree" if agree else "differ")


def equal(a: Any, b: Any) -> bool:
    """Equal, or both missing."""
    return bool((pd.isna(a) and pd.isna(b)) or (not pd.isna(a) and not pd.isna(b) and a == b))


def near(a: Any, b: Any, tolerance: float = TIGHT) -> bool:
    """Equal to a relative tolerance, or both missing."""
    return equal(a, b) or (not pd.isna(a) and not pd.isna(b) and math.isclose(a, b, rel_tol=tolerance))


def text(value: Any) -> str:
    """A cell as it is told, "" if missing; the parts of a key in a row."""
    if isinstance(value, tuple):
        return " ".join(part for part in value if part)
    return "" if pd.isna(value) else str(value)
