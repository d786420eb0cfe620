"""The command where users type it: folders with odd names, a cluster's executor, beside another snakemake."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from repository import ENV, ROOT, snakemake

from workflows.start import strays

# Stands in for snakemake-executor-plugin-slurm: notes what each job asks for and runs none.
CLUSTER = """
import json
from dataclasses import dataclass, field

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False, init_seconds_before_status_checks=0
)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    no_account: bool = field(default=False, metadata={"help": "as the real one"})
    requeue: bool = field(default=False, metadata={"help": "as the real one"})


class Executor(RemoteExecutor):
    def run_job(self, job):
        resources = {name: job.resources.get(name) for name in ("gpu", "slurm_extra", "mem_mb")}
        with open("asked.jsonl", "a") as file:
            print(json.dumps({"rule": job.rule.name, "threads": job.threads} | resources), file=file)
        self.report_job_error(SubmittedJobInfo(job))

    async def check_active_jobs(self, active_jobs):
        return
        yield

    def cancel_jobs(self, active_jobs):
        pass
"""


@pytest.mark.parametrize(("preset", "gpu", "threads"), [("smoke", 0, 1), ("gpu1", 1, 4)])
def test_workflow_runs_with_the_cluster_profile(tmp_path, preset, gpu, threads):
    plugin = tmp_path / "lib/snakemake_executor_plugin_slurm"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(CLUSTER)
    rules = ("modelled", "latency", "speed", "peers", "plan")
    options = ("--retries", "0", "--seconds-between-status-checks", "1", "--config", f"preset={preset}")
    env = ENV | {"PYTHONPATH": f"{ROOT}{os.pathsep}{plugin.parent}"}
    done = snakemake(tmp_path, *rules, "--workflow-profile", ROOT / "profiles/slurm", *options, env=env)
    assert (tmp_path / "asked.jsonl").exists(), done.stderr[-2000:]
    asked = {job["rule"]: job for job in map(json.loads, (tmp_path / "asked.jsonl").read_text().splitlines())}
    assert set(asked) == set(rules)
    assert not asked["modelled"]["gpu"]
    assert asked["modelled"]["slurm_extra"] == "--signal=TERM@300"
    for rule in rules[1:]:
        assert (asked[rule]["gpu"] or 0, asked[rule]["threads"]) == (gpu, threads)
        assert asked[rule]["slurm_extra"] == "--exclusive"


def check_out(folder):
    """Copies the tracked code."""
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
        if name and not name.startswith(("results/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


@pytest.fixture(scope="module")
def odd_checkout(tmp_path_factory):
    """The code, with an environment of its own, in a folder that a shell must not take apart."""
    folder = tmp_path_factory.mktemp('it\'s a "check" out $HOME')
    check_out(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    smoke = folder / "workflows/configs/smoke.yaml"
    text = smoke.read_text().replace("train: {", "train: {workers: 2, threads: 3, ")
    smoke.write_text(f"{text}\nparallel: {{engine: sharded, recompute: true, restarts: 3, timeout_s: 90}}\n")
    return folder


def in_odd_checkout(folder, *args):
    command = [folder / ".venv/bin/python", "-m", "snakemake", *args, "--cores", "8", "--quiet", "host"]
    command += ["--config", "preset=smoke"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_jobs_run_in_a_folder_with_spaces_and_quotes(odd_checkout):
    in_odd_checkout(odd_checkout, "modelled")
    assert (odd_checkout / "results/smoke/latency_modelled.csv").exists()


def test_every_command_is_quoted_and_workers_take_threads_each(odd_checkout):
    told = in_odd_checkout(
        odd_checkout, "all", "speed", "peers", "plan", "tuning", "ablation_controls", "--forceall", "-n", "-p"
    )
    python = str(odd_checkout / ".venv/bin/python")
    commands = [line.strip() for line in told.splitlines() if " -m " in line and "python" in line]
    assert len(commands) > 30
    modules = set()
    for command in commands:
        words = shlex.split(command)
        at = words.index("-m")
        assert words[at - 1] == python
        modules.add(words[at + 1])
    assert modules == {
        "workflows.launch", "workflows.prepare", "workflows.gather", "workflows.plan", "evals.scores.harness",
        "evals.access.counted", "evals.decode.latency", "evals.decode.modelled", "evals.claims.ledger", "evals.laws.fits",
        "evals.questions.ask", "evals.peers", "reports.build", "workflows.speed", "workflows.dry_run",
    }  # fmt: skip
    train = told.partition("rule train_xs:")[2].partition("rule ")[0]
    assert "threads: 6" in train
    assert "-m workflows.launch --standalone --nproc-per-node 2 --max-restarts 3 -m workflows.worker" in train
    assert "--patience 60 --engine sharded --recompute --timeout 90\n" in train


def test_a_size_of_the_grid_is_made_without_the_chains_runs_of_that_size(tmp_path):
    check_out(tmp_path)
    smoke = tmp_path / "workflows/configs/smoke.yaml"
    text = smoke.read_text().replace("chains: []", "chains: [controls]")
    smoke.write_text(text.replace("  evals: {", "  evals: {together: 1, "))
    env = ENV | {"PYTHONPATH": str(tmp_path)}
    told = snakemake(tmp_path, "grid_xs", "-n", "--config", "preset=smoke", root=tmp_path, env=env)
    assert dict(re.findall(r"^(train_xs|evals_xs) +(\d+)$", told.stderr + told.stdout, re.M)) == {
        "train_xs": "6",
        "evals_xs": "6",
    }


# Makes the folder that it is told to, in place of the corpus.
STAND_IN = """
import sys
from pathlib import Path

