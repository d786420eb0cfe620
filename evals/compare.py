"""Do two results folders agree? Reads their CSVs, prints what differs and one sentence; exit status 1 where they do not.

    python -m evals.compare results/cpu results/reference --out results/cpu/compare
    python -m evals.compare --rerun 3 results/reference
    python -m evals.compare --rerun 1 --vouch "gradients have one home" results/reference

Rows are matched by their key. What both folders hold is compared, each column by the rule of its kind:

    exact        counts, bytes, hashes of config and data, the plan of an ablation: equal
    tight        losses and health, same hardware and build (device, threads, precision, torch): TIGHT relative
    equivalence  final losses, other hardware or build: the 95 % interval of the difference, paired by run, lies inside
                 +-MARGIN; outside it they differ, across its edge they are undecided
    counted      what trained models ask for, what a GPU's counter says, the size of activations: COUNTED relative
    items        scores, same hardware: TIGHT or one item. Other hardware: equivalence of each task's score, over runs
    ratio        times: never milliseconds, but each architecture's time over that of the yardstick measured beside it
                 (the dense model, or the first architecture), and only on one device. A single time beyond a factor of
                 RATIO, times what p20 to p80 of either side spans, is noise and a note; a curve whose median over at
                 least POINTS batches and contexts moved by more than RATIO differs

Rows and tables that one folder alone holds are listed as such and change nothing: other targets were asked for. Wall
times, versions and dates are not compared; neither are verdicts, which follow from what is compared, nor the speed of a
machine, which is not a result, but a changed verdict and a speed beyond RATIO are listed as notes.

The last line printed is one sentence, `reproduced: ...` or `not reproduced: ...`: nothing differs, and the loss of every
shared model was shown to agree. A score that its items cannot decide is counted in the sentence and decides nothing.

With `--rerun N` one folder is enough, results/reference if none is named: N of its committed runs, drawn at random, are trained
again here, and each agrees to the last digit, or on another build within what a seed does, or not (`evals.agreement.rerun`).
With `--vouch REASON` it is N of each source that is not the code's; where all are equal, its runs stand for the code's.

Exit status: 0 reproduced, 1 not, 2 a folder that cannot be used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from evals.agreement.equivalence import MARGIN, equivalent_losses, equivalent_scores
from evals.agreement.findings import FINAL, TIGHT, Finding, equal, finding, near, one_side, text
from evals.agreement.rerun import rerun, vouch
from evals.agreement.told import page, reproduced, summary
from evals.claims.evidence.scores import SCORES
from evals.records import options, schema
from evals.records.errors import UserError, run

COUNTED = 0.1
RATIO = 1.5
POINTS = 3
HARDWARE = ("device", "threads", "precision", "torch")

KEYS = {
    "runs": ["run"],
    "train": ["run", "step", "split", "source"],
    "matched_compute": ["size", "arch", "role"],
    "counting": ["size", "arch", "part"],
    "arms": ["chain", "step", "run"],
    "health": ["run", "step", "layer", "metric"],
    "tuning": ["arch", "setting", "run"],
    "evals": ["run", "task", "metric", "n_shot"],
    "access": ["run", "arch", "size", "part", "kv", "context", "dtype", "layer", "batch", "routing", "kind", "device"],
    "latency": [
        "run",
        "arch",
        "size",
        "phase",
        "part",
        "variant",
        "batch",
        "context",
        "kv",
        "sparse_ratio",
        "dtype",
        "threads",
        "kind",
    ],
    "machine": ["device", "dtype", "threads", "quantity", "rows"],
    "statements": ["device", "id", "statement"],
    "claims": ["id"],
    "diagnosis": ["topic", "arm"],
    "coordinates": ["arch", "width_rule", "d_model", "step", "where"],
}
# What follows from other tables, times and predictions of one machine, and which commit made what.
UNCOMPARED = ("fits", "ranking", "equivalents", "questions", "where", "speed", "step", "growth", "cost", "plan", "provenance")
UNCOMPARED += ("offload", "offload_disk", "offload_hits", "offload_loss", "forgetting", "scale", "same_source")
UNCOMPARED += ("gpu_checks", "gpu_speed", "gpu_decode", "gpu_grid")
# Modelled rows of a table that its stage writes beside the measured ones.
BESIDE = {"latency": "latency_modelled"}
# A column that the schema does not have (yet) is passed over.
EXACT = {
    "runs": "arch size seed d_model n_layers params active_params sparse_params flops_per_token tokens steps precision"
    " value_optimizer status config_sha data_sha seed_data seed_init seed_rest",
    "matched_compute": "d_ff d_expert n_experts top_k n_keys d_key d_value params active_params sparse_params"
    " flops_per_token flops_mismatch params_mismatch memory_share bytes_b1 bytes_b64 trained",
    "counting": "params active_params flops",
    "arms": "kind order label set paper_train_loss paper_val_loss paper_delta_val",
    "evals": "n chance higher_is_better",
    "access": "rows_read rows_unique bytes",
    "latency": "bytes_declared",
    "tuning": "size d_model seed lr value_lr_multiplier init chosen",
    "diagnosis": "question label n runs",
}
ROUGHLY = {"latency": ["bytes_counted"], "coordinates": ["value"]}
LOSSES = {
    "runs": ["train_loss", *FINAL, "val_bpb", "test_bpb"],
    "train": ["loss", "aux_loss"],
    "health": ["value"],
    "tuning": ["val_loss"],
}


def compare(folder_a: Path, folder_b: Path, margin: float = MARGIN) -> list[Finding]:
    """Every comparison of two results folders.

    Args:
        margin: nats/token within which the interval of a difference of losses has to lie, on other hardware.

    Raises:
        UserError: a folder cannot be used, or the margin is not positive.
    """
    if not 0 < margin < math.inf:
        raise UserError(f"--margin is {margin}: give nats per token above 0, such as {MARGIN}")
    a, b = (_read(folder) for folder in (folder_a, folder_b))
    same = _same_hardware(a["runs"], b["runs"])
    findings = []
    for table in (table for table in schema.TABLES if table in a or table in b):
        if table not in a or table not in b:
            findings.append(one_side(table, "", table in a))
            continue
        if table not in KEYS:
            findings.append(Finding(table, "", "", "there", "there", "no rule: name its key in evals/compare.py", "note"))
            continue
        rows_a, rows_b = (_keyed(tables[table], table) for tables in (a, b))
        findings += [one_side(table, text(key), key in rows_a) for key in sorted(rows_a.keys() ^ rows_b.keys())]
        shared = sorted(rows_a.keys() & rows_b.keys())
        for key in shared:
            findings += _row(table, key, rows_a[key], rows_b[key], same)
        pairs = [(rows_a[key], rows_b[key]) for key in shared]
        if table == "runs":
            findings += equivalent_losses([pair for pair in pairs if pair[0]["run"] not in same], margin)
        elif table == "evals":
            findings += equivalent_scores([pair for pair in pairs if pair[0]["run"] not in same])
        elif table == "latency" and pairs:
            findings += _ratios(*(pd.DataFrame(rows) for rows in zip(*pairs, strict=True)))
    return findings


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results: give two folders such as results/cpu")
    if not (folder / "runs.csv").exists():
        raise UserError(f"{folder} holds no runs.csv, so it is no results folder: give one such as results/cpu")
    found = {}
    for table in (table for table in schema.TABLES if table not in UNCOMPARED):
        paths = [folder / f"{name}.csv" for name in (table, BESIDE.get(table)) if name]
        if frames := [schema.read(path, table) for path in paths if path.exists()]:
            found[table] = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    if found["runs"].empty:
        raise UserError(f"{folder / 'runs.csv'} holds no run: train something first")
    for table, frame in found.items():
        if table not in KEYS:
            continue
        keys = frame[KEYS[table]].assign(machine=frame.device if table == "latency" else "")
        if keys.duplicated().any():
            row = text(tuple(map(text, keys[keys.duplicated()].iloc[0])))
            raise UserError(f"{folder / table}.csv has {row} twice: gather it again")
    return found


def _keyed(frame: pd.DataFrame, table: str) -> dict[tuple[str, ...], dict]:
    return {_key(row, table): row for row in frame.astype(object).to_dict("records")}


def _key(row: dict, table: str) -> tuple[str, ...]:
    """Measured times of two machines share a key (threads tell CPU from CUDA), modelled ones of two devices do not."""
    device = (row["device"],) if table == "latency" and row["kind"] == "modelled" else ()
    return tuple(text(row[name]) for name in KEYS[table]) + device


def _same_hardware(a: pd.DataFrame, b: pd.DataFrame) -> set[str]:
    """Runs that both folders made on equal hardware."""
    left, right = (frame.set_index("run")[list(HARDWARE)] for frame in (a, b))
    shared = left.index.intersection(right.index)
    return set(shared[(left.loc[shared] == right.loc[shared]).all(axis=1)])


def _row(table: str, key: tuple[str, ...], a: dict, b: dict, same: set[str]) -> Iterator[Finding]:
    name = text(key)
    by_formula = table != "access" or a["kind"].startswith("declared")
    for column in (column for column in EXACT.get(table, "").split() if column in a):
        if by_formula:
            yield finding(table, name, column, a[column], b[column], "exact", equal(a[column], b[column]))
        else:
            yield finding(table, name, column, a[column], b[column], "counted", near(a[column], b[column], COUNTED))
    for column in ROUGHLY.get(table, ()):
        yield finding(table, name, column, a[column], b[column], "counted", near(a[column], b[column], COUNTED))
    if table == "machine" and not near(a["value"], b["value"], 1 - 1 / RATIO):
        yield Finding(table, name, "value", text(a["value"]), text(b["value"]), "speed of the machine", "note")
    if a.get("run") in same:
        for column in (column for column in LOSSES.get(table, ()) if column in a):
            yield finding(table, name, column, a[column], b[column], "tight", near(a[column], b[column]))
        if table == "evals":
            yield _score(name, a, b)
    if "verdict" in a and a["verdict"] != b["verdict"]:
        yield Finding(table, name, "verdict", a["verdict"], b["verdict"], "note", "note")


def _score(name: str, a: dict, b: dict) -> Finding:
    """An item whose two best answers tie to rounding may fall either way; a mean of losses has no such items."""
    x, y = a["value"], b["value"]
    allowed = max(TIGHT * abs(x), 1.5 / max(a["n"], 1) if a["metric"] in SCORES else 0.0)
    return finding("evals", name, "value", x, y, f"items: {allowed:.2g}", equal(x, y) or abs(x - y) <= allowed)


def _ratios(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[Finding]:
    """Times over the yardstick's at the same point; on another device a note, and modelled times exactly."""
    left, right = (_over_yardstick(frame) for frame in (a, b))
    column, curves = "p50_ms over yardstick", defaultdict(list)
    for key in sorted(left.keys() & right.keys()):
        (x, device_x, kind, spread_x), (y, device_y, _, spread_y) = left[key], right[key]
        far = max(x, y) / min(x, y) if min(x, y) > 0 else math.inf
        allowed = RATIO * max(spread_x, spread_y)
        if kind == "modelled":
            yield finding("latency", text(key), column, x, y, "tight", near(x, y))
        elif device_x != device_y:
            if far > RATIO:
                yield Finding("latency", text(key), column, text(x), text(y), "ratio, other device", "note")
        else:
            status = "agree" if far <= allowed else "note"
            yield Finding("latency", text(key), column, text(x), text(y), f"one time, ratio: {allowed:.3g}", status)
            curve = [part for name, part in zip(KEYS["latency"], key, strict=True) if name not in ("batch", "context")]
            curves[tuple(curve)].append((x, y))
    for curve, points in curves.items():
        if len(points) >= POINTS:
            moved = float(np.median([x / y for x, y in points]))
            rule = f"ratio: {RATIO}, median over {len(points)} points"
            agree = 1 / RATIO <= moved <= RATIO
            yield finding("latency", text(curve), f"{column}, the first's over the second's", moved, 1.0, rule, agree)


