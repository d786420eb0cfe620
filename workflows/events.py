"""What snakemake says of its jobs to whoever started it (`workflows.start`): lines of JSON in the file that `FILE` names.

The Snakefile calls this, and without that name in the environment nothing happens: `snakemake --cores all` stays what it is.
An event is one of `jobs` (all that have to run, before the first one starts), `seconds` (what each is predicted to take, by
`workflows.forecast`), `started`, `finished` and `failed`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snakemake.logging import LogEvent, logger

from workflows.forecast import Job

FILE = "ULTRAMEM_EVENTS"


def tell(path: str, **event: Any) -> None:
    with open(path, "a") as file:
        print(json.dumps(event), file=file)


class Events(logging.Handler):
    """Writes what happens to jobs, whatever snakemake itself is quiet about."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        try:
            match getattr(record, "event", None):
                case LogEvent.JOB_STARTED:
                    tell(self.path, started=list(record.jobs))
                case LogEvent.JOB_FINISHED:
                    tell(self.path, finished=record.job_id)
                case LogEvent.JOB_ERROR:
                    tell(self.path, failed=record.jobid, log=[str(path) for path in record.log])
        except OSError:
            self.handleError(record)


def listen(workflow: Any) -> None:
    """From here on jobs are told of, if anybody asked; not by the snakemake that a cluster starts for one job."""
    path = os.environ.get(FILE)
    if path and workflow.is_main_process:
        logger.addHandler(Events(path))


def describe(job: Any, workflow: Any) -> Job:
    """A job of snakemake's, in our words."""
    jobid, wildcards = workflow.dag.jobid, job.wildcards_dict
    record = workflow.persistence.metadata(job.output[0]) if job.output else None
    times = (record.starttime, record.endtime) if record else (None, None)
    takes = {name: amount for name, amount in job.scheduler_resources.items() if isinstance(amount, int)}
    return Job(
        id=jobid(job),
        rule=job.rule.name,
        name=" ".join((job.rule.name, *wildcards.values())),
        run=wildcards.get("run"),
        log=[str(path) for path in job.log],
        reads=[str(path) for path in job.input],
        needs=[jobid(other) for other in workflow.dag.dependencies[job]],
        takes=takes,
        priority=job.priority,
        stage=Path(job.benchmark).stem if job.benchmark else job.rule.name,
        last=None if None in times else times[1] - times[0],
    )


def forecast(workflow: Any, grid: dict) -> None:
    """Tells of the jobs that have to run, and where they run on this machine how long that will take."""
    path = os.environ.get(FILE)
    if path and workflow.is_main_process:
        limits = {name: limit.value for name, limit in workflow.global_resources.items() if isinstance(limit.value, int)}
        jobs = [asdict(describe(job, workflow)) for job in workflow.dag.needrun_jobs()]
        tell(path, jobs=jobs, limits=limits, results=grid["folder"], adopt=grid["adopt"])
        if workflow.local_exec:
            subprocess.run([sys.executable, "-m", "workflows.forecast", path], check=False)
