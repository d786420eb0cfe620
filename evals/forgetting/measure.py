"""Teaches new facts to the trained runs of one architecture in every way, and writes what each way forgets.

    python -m evals.forgetting.measure --runs results/cpu/runs/pkm-d64-s0 results/cpu/runs/pkm-d64-s1 --out pkm.csv
    python -m evals.forgetting.measure --join pkm.csv dense.csv --out forgetting.csv

Each way's rate is searched for on the first run, with people of its own and on validation text, by one rule and with equally
many trials: the one that forgets least of the text where it knows `level` of the new facts. Then every run is taught by its
seed's people, and measured on test text. A run that knows too little of the corpus's own people first reads on
(`teach.revised`), once for all ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evals.forgetting import slots
from evals.forgetting.people import Reader, acquaintances, newcomers
from evals.forgetting.settings import STEP, TRIALS, WAYS, Settings, Way
from evals.forgetting.teach import Exam, Point, at_level, revised, taught, windows
from evals.forgetting.ways import pupil
from evals.load import open_run
from evals.records import options, schema
from evals.records.errors import UserError, run
from evals.records.runs import load_run
from evals.scores.lm import ModelLM
from kernels.allocator import keep_memory


class School:
    """A run that knows its old facts, and what its pupils are taught and asked.

    Raises:
        UserError: the corpus holds no biographies, or too few.
    """

    def __init__(self, folder: Path, settings: Settings, device: str):
        self.settings, self.config, opened = settings, load_run(folder), open_run(folder, device)
        if opened.bios is None:
            raise UserError(f"{opened.corpus} holds no biographies to forget: prepare it with --memory-tasks")
        self.bios, self.shards, self.model = opened.bios, opened.shards, opened.model
        self.old = acquaintances(self.bios, settings.people)
        self.reader = Reader(opened.tokenizer, min(self.shards.align, self.model.cfg.seq_len))
        self.lm = ModelLM(self.model, opened.tokenizer, device=device)
        rate = settings.old_rate * self.config.train.lr
        exam = self.exam(0, "validation")
        revised(self.model, self.old, exam, self.reader, self.shards.train, settings, rate, self.config.seed)

    def exam(self, draw: int, split: str) -> Exam:
        return Exam(self.lm, self.shards, newcomers(self.bios, self.settings.people, draw), self.old, split, self.settings)

    def ways(self) -> tuple[Way, ...]:
        return tuple(way for way in WAYS if way.name != "slots" or slots.tables(self.model))

    def lesson(self, exam: Exam, seed: int) -> Lesson:
        rows: dict[str, torch.Tensor] = {}
        if slots.tables(self.model):
            text = windows(self.shards.train, self.model.cfg.seq_len, 8, seed)
            read = [self.reader.batch(documents) for documents in self.reader.passes(exam.people, 4, seed)]
            rows = slots.chosen(self.model, read, islice(text, -(-self.settings.background // 8)), self.settings.slots)
        return Lesson(self, exam, exam.sit(self.model), rows, seed)


@dataclass
class Lesson:
    """New people for the pupils of a school; `rows` are those that the way `slots` may train."""

    school: School
    exam: Exam
    before: Point
    rows: dict[str, torch.Tensor]
    seed: int

    def curve(self, way: Way, rate: float, until: float) -> Iterator[dict[str, Any]]:
        """Rows of the table `forgetting`: the points of the curve, the last one of kind "level"."""
        school, config = self.school, self.school.config
        learner = pupil(school.model, way, rate, school.settings.rank, self.rows, self.seed)
        curve = taught(learner, self.before, self.exam, school.reader, school.settings, until, self.seed)
        level = at_level(curve, school.settings.level)
        about = {"run": config.run, "arch": config.arch, "size": config.size, "seed": config.seed, "way": way.name, "lr": rate}
        about |= {"optimizer": way.optimizer, "trained": learner.trained, "level": school.settings.level}
        for kind, point in (*(("curve", point) for point in curve), ("level", level or curve[-1])):
            change, error = self.exam.change(self.before, point)
            yield about | {
                "kind": kind,
                "reached": level is not None,
                "passes": point.passes,
                "tokens": point.tokens,
                "known": point.known,
                "old_known": point.old_known,
                "old_change": point.old_known - self.before.old_known,
                "old_loss_change": point.old_loss - self.before.old_loss,
                "text_loss": float(self.exam.weight_W @ point.text_W),
                "text_change": change,
                "text_stderr": error,
            }

    def trial(self, way: Way, rate: float) -> dict[str, Any]:
        """Where a way first knows the level at a rate, or its end."""
        return list(self.curve(way, rate, self.school.settings.level))[-1]


def cost(trial: dict[str, Any]) -> tuple[bool, float]:
    """By which trials are ranked: what is forgotten of the text at the level, or what is not known where it was not reached."""
    return (False, trial["text_change"]) if trial["reached"] else (True, -trial["known"])


def search(trial: Callable[[float], dict[str, Any]], start: float) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """`TRIALS` trials of learning rates, the best of them, and whether it is the lowest or highest tried.

    From `start` and a factor `STEP` to both sides on towards the better side until the best lies inside, then halfway to
    its better neighbour: the same rule and number for every way.
    """
    tried = {power: trial(start * STEP**power) for power in (0.0, 1.0, -1.0)}
    while len(tried) < TRIALS:
        best = min(tried, key=lambda power: cost(tried[power]))
        if best in (min(tried), max(tried)):
            power = best + (1.0 if best == max(tried) else -1.0)
        else:
            beside = max(power for power in tried if power < best), min(power for power in tried if power > best)
            power = (best + min(beside, key=lambda power: cost(tried[power]))) / 2
        tried[power] = trial(start * STEP**power)
    best = min(tried, key=lambda power: cost(tried[power]))
    return [tried[power] for power in sorted(tried)], tried[best], best in (min(tried), max(tried))


def tuned(school: School) -> Iterator[dict[str, Any]]:
    """Rows of kind "tuning": every way at each of its rates, where it first knows the level (or at its end)."""
    lesson = school.lesson(school.exam(0, "validation"), 0)
    for way in school.ways():
        trials, winner, edge = search(partial(lesson.trial, way), way.start)
        for trial in trials:
            yield trial | {"kind": "tuning", "chosen": trial is winner, "edge": edge}


def rows(folders: list[Path], settings: Settings, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows of the table `forgetting` of runs of one architecture and size, tuned on the first."""
    rates: dict[str, float] = {}
    for folder in folders:
        school = School(folder, settings, device)
        if not rates:
            for trial in tuned(school):
                rates |= {trial["way"]: trial["lr"]} if trial["chosen"] else {}
                yield trial
        seed = 1 + school.config.seed
        lesson = school.lesson(school.exam(seed, "test"), seed)
        for way in school.ways():
            yield from lesson.curve(way, rates[way.name], settings.stop)


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, nargs="+", help="folders of finished runs of one architecture and size")
    what.add_argument("--join", type=Path, nargs="+", help="tables of several architectures to put into one")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table forgetting")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    for setting in dataclasses.fields(Settings):
        flag, says = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
        parser.add_argument(flag, type=type(setting.default), default=setting.default, help=f"{says} (default: %(default)s)")
    args = vars(parser.parse_args(arguments))
    runs, join, out, device = (args.pop(name) for name in ("runs", "join", "out", "device"))
    if join:
        return schema.gather(join, "forgetting", out)
    torch.set_num_threads(1)
    keep_memory()
    found = []
    for row in rows(runs, Settings(**args), device):
        found.append(row)
        if row["kind"] != "curve":
            told = f"{row['run']} {row['way']:5s} {row['kind']:6s} rate {row['lr']:.2g} after {row['passes']:4.1f} passes"
            told += f": new {row['known']:.2f}, old {row['old_known']:.2f} ({row['old_change']:+.2f})"
            print(f"{told}, text {row['text_change']:+.3f}", flush=True)
    schema.write(out, "forgetting", found)


if __name__ == "__main__":
    run(main)
