"""What a person sees of a running workflow: a live table in a terminal, lines in a pipe or under CI; at the end what failed.

Snakemake and its jobs write as they always do. In a terminal that goes to a file, of which everything but the trainers'
counters is shown above the table; elsewhere it is left alone, and lines on jobs done and time left come between.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workflows import events
from workflows.forecast import Job, spoken, wall_time

LOOK_S = 0.5  # between two looks at what happened
COUNT_S = 5.0  # between two reckonings of the time left
SAY_S = 30.0  # between two lines where there is no table
LAST_LINES = 5  # of a failed job's log
FIRST = 10**6  # priority of what runs already
# workflows/train.py says it every five seconds.
COUNTER = re.compile(
    r"(?P<run>\S+)  step (?P<step>\d+/\d+)  loss (?P<loss>\S+)  (?P<speed>\S+ tok/s)  (?P<minutes>\d+):(?P<seconds>\d\d) left"
)
CHATTER = re.compile(
    r"\[.* \d{4}\]|Finished jobid: \d+ .*|\d+ of \d+ steps \(.*\) done|Execute \d+ jobs\.\.\.|Select jobs to .*|"
)


def seen(line: str) -> str:
    """What stays of a line that wrote over itself, as progress bars do."""
    return line.rstrip("\r").rpartition("\r")[2]


class Tail:
    """The whole lines that another process has appended to a file since the last look."""

    def __init__(self, path: Path):
        path.write_text("")
        self.file, self.rest = open(path, errors="replace", newline="\n"), ""  # noqa: SIM115  read for as long as the workflow runs

    def lines(self) -> Iterator[str]:
        *whole, self.rest = (self.rest + self.file.read()).split("\n")
        yield from map(seen, whole)


class Progress:
    """Which jobs run, are done or failed, and how long the rest will take; `now` is a clock's seconds."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.limits: dict[str, int] = {}
        self.predicted = False
        self.timed: set[int] = set()  # predicted from timed steps of training
        self.running: dict[int, float] = {}
        self.done: set[int] = set()
        self.failed: dict[int, list[str]] = {}
        self.counters: dict[str, tuple[dict[str, str], float]] = {}
        self.ratios: dict[int, float] = {}  # of those, measured time over predicted time

    def event(self, event: dict, now: float) -> list[int]:
        """Takes note of an event; returns the jobs that are finished by it."""
        if "jobs" in event:
            self.jobs = {job["id"]: Job(**job) for job in event["jobs"]}
            self.limits = event["limits"]
        for id, seconds in event.get("seconds", {}).items():
            self.predicted = True
            self.jobs[int(id)].seconds = seconds
        self.timed.update(event.get("timed", ()))
        for id in event.get("started", ()):
            self.running[id] = now
            self.failed.pop(id, None)  # tried once more
        if (id := event.get("failed")) is not None:
            self.running.pop(id, None)
            self.failed[id] = event["log"]
        if (id := event.get("finished")) is None:
            return []
        started = self.running.pop(id, now)
        self.done.add(id)
        if id in self.timed:
            self.ratios[id] = (now - started) / self.jobs[id].seconds
        return [id]

    def counter(self, line: str, now: float) -> bool:
        """Takes note of what a trainer says of its run; whether the line was that."""
        if found := COUNTER.fullmatch(line):
            left = 60 * int(found["minutes"]) + int(found["seconds"])
            self.counters[found["run"]] = (found.groupdict(), now + left)
        return bool(found)

    def remaining(self, id: int, now: float, ratio: float) -> float:
        """Seconds: of a run in training what its trainer says, of others what is predicted less what has passed."""
        job = self.jobs[id]
        if id in self.running and job.run in self.counters:
            return max(self.counters[job.run][1] - now, 0.0)
        return max(job.seconds * (ratio if id in self.timed else 1.0) - (now - self.running.get(id, now)), 0.0)

    def left(self, now: float) -> float | None:
        """Seconds until everything is done that does not need what failed; None where nothing is predicted."""
        if not self.predicted:
            return None
        ratios = list(self.ratios.values())
        for id, started in self.running.items():
            if id in self.timed and (job := self.jobs[id]).run in self.counters:
                ratios.append((self.counters[job.run][1] - started) / job.seconds)
        ratio = sum(ratios) / len(ratios) if ratios else 1.0
        open_jobs = {
            id: replace(job, seconds=self.remaining(id, now, ratio), priority=FIRST if id in self.running else job.priority)
            for id, job in self.jobs.items()
            if id not in self.done
        }
        return wall_time(open_jobs, self.limits, never=self.failed.keys())

    def sentence(self, left: float | None) -> str:
        words = f"{len(self.done)} of {len(self.jobs)} jobs done, {len(self.running)} running"
        if self.failed:
            words += f", {len(self.failed)} failed"
        return words if left is None else f"{words}, about {spoken(left)} left"

    def table(self, now: float, left: float | None) -> Table:
        """What runs now; the jobs' names, what trainers say of theirs, and what is left of all."""
        table = Table(caption=self.sentence(left), caption_justify="left", expand=False)
        for name in ("job", "step", "loss", "speed", "for", "left"):
            table.add_column(name, justify="left" if name == "job" else "right", no_wrap=True)
        for id, started in self.running.items():
            if job := self.jobs.get(id):
                said, _ = self.counters.get(job.run, ({}, 0.0))
                rest = self.remaining(id, now, 1.0) if said or self.predicted else None
                cells = [said.get(name, "") for name in ("step", "loss", "speed")]
                table.add_row(job.name, *cells, clock(now - started), clock(rest) if rest else "")
        return table

    def failures(self) -> str:
        """What failed, each with the name of its log and that one's last lines; empty where nothing did."""
        lines = [f"{len(self.failed)} of {len(self.jobs)} jobs failed:"] if self.failed else []
        for id, logs in self.failed.items():
            name = self.jobs[id].name if id in self.jobs else f"job {id}"
            lines.append(f"{name}: " + (f"see {', '.join(logs)}, which ends with" if logs else "it has no log"))
            for log in map(Path, logs):
                text = log.read_bytes().decode(errors="replace") if log.exists() else ""
                last = [seen(line) for line in text.split("\n") if line.strip()][-LAST_LINES:]
                lines += [f"    {line}" for line in last or ["(nothing)"]]
        return "\n".join(lines)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def say(text: str) -> None:
    """A line on stdout; nothing once its reader has gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = None


class Lines:
    """For a pipe, a file or CI: a line when jobs are done, at most every `SAY_S` seconds."""

    def __init__(self, progress: Progress):
        self.progress, self.said = progress, -SAY_S

    def show(self, lines: list[str], finished: list[int], now: float) -> None:
        if finished and self.progress.jobs and now - self.said >= SAY_S:
            self.said = now
            say(self.progress.sentence(self.progress.left(now)))

    def close(self) -> None:
        pass


class Screen:
    """For a terminal: a table of what runs, under what is said meanwhile and a line for each job that is done."""

    def __init__(self, progress: Progress):
        self.progress, self.console = progress, Console()
        self.live: Live | None = None
        self.began: dict[int, float] = {}
        self.left: float | None = None
        self.counted = 0.0

    def show(self, lines: list[str], finished: list[int], now: float) -> None:
        for line in lines:
            if not self.progress.counter(line, now) and not CHATTER.fullmatch(line):
                self.console.print(Text.from_ansi(line), soft_wrap=True)
        for id in finished:
            took = clock(now - self.began.get(id, now))
            name = self.progress.jobs[id].name if id in self.progress.jobs else f"job {id}"
            self.console.print(Text(f"done  {name}  {took}"), soft_wrap=True)
        self.began |= self.progress.running
        if finished or now - self.counted >= COUNT_S:
            self.left, self.counted = self.progress.left(now), now
        if self.progress.running and not self.live:
            self.live = Live(
                console=self.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self.live.start()
        if self.live:
            self.live.update(self.progress.table(now, self.left), refresh=True)

    def close(self) -> None:
        if self.live:
            self.live.stop()


def in_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def watch(command: list[str], env: Mapping[str, str], folder: Path) -> int:
    """Runs a workflow and shows what it does, by way of two files in `folder`; returns its exit code.

    SIGTERM is passed on: snakemake ends after the jobs that run. Ctrl-C reaches snakemake and the jobs from the terminal, and
    is raised again when they have ended; a second one kills snakemake.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    progress, terminal, interrupted = Progress(), in_terminal(), False
    folder.mkdir(parents=True, exist_ok=True)
    told, output = Tail(folder / "events.jsonl"), Tail(folder / "output.txt")
    view = Screen(progress) if terminal else Lines(progress)
    with open(folder / "output.txt", "a") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT} if terminal else {}
        process = subprocess.Popen(command, env={**env, events.FILE: str(folder / "events.jsonl")}, **streams)
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        ended = False
        while not ended:
            try:
                ended = process.poll() is not None
                now = time.monotonic()
                finished = [id for line in told.lines() for id in progress.event(json.loads(line), now)]
                view.show(list(output.lines()), finished, now)
                if not ended:
                    process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt:
                process.kill() if interrupted else process.terminate()
                interrupted = True
    finally:
        view.close()
        signal.signal(signal.SIGTERM, previous)
    if interrupted:
        raise KeyboardInterrupt
    if failures := progress.failures():
        print(failures, file=sys.stderr)
    return process.returncode
