"""Each anomaly beside the experiment that settles it: test loss of every arm of a diagnosis chain, and its change.

The arms are the chains of `arms.csv` whose names begin with `diagnosis_`; `diagnosis.yaml` holds the question, the base
arm and, once somebody has read the numbers, verdict and reading. A topic that has no reading is `open`, whatever its
verdict says. Deltas are arm minus base in nats per token, paired by seed (`evals.stats.difference`); one seed carries no
interval. Arms whose runs are missing or unfinished are left out, and said.

    python -m evals.claims.diagnosis --results results/cpu --out results/cpu/diagnosis.csv
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from evals import stats
from evals.records import options, schema
from evals.records.errors import UserError, run

TOPICS = Path(__file__).with_name("diagnosis.yaml")
PREFIX = "diagnosis_"
SETTLED = ("bug mended", "finding")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One entry of diagnosis.yaml; without `base` the chain's first arm is the base."""

    question: str = ""
    base: str | None = None
    verdict: str = "open"
    reading: str = ""

    @property
    def ruling(self) -> str:
        return self.verdict if self.reading else "open"


def load(path: Path = TOPICS) -> dict[str, Topic]:
    """Topics by chain; UserError names the topic and what is wrong with it."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        topics = {name: dict(entry) for name, entry in entries.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of topics: {error!r}") from None
    for name, entry in topics.items():
        if unknown := set(entry) - set(Topic.__dataclass_fields__):
            allowed = ", ".join(Topic.__dataclass_fields__)
            raise UserError(f"{path}: topic {name} has {', '.join(sorted(map(str, unknown)))}; allowed: {allowed}")
        if not all(isinstance(value, str) for value in entry.values()):
            raise UserError(f"{path}: topic {name} holds something that is not text; quote it")
        if entry.get("verdict", "open") not in (*SETTLED, "open"):
            raise UserError(f"{path}: topic {name} has verdict {entry['verdict']!r}, allowed: {', '.join(SETTLED)}, open")
    return {name: Topic(**entry) for name, entry in topics.items()}


def diagnose(arms: pd.DataFrame, runs: pd.DataFrame, topics: dict[str, Topic]) -> list[dict]:
    """Rows of the table `diagnosis`, chain by chain, its arms in order; UserError if a topic's base is no arm of its chain."""
    runs = runs[runs["test_loss"].notna()].drop_duplicates("run").set_index("run")
    rows = []
    for chain, here in arms[arms["chain"].str.startswith(PREFIX)].groupby("chain", sort=False):
        topic, here = topics.get(chain, Topic()), here.sort_values("order", kind="stable")
        base = topic.base or here["step"].iloc[0]
        if base not in set(here["step"]):
            raise UserError(f"the base {base!r} of {chain} is none of its arms: {', '.join(here['step'].unique())}")
        done = here[here["run"].isin(runs.index)]
        losses = {step: _by_seed(runs.loc[arm["run"]]) for step, arm in done.groupby("step")}
        for step, arm in done.groupby("step", sort=False):
            row = {"topic": chain, "question": topic.question, "arm": step, "label": arm["label"].iloc[0]}
            row |= {"n": len(losses[step]), "loss": sum(losses[step].values()) / len(losses[step])}
            row |= {"verdict": topic.ruling, "reading": topic.reading, "runs": " ".join(arm["run"].drop_duplicates())}
            if step != base and base in losses:
                change = stats.difference(losses[step], losses[base])
                row |= {"delta": change.value, "ci_low": change.low, "ci_high": change.high}
            rows.append(row)
    return rows


def _by_seed(runs: pd.DataFrame) -> dict[int, float]:
    return dict(zip(runs["seed"], runs["test_loss"], strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, e.g. results/cpu/diagnosis.csv")
    parser.add_argument("--topics", type=Path, default=TOPICS, help="another file of questions and readings")
    args = parser.parse_args(arguments)
    topics = load(args.topics)
    arms, runs = (schema.read(args.results / f"{table}.csv", table) for table in ("arms", "runs"))
    asked = arms[arms["chain"].str.startswith(PREFIX)]
    if asked.empty:
        raise UserError(
            f"{args.results / 'arms.csv'} has no chain that begins with {PREFIX}: train one first, such as "
            f"`snakemake ablation_{PREFIX}NAME`"
        )
    rows = diagnose(arms, runs, topics)
    schema.write(args.out, "diagnosis", rows)
    for row in rows:
        change = "" if pd.isna(row.get("delta")) else f", {row['delta']:+.3f} against the base"
        print(f"{row['topic']}: {row['label']}: {row['loss']:.3f} over {row['n']} seeds{change} ({row['verdict']})")
    written = {(row["topic"], row["arm"]) for row in rows}
    for chain, step in dict.fromkeys(zip(asked["chain"], asked["step"], strict=True)):
        if (chain, step) not in written:
            print(f"{chain}: {step} is left out: none of its runs has a test loss")


if __name__ == "__main__":
    run(main)
