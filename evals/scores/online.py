"""lm-eval's own versions of tasks, which need the internet."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from evals.records.errors import UserError
from evals.scores.lm import ModelLM
from evals.scores.statistics import ACCURACIES, chance

ONLINE = {
    "papers": (
        *("arc_challenge", "arc_easy", "commonsense_qa", "hellaswag", "mmlu_continuation", "openbookqa", "piqa", "sciq"),
        *("winogrande", "social_iqa", "boolq", "lambada_openai", "triviaqa", "nq_open", "drop", "agieval_en"),
        *("bbh_cot_fewshot", "gpqa_main_zeroshot"),
    )
}


def evaluate_online(lm: ModelLM, tasks: Iterable[str], limit: int | None = None) -> list[dict]:
    """Rows of lm-eval's own tasks, by its names and with its metrics. `tasks` are such names, or keys of `ONLINE`.

    Raises:
        UserError: a task is unknown or its data cannot be fetched.
    """
    from lm_eval.evaluator import evaluate as run_tasks
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    loaded: dict[str, dict] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in [name for task in tasks for name in ONLINE.get(task, (task,))]:
        try:
            for kind, found in manager.load([name]).items():
                loaded[kind].update(found)
        except Exception as error:  # the hub's clients and the file formats each have their own tree of errors
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--online could not load task {name!r} ({reason}): it needs the internet and lm-eval's name of a task; "
                "without --online the tasks in evals/scores/tasks run from local files"
            ) from error
    results = run_tasks(lm, loaded, limit=limit, bootstrap_iters=1000, log_samples=True)
    rows = []
    for name, scores in results["results"].items():
        samples = results["samples"].get(name, [])
        for key, value in scores.items():
            metric, _, which = key.partition(",")
            if not which or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = scores.get(f"{metric}_stderr,{which}")
            better = results["higher_is_better"].get(name, {}).get(metric)
            n = results["n-samples"].get(name, {}).get("effective") or scores.get("sample_count", {}).get(metric, 0)
            rows.append(
                {
                    "task": name,
                    "metric": metric if which == "none" else f"{metric} ({which})",
                    "n_shot": results["n-shot"].get(name, 0),
                    "n": int(n),
                    "value": float(value),
                    "stderr": error if isinstance(error, float) else None,  # lm-eval writes 'N/A'
                    "chance": chance(lm, metric, samples) if metric in ACCURACIES and samples else None,
                    "higher_is_better": True if better is None else better,
                    "primary": False,
                }
            )
    return rows
