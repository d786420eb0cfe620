"""Joins the CSVs of finished runs into those of a preset: python -m workflows.gather results/cpu

Only runs whose config and whose source are the grid's are taken, or a source that is known to give the same losses; a run
trained by an older one is left out and named.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path

from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.store import STORE, first_source, row_of, same_sources
from evals.stats.seeds import TIE

PER_RUN = ("runs", "train", "health")


def read_grid(results: Path) -> dict:
    path = results / "grid.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; run snakemake, or python -m workflows.resolve, for this preset first")
    return json.loads(path.read_text())


def run_row(results: Path, run: str) -> dict[str, str]:
    """A run's row of `runs`, cells as they stand in the file."""
    return row_of(results / "runs" / run)


def finished_runs(results: Path, grid: dict) -> list[str]:
    """Runs of the grid that are complete and were made by its config and its code, in the grid's order."""
    taken, same = [], same_sources(STORE)
    for run, entry in grid["runs"].items():
        folder = results / "runs" / run
        if not all((folder / f"{table}.csv").exists() for table in PER_RUN):
            continue
        row = run_row(results, run)
        if row["config_sha"] != entry["sha"]:
            print(f"left out {run}: it was trained with config {row['config_sha']}, the preset now says {entry['sha']}")
        elif first_source(row["source_sha"], same) != first_source(entry["source"], same):
            print(f"left out {run}: it was trained by source {row['source_sha']}, the code is now {entry['source']}")
        else:
            taken.append(run)
    return taken


def cost_rows(grid: dict, runs: list[str], results: Path) -> list[dict]:
    """What each target cost: the grid and every chain that is complete; runs that chains share count in each."""
    targets = {"grid": grid["grid"]}
    targets["tuning"] = [setting["run"] for setting in grid["tuning"]]
    for arm in grid["arms"]:
        targets.setdefault(f"ablation_{arm['chain']}", []).append(arm["run"])
    rows = []
    for target, members in targets.items():
        for run in dict.fromkeys(members):
            if run in runs:
                row = run_row(results, run)
                tokens, flops = int(row["tokens"]), float(row["flops_per_token"])
                rows.append(
                    {
                        "target": target,
                        "run": run,
                        "core_seconds": float(row["core_seconds"]),
                        "tokens": tokens,
                        "flops": 3 * flops * tokens,
                    }
                )
    return rows


def stage_rows(results: Path) -> list[dict]:
    """Processor time of the stages beside training, from snakemake's benchmark files; a stage too short for one has none."""
    rows = []
    for path in sorted((results / "benchmarks").glob("*.tsv")):
        stage, _, run = path.stem.partition(".")
        with open(path, newline="") as file:
            seconds = next(csv.DictReader(file, delimiter="\t"))["cpu_time"]
        if seconds not in ("NA", "-"):
            rows.append({"target": stage, "run": run or None, "core_seconds": float(seconds)})
    return rows


def tuning_rows(grid: dict, runs: list[str], results: Path) -> list[dict]:
    """Every setting that was tried, with its loss; one of each architecture at the size that is tuned is chosen.

    Of the settings within `TIE` of the lowest loss, those with the lowest rate, and of these the best: where one seed cannot
    tell, the lower rate is the safer one at other widths and budgets. `edge` marks a chosen setting (at other sizes the best
    one) with a knob that was turned and has nothing tried beyond it: the sweep should have gone on.
    """
    rows = []
    for setting in grid["tuning"]:
        if setting["run"] in runs:
            rows.append(setting | {"val_loss": float(run_row(results, setting["run"])["val_loss"])})
    if not rows:
        return []
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["arch"], row["size"]), []).append(row)
    for (_, size), group in groups.items():
        chooses = size == rows[0]["size"]
        best = min(group, key=lambda row: row["val_loss"])
        if chooses:
            equals = [row for row in group if row["val_loss"] <= best["val_loss"] + TIE]
            best = min(equals, key=lambda row: (row["lr"], row["val_loss"]))
        knobs = [row.pop("knobs") for row in group]
        own = knobs[group.index(best)]
        tried = {knob: {values[knob] for values in knobs} for knob in own}
        for row in group:
            row["chosen"] = row is best and chooses
            row["edge"] = row is best and any(own[k] in (min(v), max(v)) for k, v in tried.items() if len(v) > 1)
    return rows


