"""Workers that are killed, hang or raise, and a run that is told to stop: real processes, two of them, over gloo."""

import contextlib
import signal
import subprocess
import threading
import time

import pandas as pd
import psutil
import pytest
import torch
from repository import ENV
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from training_runs import launch, make_run

from evals.records import tensors
from workflows.launch import LOST, cause

SHORT = ("--timeout", "10")  # of the exchange
# In the third step of its second life the second worker finds a fault of ours.
RAISES = """
import os
from workflows import train, worker

right, lives, steps = train.Trainer.update, os.environ["TORCHELASTIC_RESTART_COUNT"], []

def update(trainer):
    steps.append(trainer.step)
    if trainer.rank == 1 and lives == "1" and len(steps) == 3:
        raise IndexError("no such row")
    return right(trainer)

train.Trainer.update = update
worker.main()
"""


class Launched:
    """A run under way; all its processes end with it."""

    def __init__(self, folder, *options, engine="replicated", **more):
        command = launch(folder, *options, arguments=(*SHORT, "--engine", engine), **more)
        self.folder, self.started = folder, set()
        self.process = subprocess.Popen(
            command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.watchdog = threading.Timer(300, self.process.kill)
        self.watchdog.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        for process in (self.process, *self.started):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.process.stderr.close()

    def ranks(self) -> dict[int, psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        self.started |= set(children)
        return {int(child.environ()["RANK"]): child for child in children}

    def await_checkpoint(self):
        """Another than there is."""
        path = self.folder / "checkpoint.safetensors"
        before = path.exists() and path.stat().st_ino
        while not path.exists() or path.stat().st_ino == before:
            assert self.process.poll() is None
            time.sleep(0.01)

    def says(self) -> str:
        return self.process.stderr.readline().strip()

    def ends(self) -> tuple[int, list[str]]:
        said = self.process.communicate()[1].splitlines()
        assert not any(process.is_running() for process in self.started)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def run(corpus, models):
    """Makes a folder of the run that these tests disturb."""
    return lambda folder, **changes: make_run(folder, corpus, models["dense"], workers=2, tokens=60 * 8 * 32, **changes)


def test_a_run_that_meets_every_fault_ends_with_the_numbers_of_one_that_met_none(tmp_path, run):
    straight, folder = run(tmp_path / "straight"), run(tmp_path / "broken", checkpoint_s=0.0)
    with Launched(straight) as launched:
        assert launched.ends() == (0, [])

    with Launched(folder) as launched:
        launched.await_checkpoint()
        launched.ranks()
        launched.process.send_signal(signal.SIGTERM)
        code, said = launched.ends()
    assert code == 128 + signal.SIGTERM
    assert len(said) == 1
    assert said[0].startswith("broken: stopped by SIGTERM; saved at step")

    (tmp_path / "raises.py").write_text(RAISES)
    options = ("--max-restarts", "3", "--shutdown-timeout", "3")
    with Launched(folder, *options, program=[str(tmp_path / "raises.py")]) as launched:

        def fault(rank=None, number=None) -> list[str]:
            """What is said until all start again."""
            assert launched.says().startswith("broken: goes on from step")
            ranks = launched.ranks()
            if number:
                launched.await_checkpoint()
                ranks[rank].send_signal(number)
            began, said = time.monotonic(), [launched.says()]
            while said[-1] and "starting again" not in said[-1]:
                said.append(launched.says())
            print(f"{number!r} after {time.monotonic() - began:.1f} s: {said[-1]}")
            assert time.monotonic() - began < 60
            assert not any(process.is_running() for process in ranks.values())
            return said

        assert fault(1, signal.SIGKILL) == [
            f"{folder}: rank 1 of 2 was killed by SIGKILL (out of memory, or by hand); starting again (1 of 3)"
        ]
        traceback = fault()
        assert traceback.pop() == f"{folder}: rank 1 of 2 failed: IndexError: no such row; starting again (2 of 3)"
        assert [traceback[0], traceback[-1]] == ["Traceback (most recent call last):", "IndexError: no such row"]
        assert traceback.count("IndexError: no such row") == 1
        hangs = f"{folder}: rank 0 of 2 said nothing for 10 s (--timeout); starting again (3 of 3)"
        assert fault(0, signal.SIGSTOP) == [hangs]
        code, said = launched.ends()
    assert (code, len(said)) == (0, 1)

    frames = [pd.read_csv(one / "train.csv")[["step", "split", "source", "loss"]] for one in (straight, folder)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    a, b = (tensors.read_tensors(one / "model.safetensors")[0] for one in (straight, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert pd.read_csv(folder / "runs.csv").resumed[0] == 4


def test_a_sharded_run_goes_on_from_its_parts(tmp_path, run):
    straight, folder = run(tmp_path / "straight"), run(tmp_path / "broken", checkpoint_s=0.0)
    with Launched(straight, engine="sharded") as launched:
        assert launched.ends() == (0, [])
    with Launched(folder, "--max-restarts", "1", engine="sharded") as launched:
        while not list(folder.glob("checkpoint-*")):
            assert launched.process.poll() is None
            time.sleep(0.01)
        launched.ranks()[1].kill()
        code, said = launched.ends()
    assert (code, len(said)) == (0, 2)
    assert said[0].endswith("was killed by SIGKILL (out of memory, or by hand); starting again (1 of 1)")
    assert said[1].startswith("broken: goes on from step")
    a, b = (pd.read_csv(one / "train.csv")[["step", "split", "source", "loss"]] for one in (straight, folder))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert not list(folder.glob("*checkpoint*"))


def test_a_mistake_of_the_user_is_said_once_and_not_tried_again(tmp_path, run):
    folder = run(tmp_path / "broken")
    (folder / "checkpoint.safetensors").write_bytes(b"half")
    with Launched(folder, "--max-restarts", "3") as launched:
        code, said = launched.ends()
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith(f"{folder}: rank ")
    assert "checkpoint.safetensors is missing or damaged" in said[0]


def test_workers_that_do_not_save_in_time_are_killed(tmp_path, run):
    folder = run(tmp_path / "broken", checkpoint_s=0.0)
    with Launched(folder, "--shutdown-timeout", "1") as launched:
        launched.await_checkpoint()
        launched.ranks()[1].send_signal(signal.SIGSTOP)
        launched.process.send_signal(signal.SIGTERM)
        code, said = launched.ends()
    assert code == 128 + signal.SIGTERM
    assert said == [f"{folder}: killed, for it had not saved 1 s after SIGTERM; see --shutdown-timeout"]


@pytest.mark.parametrize(
    ("codes", "hung", "text", "code"),
    [
        ({0: LOST, 1: 1}, set(), "rank 1 of 4 left with 1", 1),
        ({0: LOST, 1: -9}, set(), "rank 1 of 4 was killed by SIGKILL (out of memory, or by hand)", 137),
        ({0: LOST, 1: -9}, {1}, f"rank 0 of 4 left with {LOST}", LOST),
        ({0: -6, 1: -11}, set(), "rank 1 of 4 was killed by SIGSEGV", 139),
        ({0: -6, 1: -9}, {1}, "rank 0 of 4 was killed by SIGABRT (its own, or that of a library) while rank 1 hung", 134),
        ({0: -15, 1: LOST}, set(), f"rank 1 of 4 left with {LOST}", LOST),
        ({0: 143, 1: 143}, set(), "rank 0 of 4 left with 143", 143),
    ],
)
def test_the_rank_at_fault(tmp_path, codes, hung, text, code):
    failures = {rank: ProcessFailure(rank, 1, code, str(tmp_path / "none")) for rank, code in codes.items()}
    assert cause(failures, hung, 4) == (text, code)
