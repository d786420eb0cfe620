"""Rewrites the tables of columns in a file: python -m evals.records.schema results/README.md"""

import sys
from pathlib import Path

from evals.records.errors import UserError, run
from evals.records.schema import TABLES


def markdown() -> str:
    """Every column of every table, for results/README.md."""
    parts = []
    for table, schema in TABLES.items():
        parts += [f"### {table}.csv", "", "| column | type | unit | empty? | meaning |", "|---|---|---|---|---|"]
        for column in schema:
            words = f": {', '.join(f'`{word}`' for word in column.choices)}" if column.choices else ""
            empty = "no" if column.required else "may be"
            parts.append(f"| `{column.name}` | {column.dtype.__name__} | {column.unit} | {empty} | {column.doc}{words} |")
        parts.append("")
    return "\n".join(parts)


MARK = "<!-- columns: written by `python -m evals.records.schema results/README.md` -->\n"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        raise UserError("usage: python -m evals.records.schema results/README.md")
    path = Path(arguments[0])
    try:
        head, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not mark:
        raise UserError(f"{path} does not hold the line {MARK.strip()!r} that the tables follow")
    path.write_text(head + MARK + "\n" + markdown(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
