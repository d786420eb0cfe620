"""The made-up folder of `synthetic_folder` with what a fair comparison adds: test losses, two-size tuning, placebos, anomalies.

Test losses differ from validation losses by a shift of their own, so that a number of the wrong split shows.
"""

import json
import math
import random
from pathlib import Path

import pandas as pd
import synthetic_folder
import synthetic_laws
import synthetic_offload
from synthetic import row
from synthetic_folder import ARCHS, run_row
from synthetic_forgetting import forgetting

from evals.claims import diagnosis
from evals.records import schema

SHIFT = 0.123
MEMORIES = ("pkm", "ultramem", "ultramem_v2")
RATES = (0.003, 0.0045, 0.006, 0.009, 0.012)
OPTIMA = {"dense": (0.006, 0.009), "moe2": (0.006, 0.006), "moe8": (0.006, 0.006), "pkm": (0.0045, 0.012)}  # by size
OPTIMA |= {"ultramem": (0.003, 0.003), "ultramem_v2": (0.006, 0.0045)}
PLACEBOS = {"one-row": 0.2, "frozen": 0.05, "shuffled": 0.0}  # added to the loss; PKM's frozen one is as good
TOPIC = diagnosis.Topic(question="Why does the softmax cost?", verdict="finding", reading="It costs 0.1 with three seeds.")


def fair_run(run: str, arch: str, seed: int, loss: float, **change) -> dict:
    """A run of size d64 by its test loss."""
    made = run_row(run, arch, "d64", seed, loss - SHIFT)
    return made | {"test_loss": loss, "test_bpb": loss / 2.8} | change


def folder(path: Path, seeds: int = 1) -> Path:
    """Every file of a results folder, under `path`; the same every time."""
    synthetic_folder.folder(path, seeds)
    tables = {name: schema.read(path / f"{name}.csv", name).astype(object).to_dict("records") for name in CHANGED}
    for run in tables["runs"]:
        run |= {"test_loss": run["val_loss"] + SHIFT, "test_bpb": (run["val_loss"] + SHIFT) / 2.8}
        run["value_optimizer"] = "rows" if run["arch"] in MEMORIES else ""
    _tuning(tables)
    _arms(tables, seeds)
    _rest(tables)
    arms, runs = (pd.DataFrame(tables[name]) for name in ("arms", "runs"))
    tables["diagnosis"] = diagnosis.diagnose(arms, runs, {"diagnosis_softmax": TOPIC})
    tables["coordinates"] = list(coordinates())
    tables |= {"questions": list(questions()), "where": list(gains()), "forgetting": list(forgetting())}
    tables |= synthetic_offload.tables()
    for name, rows in tables.items():
        schema.write(path / f"{name}.csv", name, rows)
    synthetic_laws.write(path)
    return path


CHANGED = ("runs", "train", "tuning", "arms", "matched_compute", "evals", "health")


def _tuning(tables: dict) -> None:
    old = {run["run"] for run in tables["tuning"]}
    tables["runs"], tables["tuning"] = [run for run in tables["runs"] if run["run"] not in old], []
    for arch in ARCHS:
        for place, (size, d_model) in enumerate((("d64", 64), ("d128", 128))):
            best = OPTIMA[arch][place]
            for lr in RATES:
                run, loss = f"tuning.{arch}.{lr}-{size}-s0", 4.5 - 0.2 * place + math.log10(lr / best) ** 2
                tables["runs"].append(run_row(run, arch, size, 0, loss, tokens=500_000, test_loss=None, test_bpb=None))
                setting = {"arch": arch, "size": size, "d_model": d_model, "setting": json.dumps({"lr": lr}), "lr": lr}
                setting |= {"run": run, "val_loss": loss, "seed": 0, "chosen": place == 0 and lr == best}
                edge = lr == best and best in (min(RATES), max(RATES))
                setting |= {"weight_decay": 0.1, "value_lr_multiplier": None}
                tables["tuning"].append(row("tuning", **setting, init="paper", edge=edge))


def _arms(tables: dict, seeds: int) -> None:
    def arm(chain: str, order: int, step: str, label: str, arch: str, loss: float, noise: random.Random) -> None:
        for seed in range(seeds):
            run = f"{chain}.{step}-d64-s{seed}"
            tables["runs"].append(fair_run(run, arch, seed, loss + 0.1 * seed + noise.gauss(0, 0.002)))
            given = {"chain": chain, "kind": "sweep", "step": step, "order": order, "label": label, "set": "{}", "run": run}
            tables["arms"].append(row("arms", **given))

    noise, order = random.Random(1), 0
    for arch in MEMORIES:
        arm("placebos", order, arch, arch, arch, 4.4, noise)
        for placebo, cost in PLACEBOS.items():
            order += 1
            cost = 0.0 if (arch, placebo) == ("pkm", "frozen") else cost
            arm("placebos", order, f"{arch}-{placebo}", f"{arch} {placebo}", arch, 4.4 + cost, noise)
        order += 1
    arm("diagnosis_softmax", 0, "with", "with softmax", "ultramem", 4.5, noise)
    arm("diagnosis_softmax", 1, "without", "without softmax", "ultramem", 4.6, noise)
    arm("diagnosis_use", 0, "base", "as it is", "pkm", 4.5, noise)


