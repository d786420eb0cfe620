"""Answers the questions that neither paper does, from the tables of a results folder and the tokens that its runs kept.

    python -m evals.questions.ask --results results/cpu --out results/cpu/questions.csv --where results/cpu/where.csv

Whether a memory closes its gap to MoE-8 with tokens, what share of the sparse parameters should be memory, and where memory
helps. What has no runs is "not tested", and says what would train them.
"""

from __future__ import annotations

from pathlib import Path

from evals.claims.evidence.results import Results
from evals.questions import gap, split, where
from evals.records import options, schema
from evals.records.errors import run


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, required=True, help="CSV of answers to write, e.g. results/cpu/questions.csv")
    parser.add_argument("--where", type=Path, required=True, help="CSV of gains to write, e.g. results/cpu/where.csv")
    args = parser.parse_args(arguments)
    results = Results(args.results)
    answers = [answer for question in (gap, split, where) for answer in question.answers(results)]
    schema.write(args.out, "questions", [answer.row() for answer in answers])
    schema.write(args.where, "where", where.table(results))
    for answer in answers:
        found = [f"{name} {value:.4g}" for name, value in answer.row().items() if isinstance(value, float)]
        words = " ".join([answer.question, answer.arch, answer.quantity])
        print(f"{words}: {', '.join([*found, answer.state, *filter(None, [answer.reason])])}")


if __name__ == "__main__":
    run(main)
