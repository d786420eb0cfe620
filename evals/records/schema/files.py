"""Writing, reading and joining the tables: a file fits its table or is refused in a sentence."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from evals.records.errors import UserError
from evals.records.files import whole
from evals.records.schema.asked import TABLES as ASKED
from evals.records.schema.column import Column
from evals.records.schema.derived import TABLES as DERIVED
from evals.records.schema.device import TABLES as DEVICES
from evals.records.schema.measured import TABLES as MEASURED
from evals.records.schema.offload import TABLES as OFFLOAD
from evals.records.schema.trained import TABLES as TRAINED

TABLES: dict[str, tuple[Column, ...]] = TRAINED | MEASURED | DERIVED | ASKED | OFFLOAD | DEVICES
ROW_NAMES = ("", "Unnamed: 0")  # the header of R's row names and of pandas' index, and of the latter read back


def columns(table: str) -> tuple[Column, ...]:
    """The columns of a table; ValueError names the tables that exist."""
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: evals/records/schema has {', '.join(TABLES)}")
    return TABLES[table]


def write(path: str | Path, table: str, rows: Iterable[Mapping] | pd.DataFrame) -> None:
    """Check `rows` (mappings, or a frame) against the table, then write them so that `path` is whole or untouched.

    A column left out of a row is a missing value. ValueError names the row and column that do not fit.
    """
    schema = columns(table)
    names = {column.name for column in schema}
    if isinstance(rows, pd.DataFrame):
        rows = rows.astype(object).to_dict("records")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in schema)
    for number, row in enumerate(rows, 1):
        if unknown := set(row) - names:
            raise ValueError(f"row {number} for {path} has {_names(unknown)}, which table {table!r} does not have")
        try:
            writer.writerow([column.format(row.get(column.name)) for column in schema])
        except ValueError as error:
            raise ValueError(f"row {number} for {path} does not fit table {table!r}: {error}") from None
    write_whole(Path(path), text.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def read(path: str | Path, table: str) -> pd.DataFrame:
    """The table as a frame: int64 (Int64 where cells are missing), float64, bool (boolean), and str ("" if missing).

    What pandas, R and spreadsheets make of a file of `write` is read as the file itself: their words for booleans and
    missing values, whole numbers written as floats, quotes, a byte order mark, CRLF, blank lines, row names in front, and
    columns in another order (the frame has them in the schema's). What such a program changed is beyond repair: R writes
    15 digits, and text that looks like a number (007) may come back as one.

    UserError, in one sentence, for a file that is missing, cut short, of another table, or holds a cell that does not
    parse. A file cut exactly at the end of a line cannot be told from a shorter one.
    """
    schema = columns(table)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes table {table!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a CSV of table {table!r}: {error}") from None
    if not text.endswith("\n"):
        raise UserError(f"{path} is cut short: its last line has no end; delete it and run its stage again")
    lines = csv.reader(io.StringIO(text), strict=True)
    names = [column.name for column in schema]
    cells: dict[str, list] = {name: [] for name in names}
    try:
        header = next(lines)
        first = int(header[:1] != [] and header[0] in ROW_NAMES)
        if sorted(header[first:]) != sorted(names):
            raise UserError(f"{path} is not a CSV of table {table!r}: {_difference(header[first:], names)}")
        order = [schema[names.index(name)] for name in header[first:]]
        for row in filter(None, lines):
            if len(row) != len(header):
                raise UserError(f"{path} line {lines.line_num} has {len(row)} cells, its header has {len(header)}")
            for column, cell in zip(order, row[first:], strict=True):
                cells[column.name].append(column.parse(cell))
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num} is not CSV: {error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} line {lines.line_num} does not fit table {table!r}: {error}") from None
    return pd.DataFrame({column.name: _series(column, cells[column.name]) for column in schema})


def gather(paths: Iterable[str | Path], table: str, out: str | Path) -> None:
    """Join files of one table into `out`, in the order given; errors as `read`."""
    write(out, table, [row for path in paths for row in read(path, table).astype(object).to_dict("records")])


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _difference(header: list[str], names: list[str]) -> str:
    missing, unknown = set(names) - set(header), set(header) - set(names)
    words = [f"it lacks {_names(missing)}"] * bool(missing) + [f"it has {_names(unknown)}"] * bool(unknown)
    return " and ".join(words) or "a column is repeated"


def _series(column: Column, values: list) -> pd.Series:
    if column.dtype is str:
        return pd.Series([value or "" for value in values], dtype=str)
    missing = any(value is None for value in values)
    dtype = {int: ("int64", "Int64"), float: ("float64", "float64"), bool: ("bool", "boolean")}[column.dtype][missing]
    return pd.Series(values, dtype=dtype)
