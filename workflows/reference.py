"""Where the tables of results/reference come from, and whether they still stand.

    python -m workflows.reference results/cpu                 copies the tables of a finished results folder there
    python -m workflows.reference --stands "REASON" TABLE ...  says why an older measurement stands (after a refactoring)
    python -m workflows.reference results/cpu --runs          copies its finished runs to results/reference/runs
    python -m workflows.reference                             lists what has changed since it was measured

`results/reference/provenance.csv` holds for each table the commit and the fingerprint of the code that made it, and the
file's own hash. A table whose producer has changed since wants a new measurement or a reason, and a reason holds for the
change that it was given for: the next one wants another. A table that is known to be stale may stand there as such, with
a reason and no reviewed fingerprint.

`runs/{run}` holds the files of single runs (`evals.records.store`), from which any machine goes on (`workflows.adopt`). They
are committed in batches while others train, each with its own commit, source and times in its runs.csv.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd

from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.provenance import ROOT, WRITERS, git, sha, stage_source, training_source
from evals.records.store import keep
from workflows.gather import finished_runs, read_grid
from workflows.grid import DEFAULT_PRESET, environment
from workflows.presets import load_preset

REFERENCE = ROOT / "results" / "reference"
# What makes the numbers of each table: a stage, and files that are read beside its code.
TRAINING = ("training",)
PRODUCERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("runs", "train", "health", "arms", "tuning", "cost"), TRAINING),
    "matched_compute": ("matched",),
    "counting": ("counting",),
    "evals": ("evaluate",),
    "access": ("access",),
    "latency": ("latency",),
    "machine": ("latency",),
    "latency_modelled": ("modelled", "evals/decode/gpus.yaml"),
    "statements": ("modelled", "evals/decode/gpus.yaml"),
    "claims": ("claims", "evals/claims/claims.yaml"),
    **dict.fromkeys(("fits", "ranking", "equivalents"), ("fits",)),
    **dict.fromkeys(("speed", "step"), ("speed",)),
    **dict.fromkeys(("peers", "growth"), ("peers",)),
    "diagnosis": ("diagnosis", "evals/claims/diagnosis.yaml"),
    "coordinates": ("coordinates",),
    **dict.fromkeys(("offload", "offload_disk", "offload_hits", "offload_loss"), ("offload",)),
    "scale": ("scale", "evals/decode/gpus.yaml"),
    **dict.fromkeys(("questions", "where"), ("questions",)),
    "forgetting": ("forgetting",),
}


@cache
def source(producer: tuple[str, ...]) -> str:
    """Fingerprint of a producer's code and of the files that it names."""
    layers = load_preset(DEFAULT_PRESET).layers
    if producer == TRAINING:
        return sha([training_source(layer) for layer in layers])
    stage, *files = producer
    code = stage_source(stage, layers, without=WRITERS)
    return sha([code, *((ROOT / name).read_text() for name in files)]) if files else code


def file_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unaccounted(folder: Path = REFERENCE) -> list[str]:
    """One sentence for each table that nobody vouches for: unrecorded, edited, or its producer changed without a reason."""
    recorded = schema.read(folder / "provenance.csv", "provenance").set_index("table")
    found = [
        f"{name}.csv has a row in provenance.csv and does not exist"
        for name in recorded.index
        if not (folder / f"{name}.csv").exists()
    ]
    for path in sorted(folder.glob("*.csv")):
        name = path.stem
        if name == "provenance":
            continue
        if name not in recorded.index:
            found.append(
                f"{path.name} has no row in provenance.csv: copy it with `python -m workflows.reference results/PRESET`"
            )
            continue
        row = recorded.loc[name]
        now = source(PRODUCERS[name])
        if row.sha256 != file_sha(path):
            found.append(
                f"{path.name} is not the file that was recorded: copy it with `python -m workflows.reference results/PRESET`"
            )
        elif row.source != now and not (row.reason and row.reviewed in ("", now)):
            was = f"since {row.commit} (source {row.source or 'unknown'}, now {now})"
            found.append(
                f"{path.name}: {row.producer} has changed {was}: measure again, or say why it stands: "
                f"python -m workflows.reference --stands REASON {name}"
            )
    return found


def copy_runs(results: Path, only: list[str], folder: Path = REFERENCE / "runs") -> list[str]:
    """Copies finished runs of `results`, or only those named, to `folder`; returns which were new there or have new files.

    A run that another config or another source made than the grid's is left out and named on stdout. Losses of single tokens,
    the largest file of a run, are kept where something is asked of them: of the grid's models and of the token sweep.

    Raises:
        UserError: a run that is named cannot be copied.
    """
    grid = read_grid(results)
    finished = finished_runs(results, grid)
    asked = {*grid["grid"], *(arm["run"] for arm in grid["arms"] if arm["chain"] == "scaling_tokens")}
    if refused := sorted(set(only) - set(finished)):
        raise UserError(
            f"{', '.join(refused)}: no finished run of {results} that its grid's config and the present source made"
        )

    def new(run: str) -> list[str]:
        return keep(results / "runs" / run, folder, without=() if run in asked else ("tokens.safetensors",))

    return [run for run in finished if run in (only or finished) and new(run)]


