"""Rows of the table `evals` from scored items: a sample is an item with its metrics, under lm-eval's names."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from evals.scores.items import stderr
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS

ACCURACIES = ("acc", "len_norm", "acc_norm")


def by_level(samples: list[dict]) -> dict[str, list[dict]]:
    """All samples under "", and those of each difficulty under its name."""
    groups = defaultdict(list, {"": samples})
    for sample in samples:
        if level := sample["doc"].get("level"):
            groups[level].append(sample)
    return groups


def statistics(lm: ModelLM, metric: str, samples: list[dict]) -> dict:
    """Mean over the items, its standard error, and what a blind guess scores."""
    values = np.array([sample[metric] for sample in samples], dtype=float)
    clusters = [sample["doc"].get("item", number) for number, sample in enumerate(samples)]
    return {
        "metric": metric,
        "n": len(values),
        "value": float(values.mean()),
        "stderr": stderr(values, clusters),
        "chance": chance(lm, metric, samples),
    }


def chance(lm: ModelLM, metric: str, samples: list[dict]) -> float | None:
    """What a model that is uniform over choices or over tokens, or a memory task's best rule without memory, would score."""
    if metric == "bits_known":
        return 0.0
    if metric == "gold_bpb":
        bits = math.log2(lm.tokenizer.get_vocab_size())
        return float(np.mean([bits * len(lm.encode_pair(*pair)[1]) / _n_bytes(pair) for pair in map(_gold, samples)]))
    if metric in ACCURACIES and "chance" in samples[0]["doc"]:
        return float(np.mean([sample["doc"]["chance"] for sample in samples]))
    if metric in ACCURACIES and len(samples[0]["resps"]) > 1:
        return float(np.mean([1 / len(sample["resps"]) for sample in samples]))
    return 0.0 if metric == "acc" else None


def _gold(sample: dict) -> tuple[str, str]:
    """The context and the continuation whose loss is `gold_bpb`."""
    return sample["arguments"][sample["doc"].get("gold", 0)]


def _n_bytes(pair: tuple[str, str]) -> int:
    return len(pair[1].encode())


def loss_per_token(lm: ModelLM, name: str, samples: list[dict]) -> dict:
    """Mean over items of the right answer's loss per token, in nats; a uniform model scores ln V."""
    values = np.array([-s["resps"][0][0][0] / len(lm.encode_pair(*_gold(s))[1]) for s in samples])
    return {
        "task": name,
        "metric": "loss_per_token",
        "n_shot": 0,
        "n": len(values),
        "value": float(values.mean()),
        "stderr": stderr(values, list(range(len(values)))),
        "chance": math.log(lm.tokenizer.get_vocab_size()),
        "higher_is_better": False,
        "primary": False,
    }


def bits_per_parameter(lm: ModelLM, rows: list[dict], bios: BioS) -> list[dict]:
    """Knowledge of the trained people over the parameters that hold it (Allen-Zhu & Li 2024, without the names' bits).

    An attribute of which less than nothing is known counts as nothing; the standard errors of the attributes, which are
    asked of different samples of people, add in squares.
    """
    known = [row for row in rows if row["task"].startswith("bios/") and row["metric"] == "bits_known"]
    if not known:
        return []
    counted = [row for row in known if row["value"] > 0]
    bits = sum(row["value"] for row in counted)
    spread = math.hypot(*(row["stderr"] or 0.0 for row in counted))
    cost = lm.model.cfg.cost().without("embedding")
    made = [("bits_per_person", 1.0)]
    made += [("bits_per_parameter", bios.n_people / cost.params)]
    made += [("bits_per_active_parameter", bios.n_people / cost.active_params)]
    shared = {"task": "bios", "n_shot": 0, "n": sum(row["n"] for row in known), "chance": 0.0, "higher_is_better": True}
    shared["primary"] = False
    return [{"metric": name, "value": bits * scale, "stderr": spread * scale} | shared for name, scale in made]