def _over_yardstick(frame: pd.DataFrame) -> dict[tuple[str, ...], tuple[float, str, str, float]]:
    """Of every other row at a yardstick's point: its ratio, device, kind, and the factor that p20 to p80 of both span."""
    point = ["size", "phase", "part", "batch", "context", "kv", "dtype", "threads", "kind", "device"]
    times = {}
    for _, group in frame.groupby(point, dropna=False, sort=False):
        plain = group[group.variant == "plain"] if (group.variant == "plain").any() else group
        dense = plain[plain.arch == "dense"]
        yardstick = (dense if len(dense) else plain.sort_values(["arch", "sparse_ratio"])).iloc[0]
        for row in group.drop(index=yardstick.name).to_dict("records"):
            spread = math.prod(one["p80_ms"] / one["p20_ms"] for one in (row, yardstick))
            ratio = row["p50_ms"] / yardstick["p50_ms"]
            times[_key(row, "latency")] = (ratio, row["device"], row["kind"], 1.0 if math.isnan(spread) else spread)
    return times


def main(arguments: list[str] | None = None) -> int:
    parser = options.parser(__doc__)
    parser.add_argument("a", type=Path, metavar="A", nargs="?", help="a results folder, such as results/cpu")
    parser.add_argument("b", type=Path, metavar="B", nargs="?", help="another, such as results/reference")
    parser.add_argument("--out", type=Path, help="folder for compare.csv and compare.html")
    parser.add_argument("--margin", type=float, default=MARGIN, help="nats/token, other hardware (default: %(default)s)")
    parser.add_argument("--rerun", type=int, metavar="N", help="train N committed runs of A (results/reference) again")
    parser.add_argument("--seed", type=int, help="by which --rerun draws them; printed (default: another each time)")
    parser.add_argument("--vouch", metavar="REASON", help="with --rerun: what has changed in the code, its losses aside")
    args = parser.parse_args(arguments)
    if args.rerun is not None:
        if args.b:
            raise UserError("--rerun takes one results folder, whose committed runs it trains again")
        folder = args.a or Path("results/reference")
        return rerun(folder, args.rerun, args.seed) if args.vouch is None else vouch(folder, args.rerun, args.vouch)
    if args.vouch is not None:
        raise UserError("--vouch goes with --rerun N, the runs of each source that are trained again")
    if not args.b:
        raise UserError("two results folders are compared: give another, such as results/reference")
    findings, names = compare(args.a, args.b, args.margin), (str(args.a), str(args.b))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame([asdict(f) for f in findings], columns=[f.name for f in fields(Finding)])
        table.to_csv(args.out / "compare.csv", index=False)
        (args.out / "compare.html").write_text(page(findings, names), encoding="utf-8")
    print(summary(findings, names))
    return int(not reproduced(findings))


if __name__ == "__main__":
    run(main)