def up_to_date(results: Path, tables: list[str]) -> None:
    """Asks snakemake, which keeps the fingerprint that each file was made by, whether `results` is of the present code.

    Raises:
        UserError: names the tables that are not, or says why snakemake cannot tell.
    """
    files = [str(results / f"{table}.csv") for table in tables]
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--summary", "--cores", "1"]
    snakemake += [*files, "--config", f"preset={read_grid(results)['preset']}"]
    done = subprocess.run(snakemake, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"snakemake cannot say whether {results} is of this code: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    plan = {line.split("\t")[0]: line.rstrip().split("\t")[-1] for line in done.stdout.splitlines()}
    # Of a file that it did not make snakemake knows nothing, and so has nothing against it.
    made = {file for file in files if Path(".snakemake/metadata", base64.urlsafe_b64encode(file.encode()).decode()).exists()}
    if pending := [file for file in files if file not in made or plan.get(file) != "no update"]:
        raise UserError(f"not made by this code, by snakemake's account: {', '.join(pending)}; run snakemake for them first")


def device_of(folder: Path, table: str) -> str:
    """Devices of a table's rows, of the runs behind it, or of a model."""
    for name in (table, "runs"):
        frame = pd.read_csv(folder / f"{name}.csv")
        if "device" in frame and (named := sorted(set(frame["device"].dropna()))):
            return named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"
    return "modelled"


def write(folder: Path, rows: pd.DataFrame) -> None:
    order = {name: i for i, name in enumerate(PRODUCERS)}
    schema.write(folder / "provenance.csv", "provenance", rows.sort_values("table", key=lambda names: names.map(order)))


def recorded(folder: Path) -> pd.DataFrame:
    path = folder / "provenance.csv"
    names = [column.name for column in schema.columns("provenance")]
    return schema.read(path, "provenance") if path.exists() else pd.DataFrame(columns=names)


def copy(results: Path, only: list[str], dirty: bool, folder: Path = REFERENCE) -> list[str]:
    """Copies tables of `results`, with their provenance, and `data.json`; returns their names.

    Raises:
        UserError: the checkout holds uncommitted changes and `dirty` is not set; a table does not exist, nobody knows what
            makes it, or it was not made by the present code.
    """
    changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results/reference"))
    if changed and not dirty:
        raise UserError(
            "this checkout holds uncommitted changes, so no commit says what made these tables: commit, or say --dirty"
        )
    if unknown := set(only) - set(PRODUCERS):
        raise UserError(f"{', '.join(sorted(unknown))}: not one of {', '.join(PRODUCERS)}")
    tables = [table for table in PRODUCERS if table in (only or PRODUCERS) and (results / f"{table}.csv").exists()]
    if missing := sorted(set(only) - set(tables)) or ([] if tables else ["any table"]):
        raise UserError(f"{results} does not hold {', '.join(missing)}: run snakemake first")
    up_to_date(results, tables)
    commit, rows = git("rev-parse", "--short=12", "HEAD"), recorded(folder)
    new = []
    for table in tables:
        path = results / f"{table}.csv"
        shutil.copyfile(path, folder / path.name)
        new.append(
            {
                "table": table,
                "producer": " ".join(PRODUCERS[table]),
                "commit": commit,
                "dirty": changed,
                "date": datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat(),
                "device": device_of(results, table),
                "source": source(PRODUCERS[table]),
                "sha256": file_sha(path),
            }
        )
    if (results / "data.json").exists() and not only:
        shutil.copyfile(results / "data.json", folder / "data.json")
    write(folder, pd.concat([rows[~rows["table"].isin(tables)].astype(object), pd.DataFrame(new)], ignore_index=True))
    return tables


def stands(tables: list[str], reason: str, folder: Path = REFERENCE) -> None:
    """Records why `tables` stand although their producers, as they are now, did not make them.

    Raises:
        UserError: no reason, or a table without a row.
    """
    rows = recorded(folder).astype(object).set_index("table")
    if not reason.strip() or not tables or not set(tables) <= set(rows.index):
        known = f"tables of {folder / 'provenance.csv'} are {', '.join(rows.index)}"
        raise UserError(f"a reason and the tables that it is about are needed; {known}")
    for table in tables:
        rows.loc[table, ["reason", "reviewed"]] = [reason, source(PRODUCERS[table])]
    write(folder, rows.reset_index())


def main(arguments: list[str] | None = None) -> int | None:
    parser = options.parser(__doc__)
    parser.add_argument("results", type=Path, nargs="?", help="results/{preset} to copy from")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TABLE", help="only these tables (default: all that are there)"
    )
    parser.add_argument(
        "--runs", nargs="*", metavar="RUN", help="copy these finished runs, or all of them, instead of tables that join runs"
    )
    parser.add_argument("--dirty", action="store_true", help="also from a checkout with uncommitted changes; it is recorded")
    parser.add_argument("--stands", nargs="+", metavar=("REASON", "TABLE"), help="why older measurements of these tables stand")
    args = parser.parse_args(arguments)
    if args.stands:
        stands(args.stands[1:], args.stands[0])
    elif args.runs is not None:
        if not args.results:
            raise UserError("--runs goes with a results folder: python -m workflows.reference results/cpu --runs")
        new = copy_runs(args.results, args.runs)
        print(f"{len(new)} runs are new in {REFERENCE / 'runs'}, or have new files; commit them")
        return None
    elif args.results:
        print("copied", *copy(Path(args.results), args.only, args.dirty))
    found = unaccounted()
    print(*found or ["every table of results/reference is accounted for"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    errors.run(main)