def arm_rows(arms: list[dict], results: Path) -> list[dict]:
    """Of every row of every chain the runs at its best rate, by mean validation loss over seeds; `tried` holds the others."""
    rates: dict[tuple[str, str], dict[float, list[float]]] = {}
    for arm in arms:
        loss = float(run_row(results, arm["run"])["val_loss"])
        rates.setdefault((arm["chain"], arm["step"]), {}).setdefault(arm["lr"], []).append(loss)
    rows = []
    for arm in arms:
        means = {lr: statistics.fmean(losses) for lr, losses in rates[arm["chain"], arm["step"]].items()}
        if arm["lr"] == min(means, key=means.get):
            tried = json.dumps({f"{lr:g}": round(mean, 5) for lr, mean in means.items()}) if len(means) > 1 else None
            rows.append(arm | {"tried": tried})
    return rows


def gather(results: Path, out: Path, chain: str | None = None) -> int:
    """Writes every table of `results` to `out`, of all finished runs or of one chain's; returns how many runs it took.

    A chain has its rows in `arms.csv` once all of them are trained.

    Raises:
        UserError: there is no grid, or no finished run.
    """
    grid = read_grid(results)
    arms = [arm for arm in grid["arms"] if chain in (None, arm["chain"])]
    runs = finished_runs(results, grid)
    if chain:
        wanted = {row["run"] for row in (grid["tuning"] if chain == "tuning" else arms)}
        runs = [run for run in runs if run in wanted]
    if not runs:
        raise UserError(f"{results}: no finished run to gather; train some first")
    out.mkdir(parents=True, exist_ok=True)
    for table in PER_RUN:
        schema.gather([results / "runs" / run / f"{table}.csv" for run in runs], table, out / f"{table}.csv")
    unfinished = {arm["chain"] for arm in arms if arm["run"] not in runs}
    finished = [arm for arm in arms if arm["chain"] not in unfinished]
    schema.write(out / "arms.csv", "arms", arm_rows(finished, results))
    if tuning := tuning_rows(grid, runs, results):
        schema.write(out / "tuning.csv", "tuning", tuning)
    schema.write(out / "matched_compute.csv", "matched_compute", grid["matched"])
    schema.write(out / "counting.csv", "counting", grid["counting"])
    if chain:
        schema.write(out / "cost.csv", "cost", cost_rows(grid, runs, results))
    written = [*PER_RUN, "arms", *(["tuning"] if tuning else []), "matched_compute", "counting"]
    written += ["cost"] if chain else []
    schema.seal(out, written)
    if (results / "data.json").exists() and out != results:
        shutil.copy(results / "data.json", out / "data.json")
    return len(runs)


def gather_table(results: Path, table: str, grid: dict) -> int:
    """Joins one more table of those finished runs that have it; returns how many do."""
    parts = [results / "runs" / run / f"{table}.csv" for run in finished_runs(results, grid)]
    parts = [part for part in parts if part.exists()]
    schema.gather(parts, table, results / f"{table}.csv")
    schema.seal(results, [table])
    return len(parts)


def gather_cost(results: Path, grid: dict) -> None:
    """What every finished run and every measured stage cost."""
    rows = cost_rows(grid, finished_runs(results, grid), results) + stage_rows(results)
    schema.write(results / "cost.csv", "cost", rows)
    schema.seal(results, ["cost"])


def print_matched(rows: list[dict]) -> None:
    """The matched-compute table in short: what each model spends against the mean of its size, and on retrieval."""
    for row in rows:
        off = f"{row['flops_mismatch']:+.2%} FLOPs" + (
            f", {row['params_mismatch']:+.2%} parameters" if row["params_mismatch"] is not None else ""
        )
        print(f"  {row['size']:5s} {row['arch']:14s} {off}, {row['memory_share']:.1%} of the slot's compute on retrieval")


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("results", type=Path, help="results/{preset}")
    parser.add_argument("--chain", help="only the runs of this ablation chain, or of `tuning`")
    parser.add_argument("--out", type=Path, help="folder of the joined CSVs (default: the results folder)")
    parser.add_argument("--table", choices=["evals", "cost"], help="only this table")
    args = parser.parse_args()
    grid = read_grid(args.results)
    if args.table == "cost":
        return gather_cost(args.results, grid)
    if args.table:
        print(f"{args.table} of {gather_table(args.results, args.table, grid)} runs")
        return
    count = gather(args.results, args.out or args.results, args.chain)
    print_matched(grid["matched"])
    print(f"gathered {count} runs into {args.out or args.results}")


if __name__ == "__main__":
    errors.run(main)
