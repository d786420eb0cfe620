"""What people see of a workflow: a prediction at its start, a table in a terminal, lines in a pipe, at its end what failed."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from repository import ENV, ROOT

from workflows import forecast, plan
from workflows.forecast import OTHER, USUAL, Job, usual_seconds, wall_time
from workflows.presets import load_preset
from workflows.watch import Progress

# A workflow of ours in small: its runs say what trainers say, and wait for a file between two steps.
TOY = """
from workflows import events
events.listen(workflow)
onstart:
    events.forecast(workflow, {"folder": "results", "adopt": True})
rule all:
    input: "bad", "good"
rule train:
    output: "{run}"
    log: "logs/{run}.log"
    shell:
        "exec 2> >(tee {log} >&2); echo {wildcards.run} starts >&2; "
        "echo '{wildcards.run}  step 3/7  loss 4.321  1,234 tok/s  2:05 left'; "
        "while [ ! -e go ]; do sleep 0.1; done; "
        "if [ {wildcards.run} = bad ] && [ ! -e mended ]; then echo no such luck >&2; exit 1; fi; touch {output}"
"""


def job(id, seconds=10.0, needs=(), cores=1, priority=0, run=None, **told):
    fixed = {"rule": "train", "name": f"train r{id}", "log": [f"logs/{id}.log"], "reads": [], "stage": "train", "last": None}
    takes = {"_cores": cores, "timing": int(cores > 1)}
    return Job(id=id, run=run, needs=[*needs], takes=takes, priority=priority, seconds=seconds, **(fixed | told))


LIMITS = {"_cores": 2, "timing": 1}


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([job(1), job(2), job(3)], 20),
        ([job(1), job(2, needs=[1]), job(3, needs=[2])], 30),
        ([job(1, 10), job(2, 10), job(3, 20)], 20),  # the longest first
        ([job(1, 10, priority=1), job(2, 10, priority=1), job(3, 20)], 30),
        ([job(1), job(2, cores=2), job(3)], 20),  # alone on the machine, after the others
        ([job(1, cores=2), job(2, cores=2)], 20),
        ([job(1, cores=8)], 10),  # snakemake scales it down
        ([job(1, needs=[99])], 10),  # what it needs is there
        ([], 0),
    ],
)
def test_wall_time_is_of_jobs_that_wait_for_each_other_and_for_cores(jobs, expected):
    assert wall_time({job.id: job for job in jobs}, LIMITS) == expected


def test_what_needs_a_failed_job_is_not_waited_for():
    jobs = {job.id: job for job in (job(1), job(2), job(3, 100, needs=[1]), job(4, 100, needs=[3]))}
    assert wall_time(jobs, LIMITS, never=[1]) == 10


@pytest.fixture
def progress():
    """Two trainings of a predicted 100 seconds run since second 0, two more and a job of 30 seconds follow."""
    progress = Progress()
    jobs = [job(id, run=f"r{id}") for id in (1, 2, 3, 4)] + [job(5, needs=[1, 2, 3, 4], name="report")]
    progress.event({"jobs": [asdict(job) for job in jobs], "limits": LIMITS}, 0.0)
    assert progress.left(0.0) is None
    progress.event({"seconds": {"1": 100, "2": 100, "3": 100, "4": 100, "5": 30}, "timed": [1, 2, 3, 4]}, 0.0)
    progress.event({"started": [1, 2]}, 0.0)
    return progress


def test_time_left_is_of_the_whole_workflow(progress):
    assert progress.left(0.0) == 230
    assert progress.left(40.0) == 190


def test_time_left_follows_what_trainers_say_and_what_runs_really_took(progress):
    assert progress.counter("r1  step 1/4  loss 5.123  2,345 tok/s  2:30 left", 50.0)
    assert progress.counter("r2  step 1/4  loss 5.123  2,345 tok/s  2:30 left", 50.0)
    assert progress.left(50.0) == 150 + 200 + 30  # twice as slow as predicted: so are the two that follow
    progress.event({"finished": 1}, 200.0)
    progress.event({"finished": 2}, 200.0)
    progress.event({"started": [3, 4]}, 200.0)
    assert progress.left(210.0) == 190 + 30


def test_what_the_trainer_prints_is_understood(progress):
    """Its line, taken from its source: an edit of one side alone is noticed."""
    printed = "".join(re.findall(r'^ +f"(.*(?:tok/s  |left))",?$', (ROOT / "workflows/train.py").read_text(), re.M))
    names = {"self": SimpleNamespace(run=SimpleNamespace(run="r1"), step=3), "steps": 7}
    said = eval(f'f"{printed}"', names | {"loss": 4.3214, "speed": 12345.6, "left": 125.4})
    assert said == "r1  step 3/7  loss 4.321  12,346 tok/s  2:05 left"
    assert progress.counter(said, 10.0)
    assert progress.remaining(1, 20.0, 1.0) == 115


def test_other_lines_are_no_counters(progress):
    for line in ("prepare:   17.6 s  60723 evaluation items", "r1: stopped by SIGTERM; saved at step 3 of 7", ""):
        assert not progress.counter(line, 0.0)


def test_a_failed_job_is_told_with_the_end_of_its_log_unless_it_is_tried_again(progress, tmp_path):
    log = tmp_path / "r1.log"
    log.write_text("".join(f"line {i}\n" for i in range(20)) + "0%\r100%\nerror: no luck\n\n")
    progress.event({"failed": 1, "log": [str(log)]}, 1.0)
    progress.event({"failed": 2, "log": [str(tmp_path / "none.log")]}, 1.0)
    assert progress.sentence(None) == "0 of 5 jobs done, 0 running, 2 failed"
    assert progress.left(1.0) == 100  # what needs them is not made
    assert progress.failures().splitlines() == [
        "2 of 5 jobs failed:",
        f"train r1: see {log}, which ends with",
        *(f"    {line}" for line in ("line 17", "line 18", "line 19", "100%", "error: no luck")),
        f"train r2: see {tmp_path}/none.log, which ends with",
        "    (nothing)",
    ]
    progress.event({"started": [1, 2]}, 2.0)
    assert progress.failures() == ""


def test_other_jobs_take_what_they_took_or_what_they_usually_take():
    def grid(preset):
        return {"measure": json.loads(json.dumps(asdict(load_preset(preset).measure)))}

    reads = [f"results/cpu/runs/{run}/runs.csv" for run in ("a", "b", "c")]
    scores = job(1, stage="evals.d48.0", reads=reads)
    assert usual_seconds(scores, grid("cpu"), set()) == 3 * USUAL["evals"]
    assert usual_seconds(scores, grid("reference"), {"a"}) == 2 * USUAL["evals"]
    assert usual_seconds(scores, grid("smoke"), set()) == OTHER
    assert usual_seconds(job(1, stage="latency"), grid("cpu"), set()) == USUAL["latency"]
    assert usual_seconds(replace(scores, last=7.5), grid("cpu"), set()) == 7.5
    assert usual_seconds(replace(scores, log=[]), grid("cpu"), set()) == 0


def test_timing_keeps_to_its_seconds(monkeypatch):
    run = plan.resolve(load_preset("smoke"), {}, forecast.Path("results"))[1]["dense-xs-s0"]
    clock, steps = iter(range(0, 1000, 2)), []  # every step takes two seconds
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(plan, "our_step", lambda run, device: lambda *tokens: steps.append(1) or plan.torch.zeros(()))
    for within, expected in ((0.0, 2), (5.0, 2), (6.5, 3), (float("inf"), 4)):
        steps.clear()
        assert plan.step_seconds(run, within=within) == 2
        assert len(steps) == expected


@pytest.fixture
def toy(tmp_path):
    """Its runs are committed, as if they were to be adopted: nothing is timed."""
    (tmp_path / "Snakefile").write_text(TOY)
    runs = {"good": {"sha": "a", "source": "s"}, "bad": {"sha": "b", "source": "s"}}
    for run, entry in runs.items():
        folder = tmp_path / "results/reference/runs" / run
        folder.mkdir(parents=True)
        for name in ("config.yaml", "health.csv", "train.csv.gz"):
            (folder / name).touch()
        with open(folder / "runs.csv", "w", newline="") as file:
            csv.writer(file).writerows([("config_sha", "source_sha", "data_sha"), (entry["sha"], "s", "d")])
    (tmp_path / "results/grid.json").write_text(json.dumps({"runs": runs, "measure": {}}))
    return tmp_path


COMMAND = [sys.executable, "-m", "workflows.start", "--cores", "1", "--keep-going", "--quiet", "rules", "host", "reason"]


def eventually(true, what):
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def test_in_a_pipe(toy):
    (toy / "go").touch()
    done = subprocess.run(COMMAND, cwd=toy, env=ENV, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert said[0] == "this will take about 16 seconds here: 3 jobs, 2 to take over from results/reference/runs"
    assert any(
        re.fullmatch(r"[01] of 3 jobs done, . running(, 1 failed)?, about [\d.]+ (seconds|minutes) left", line) for line in said
    )
    assert "good  step 3/7  loss 4.321  1,234 tok/s  2:05 left" in said
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-4:] == [
        "1 of 3 jobs failed:", "train bad: see logs/bad.log, which ends with", "    bad starts", "    no such luck",
    ]  # fmt: skip
    (toy / "bad").touch()
    done = subprocess.run(COMMAND, cwd=toy, env=ENV, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stderr
    assert done.stdout == ""
    assert (toy / ".snakemake/start/events.jsonl").read_text() == ""


def test_sigterm_ends_the_workflow_after_the_job_that_runs(toy):
    process = subprocess.Popen(COMMAND, cwd=toy, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "step 3/7" in line:
            break
    (toy / "mended").touch()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    (toy / "go").touch()
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 1, said
    assert "step 3/7" not in said
    assert (toy / "good").exists() != (toy / "bad").exists()


@pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux: apt-get install tmux")
def test_in_a_terminal(toy):
    """A table while jobs run, none when they are done; Ctrl-C reaches everybody, and the exit code says so."""
    tmux = ["tmux", "-L", f"ultramem-{os.getpid()}", "-f", os.devnull]
    env = {key: value for key, value in ENV.items() if key not in ("CI", "TMUX")}
    shell = f"trap : INT; {shlex.join(COMMAND)}; echo ended $?; {shlex.join(COMMAND)}; echo ended again $?; sleep 600"

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p", "-S", "-100"], capture_output=True, text=True).stdout

    subprocess.run([*tmux, "new-session", "-d", "-x", "110", "-y", "50", "bash", "-c", shell], cwd=toy, env=env, check=True)
    try:
        eventually(lambda: re.search(r"2:0\d .*running, about", screen(), re.S), screen)
        shown = screen()
        assert re.search(r"job +┃ +step +┃ +loss +┃ +speed +┃ +for +┃ +left", shown), shown
        assert re.search(r"train (good|bad) +│ +3/7 +│ +4.321 +│ +1,234 tok/s +│ +0:\d\d +│ +2:0\d", shown), shown
        assert re.search(r"0 of 3 jobs done, 1 running, about [\d.]+ (seconds|minutes) left", shown), shown
        assert "this will take about 16 seconds here" in shown
        assert "step 3/7" not in shown
        subprocess.run([*tmux, "send-keys", "C-c"], check=True)
        eventually(lambda: "ended 130" in screen(), screen)
        assert "interrupted: stopped before the end; run the same command again to go on" in screen()
        assert not any((toy / ".snakemake/locks").glob("*"))
        (toy / "go").touch()
        eventually(lambda: "ended again 1" in screen(), screen)
        shown = screen().partition("ended 130")[2]
        assert "jobs done" not in shown
        assert re.search(r"done  train good  0:\d\d", shown), shown
        assert re.search(
            r"1 of 3 jobs failed:\s+train bad: see logs/bad.log, which ends with\s+bad starts\s+no such luck", shown
        )
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True)
