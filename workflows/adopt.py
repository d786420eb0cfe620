"""Takes over a finished run that is committed, if there is one: python -m workflows.adopt results/reference.run dense-d48-s0

A run of the grid whose config, source and data are those of a run in `results/reference/runs`, or whose source is known to give
the same losses, is that run, whatever it is called there: its tables are copied into the run's folder as they are, so runs.csv
names the machine, the commit and the times of whoever trained it. There are no weights then: scores come along and stand as
long as the code that made them does.

Exit status: 0 adopted, 1 there is no such run and it has to be trained; one line on stderr says which, and what differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from evals.records import errors, options
from evals.records.files import whole
from evals.records.shards import load_shards
from evals.records.store import HASHES, NAMES, STORE, Stored, first_source, restored, same_sources, stored
from workflows.gather import read_grid


def chosen(run: str, wanted: dict[str, str], runs: list[Stored], same: dict[str, str]) -> tuple[Stored | None, str]:
    """Of the stored `runs` the one with all the hashes `wanted`, if any, and what is said of it; its namesake comes first."""
    runs = sorted(runs, key=lambda other: other.run != run)

    def differs(other: Stored, what: str) -> bool:
        a, b = other.hash(what), wanted[what]
        return first_source(a, same) != first_source(b, same) if what == "source" else a != b

    differing = {id(other): [what for what in HASHES if differs(other, what)] for other in runs}
    for other in runs:
        if not differing[id(other)]:
            row = other.row
            by = f"trained on {row['device']} at commit {row['git_commit'] or 'unknown'}, ended {row['ended']}"
            return other, f"{run}: adopted from {other.folder}, {by}"
    near = [other for other in runs if "config" not in differing[id(other)]] or [o for o in runs if o.run == run]
    if not near:
        return None, f"{run}: no run of config {wanted['config']} is stored, so it is trained"
    what = [f"{what} ({near[0].hash(what)}, here {wanted[what]})" for what in differing[id(near[0])]]
    return None, f"{run}: {near[0].folder} is of another {' and another '.join(what)}, so it is trained"


def adopt(results: Path, run: str, store: Path) -> bool:
    """Fills the folder of `run` from the store, if a run there is the same one; returns whether it was.

    Raises:
        UserError: there is no grid, the corpus is damaged, or the stored run is.
    """
    grid, folder = read_grid(results), results / "runs" / run
    entry = grid["runs"][run]
    data = load_shards(Path(grid["data"])).meta["sha256"]["train.bin"][:12]
    wanted = {"config": entry["sha"], "source": entry["source"], "data": data}
    found, told = chosen(run, wanted, stored(store), same_sources(store))
    if found:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        files = restored(found, {name: config[name] for name in NAMES})
        for stale in folder.iterdir():  # of other code or another config
            if stale.is_file() and stale.name not in ("config.yaml", ".lock"):
                stale.unlink()
        for name, content in files.items():
            with whole(folder / name) as part:
                part.write_bytes(content)
    print(told, file=sys.stderr)
    return bool(found)


def main(arguments: list[str] | None = None) -> int:
    parser = options.parser(__doc__)
    parser.add_argument("results", type=Path, help="results folder of the preset")
    parser.add_argument("run", help="name of a run of its grid")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of committed runs (default: %(default)s)")
    args = parser.parse_args(arguments)
    return int(not adopt(args.results, args.run, args.store))


if __name__ == "__main__":
    errors.run(main)