Path(sys.argv[sys.argv.index("--out") + 1]).mkdir(parents=True)
"""


def test_a_changed_pin_of_the_text_makes_it_stale_and_no_other(tmp_path):
    check_out(tmp_path)
    (tmp_path / "workflows/prepare.py").write_text(STAND_IN)
    words = ("prepare", "--cores", "1", "--config", "preset=smoke")
    env = ENV | {"PYTHONPATH": str(tmp_path)}

    def stale() -> bool:
        done = snakemake(tmp_path, *words[:1], "--dry-run", *words[1:], root=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return "Nothing to be done" not in done.stdout + done.stderr

    assert snakemake(tmp_path, *words, root=tmp_path, env=env).returncode == 0
    assert not stale()
    pins = tmp_path / "evals/records/sources.yaml"
    before = pins.read_text()
    others = (
        ("# Where text", "# Whence text"),
        ("version: 1.44.5", "version: 1.44.6"),  # of botocore, which the smoke preset leaves out
        ("dataset: allenai/c4", "dataset: another/c4"),
    )
    text = ("version: 0.0.7", "version: 0.0.8")
    cleared = ("sha256: 61b08a", "sha256: 61b08b")  # of the evaluation sets, which the text is cleared of
    for edits, expected in ((others, False), ([text], True), ([cleared], True)):
        edited = before
        for old, new in edits:
            assert old in edited
            edited = edited.replace(old, new)
        pins.write_text(edited)
        assert stale() == expected, edits


TOY = """
import os
rule all:
    input: "done"
rule slow:
    output: "done"
    shell: "echo $$ >> started; while [ ! -e go ]; do sleep 0.1; done; touch done"
"""


def wait_for(path):
    deadline = time.monotonic() + 180
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def toy(tmp_path):
    """A folder with a bare snakemake in the middle of its only job."""
    (tmp_path / "Snakefile").write_text(TOY)
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1"], cwd=tmp_path, env=ENV, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(tmp_path / "started")
    yield tmp_path, process
    (tmp_path / "go").touch()
    if process.poll() is None:
        process.wait(timeout=180)


def start(folder):
    command = [sys.executable, "-m", "workflows.start", "--cores", "1", "--rerun-incomplete"]
    return subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=400)


def test_start_leaves_a_running_snakemake_its_lock(toy):
    folder, process = toy
    done = start(folder)
    assert done.returncode == 2
    assert f"snakemake runs here already, as process {process.pid}" in done.stderr
    assert "Traceback" not in done.stderr
    assert any((folder / ".snakemake/locks").iterdir())
    (folder / "go").touch()
    assert process.wait(timeout=180) == 0
    assert (folder / "started").read_text().count("\n") == 1


def test_start_removes_the_lock_of_a_dead_snakemake(toy):
    folder, process = toy
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder / "go").touch()
    done = start(folder)
    assert done.returncode == 0, done.stderr
    assert "removing the lock of a workflow that was killed" in done.stderr
    assert (folder / "started").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--cores", "2", "--config", "preset=cpu", "tuning"], ["tuning"]),
        (["tuning", "--config", "preset=cpu", "seeds=[0, 1]", "--dry-run"], []),
        (["-C", "preset=cpu", "--", "tuning"], []),
    ],
)
def test_a_target_among_the_values_of_config_is_named(args, found):
    assert strays(args) == found


def test_a_failed_job_names_its_log(tmp_path):
    """A folder stands where the job wants to write its table."""
    (tmp_path / "results/smoke/latency_modelled.csv/in the way").mkdir(parents=True)
    done = snakemake(tmp_path, "--cores", "1", "--config", "preset=smoke", "--", "modelled")
    assert done.returncode == 1
    assert "results/smoke/logs/modelled.log" in done.stderr
    assert "latency_modelled.csv" in (tmp_path / "results/smoke/logs/modelled.log").read_text()
