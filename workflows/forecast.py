"""How long the jobs that are about to run will take here: python -m workflows.forecast .snakemake/start/events.jsonl

Asked by `workflows.events` before the first job starts, and never where nothing has to run. Training is timed, at most ten
seconds in all, on the runs themselves (`workflows.plan`); every other job takes as long as it took the last time in this
folder, or else what it usually takes. The answer is printed, and appended to the file for whoever shows what runs.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.records import errors, options
from evals.records.errors import UserError
from evals.records.store import STORE, first_source, same_sources, stored
from workflows.gather import read_grid
from workflows.presets import load_preset

CALIBRATION_S = 10.0
# Seconds where nothing is known: of the stages that take long on the machine of results/reference (its cost.csv; scoring is
# per run), of any other job, and of what a run does beside its steps and its losses on held-out text.
USUAL = {"data": 45.0, "evals": 20.0, "latency": 260.0}
OTHER = 8.0
AROUND_TRAINING = 6.0


@dataclass
class Job:
    """A job that has to run. `takes` is what it holds of each resource, `last` the seconds it took the last time here."""

    id: int
    rule: str
    name: str
    run: str | None
    log: list[str]
    reads: list[str]
    needs: list[int]
    takes: dict[str, int]
    priority: int
    stage: str
    last: float | None
    seconds: float = OTHER


def spoken(seconds: float) -> str:
    """A duration in the unit that one would say it in."""
    for size, unit in ((365 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def wall_time(jobs: Mapping[int, Job], limits: Mapping[str, int], never: Collection[int] = ()) -> float:
    """Seconds until the last of `jobs` ends, each starting as soon as what it needs is there and its resources are free.

    The order is snakemake's: highest priority first, then the longest. Those of `never` do not run, nor what needs them.
    """
    waits = {job.id: sum(need in jobs for need in job.needs) for job in jobs.values()}
    after: dict[int, list[int]] = {}
    for job in jobs.values():
        for need in job.needs:
            after.setdefault(need, []).append(job.id)

    def turn(job: Job) -> tuple[int, float, int]:
        return -job.priority, -job.seconds, job.id

    ready = sorted(turn(job) for job in jobs.values() if not waits[job.id] and job.id not in never)
    free, running, now = dict(limits), [], 0.0
    while ready or running:
        passed = []
        while ready and (not running or free.get("_cores", 1) > 0):
            job = jobs[(at := heapq.heappop(ready))[-1]]
            if running and any(amount > free.get(name, amount) for name, amount in job.takes.items()):
                passed.append(at)
                continue
            for name, amount in job.takes.items():
                free[name] = free.get(name, amount) - amount
            heapq.heappush(running, (now + job.seconds, job.id))
        for at in passed:
            heapq.heappush(ready, at)
        now, ended = heapq.heappop(running)
        for name, amount in jobs[ended].takes.items():
            free[name] += amount
        for follower in after.get(ended, ()):
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, turn(jobs[follower]))
    return now


def taken_over(jobs: list[Job], grid: dict, adopt: bool) -> set[str]:
    """Runs that a committed one will stand for; as far as config and code tell, before the data are there."""
    if not adopt:
        return set()
    same = same_sources(STORE)
    have = {(run.hash("config"), first_source(run.hash("source"), same)) for run in stored(STORE)}

    def there(run: dict) -> bool:
        return (run["sha"], first_source(run["source"], same)) in have

    return {job.run for job in jobs if job.run and there(grid["runs"][job.run])}


def training_seconds(results: Path, names: list[str], within: float = CALIBRATION_S) -> dict[str, float]:
    """Run -> seconds that its job takes, after at most about `within` seconds of training steps on this machine.

    Beside its steps a run has losses on held-out text, of three sources and forward only: a third of the work of training.

    Raises:
        UserError: as `plan.predict`.
    """
    from evals.records.runs import load_run  # torch takes seconds to load
    from workflows import plan

    runs = {name: load_run(results / "runs" / name) for name in names}
    seconds = {}
    for row in plan.predict(runs, within):
        train = runs[row["run"]].train
        held_out = train.validation_tokens * (2 + train.evaluate / 8)
        seconds[row["run"]] = row["predicted_wall_s"] * (1 + held_out / row["tokens"]) + AROUND_TRAINING
    return seconds


def usual_seconds(job: Job, grid: dict, adopted: set[str]) -> float:
    """Of a job that trains nothing; what has no log only joins others."""
    if not job.log:
        return 0.0
    if job.last is not None:
        return job.last
    stage = job.stage.partition(".")[0]
    if stage in grid["measure"]:
        cpu = json.loads(json.dumps(asdict(load_preset("cpu").measure)))
        ours, usual = ({**options[stage], "seeds": None, "together": None} for options in (grid["measure"], cpu))
        if ours != usual:
            return OTHER
    each = len([path for path in job.reads if Path(path).parent.name not in adopted]) if stage == "evals" else 1
    return USUAL.get(stage, OTHER) * each or OTHER


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("events", type=Path, help="file of events; its last line of jobs is what will run")
    args = parser.parse_args()
    asked = [event for line in args.events.read_text().splitlines() if "jobs" in (event := json.loads(line))][-1]
    jobs = [Job(**job) for job in asked["jobs"]]
    results = Path(asked["results"])
    grid = read_grid(results)
    adopted = taken_over(jobs, grid, asked["adopt"])
    names = [job.run for job in jobs if job.run and job.run not in adopted]
    if names:
        print(f"timing a few steps of training, {CALIBRATION_S:.0f} seconds at most", flush=True)
    try:
        trained = training_seconds(results, names) if names else {}
    except UserError as error:
        print(f"how long this takes here is not known: {error}")
        return
    for job in jobs:
        job.seconds = trained.get(job.run, OTHER) if job.run else usual_seconds(job, grid, adopted)
    with open(args.events, "a") as file:
        timed = [job.id for job in jobs if job.run in trained]
        print(json.dumps({"seconds": {job.id: job.seconds for job in jobs}, "timed": timed}), file=file)
    time = wall_time({job.id: job for job in jobs}, asked["limits"])
    what = ", ".join(
        words
        for count, words in (
            (len(names), f"{len(names)} runs to train"),
            (len(adopted), f"{len(adopted)} to take over from {STORE}"),
        )
        if count
    )
    print(f"this will take about {spoken(time)} here: {len(jobs)} jobs" + (f", {what}" if what else ""))


if __name__ == "__main__":
    errors.run(main)