def _rest(tables: dict) -> None:
    for last in [point for point in tables["train"] if point["split"] == "validation" and point["step"] == 488]:
        tables["train"].append(last | {"split": "test", "loss": last["loss"] + SHIFT})
    for counts in tables["matched_compute"]:
        memory = counts["arch"] in MEMORIES
        counts |= {"head_flops": 5e5, "selection_flops": 0.036 * counts["flops_per_token"] if memory else 0.0}
    for point in [point for point in tables["health"] if point["metric"] == "share of values used"]:
        tables["health"] += [point | {"metric": "used_share"}, point | {"metric": "used_share_cap", "value": 0.625}]
    for score in tables["evals"]:
        score["primary"] = False
    for score in [score for score in tables["evals"] if score["task"] in ("arc_easy", "piqa") and score["metric"] == "acc"]:
        gold = {"metric": "gold_bpb", "value": 2.0 - score["value"], "higher_is_better": False, "chance": None, "primary": True}
        tables["evals"].append(score | gold)


def coordinates():
    """Activations that do not depend on the width under the scaled rule, but for the logits of PKM."""
    for arch in ARCHS:
        places = ["embedding", "attention.0", "attention.1", "ffn.0", "ffn.1", "residual", "logits"]
        for where in [*places, *["memory.0"] * (arch in MEMORIES)]:
            for rule in ("scaled", "flat"):
                for step in (0, 10):
                    slope = 0.8 if rule == "flat" and step else 0.5 if (arch, where, step) == ("pkm", "logits", 10) else 0.02
                    for width in (32, 64, 128):
                        value = (1 + 0.1 * ARCHS.index(arch)) * (width / 32) ** slope
                        made = {"arch": arch, "width_rule": rule, "d_model": width, "step": step, "where": where}
                        yield row("coordinates", **made, value=value)


def questions():
    """Rows of the table `questions`: UltraMem closes its gap, UltraMemV2's is undecided, half of the parameters are best."""
    told = {"n": 3, "state": "answered", "runs": "moe8-d64-s0 ultramem-d64-s0"}

    def answer(question, arch, quantity, value, half, **more):
        given = {"question": question, "arch": arch, "quantity": quantity, "value": value, "unit": "nats/token"}
        return row("questions", **(told | given | {"ci_low": value - half, "ci_high": value + half} | more))

    for arch, slope, half in (("ultramem", -0.05, 0.01), ("ultramem_v2", -0.02, 0.04)):
        undecided = {"state": "underpowered", "n_needed": 14} if half > -slope else {}
        yield from (answer("gap", arch, "gap", 0.1 + slope * place, half, at=1e6 * 4**place) for place in range(3))
        yield answer("gap", arch, "slope", slope, half, reason="a straight line fits (p = 0.4)", **undecided)
    yield answer("gap", "ultramem", "crossing", 4e7, 0, ci_low=2e7, ci_high=None, unit="tokens")
    yield answer("gap", "ultramem_v2", "factor of tokens", 37.0, 0, unit="times", ci_low=None, ci_high=None)
    yield from (answer("split", "hybrid", "loss against the first", -0.1, 0.02, at=at) for at in (0.5, 1.0))
    yield answer("split", "hybrid", "best share", 0.5, 0.25, unit="fraction")
    yield answer("split", "hybrid", "best against experts alone", -0.1, 0.03, at=0.0)
    yield answer("split", "hybrid", "best against memory alone", -0.01, 0.03, at=1.0, state="underpowered", n_needed=9)
    for by, change in (("reads", 0.2), ("reads at equal frequency", 0.05), ("frequency", -0.1)):
        parts = {"first": 0.1, "last": 0.1 + change, "last minus first": change}
        yield from (answer("where", "ultramem", f"{name} fifth by {by}", value, 0.02) for name, value in parts.items())


def gains():
    """Rows of the table `where`."""
    for by in ("frequency", "reads", "reads at equal frequency"):
        for fifth in range(1, 6):
            given = {"arch": "ultramem", "size": "d64", "d_model": 64, "tokens": 2_000_000, "by": by, "bin": fifth, "n": 3}
            given |= {"targets": 3000, "gain": 0.04 * fifth, "ci_low": 0.04 * fifth - 0.01, "ci_high": 0.04 * fifth + 0.01}
            yield row("where", **given, runs="ultramem-d64-s0 dense-d64-s0")
