"""Starts the workers of a run: python -m workflows.launch --nproc-per-node 2 -m workflows.worker results/cpu/runs/moe8-xs-s0

This is torchrun with all its options and its engine (agent, rendezvous, restarts). What torch 2.13 leaves to be done:
- torchrun ends with a box and its own traceback. We say one sentence on the rank at fault: what a worker left in its error
  file, or the signal that killed it. A worker that merely lost the others speaks only where no other reason is known.
- After a fault torch gives the others 30 s to leave, whatever --shutdown-timeout says; here it is 30 s at most. On SIGTERM
  that option is the time for saving; it is 300 s where nobody sets it (torch: 30 s).
- torch starts workers again (--max-restarts) whatever the cause. Neither a mistake of the user, who has to do something, nor a
  run that was told to stop is started again.
- torch shares one store over all starts, where gloo reads addresses of the dead ("Connection refused" at the first restart):
  each start has a name, under which its workers meet. TORCHELASTIC_RESTART_COUNT is none, for machines count apart.
- SIGTERM, SIGINT and SIGHUP are forwarded by torch; workers save after the same step and the exit code is 128 + signal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api

from evals.records import errors, options

USERS = 2  # exit code of a worker whose user made a mistake
LOST = os.EX_TEMPFAIL  # of one that did nothing wrong itself
ROUND = "WORKERS_ROUND"  # names this start of all workers on all machines
GRACE_S = 30
SAVING_S = "300"
STOPPED = {128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
HINTS = {signal.SIGKILL: " (out of memory, or by hand)", signal.SIGABRT: " (its own, or that of a library)"}


def say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr, flush=True)


def cause(failures: dict[int, ProcessFailure], hung: set[int], count: int) -> tuple[str, int]:
    """The sentence on the rank at fault, and the exit code.

    Args:
        failures: of ranks of this machine.
        hung: those that were killed here because they did not leave.
        count: ranks of all machines.
    """

    def order(rank: int) -> tuple[bool, ...]:
        code = failures[rank].exitcode
        told = code in STOPPED or code == -signal.SIGTERM  # to leave, by us
        return rank in hung, told, code == LOST, code < 0, code == -signal.SIGABRT

    rank = min(failures, key=order)
    failure = failures[rank]
    if failure.exitcode > 0:
        told = failure.message
        left = f"rank {rank} of {count} left with {failure.exitcode}"
        return told["message"].partition(": ")[2] if isinstance(told, dict) else left, failure.exitcode
    number = signal.Signals(-failure.exitcode)
    text = f"rank {rank} of {count} was killed by {number.name}{HINTS.get(number, '')}"
    if hung - {rank}:
        text += f" while rank {', '.join(map(str, sorted(hung - {rank})))} hung"
    return text, 128 + number


class Agent(LocalElasticAgent):
    """torch's agent, which says why workers failed."""

    folder = Path()  # of the run

    def alive(self) -> set[int]:
        handlers = self._pcontext.subprocess_handlers
        return {self._worker_group.workers[local].global_rank for local, h in handlers.items() if h.proc.poll() is None}

    def failed(self) -> bool:
        return any(handler.proc.poll() for handler in self._pcontext.subprocess_handlers.values())

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if worker_group.group_rank == 0:
            worker_group.store.set(ROUND, uuid.uuid4().hex)
        os.environ[ROUND] = worker_group.store.get(ROUND).decode()  # what workers inherit
        return super()._start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        alive: set[int] = set()
        if self.failed():
            alive = self.alive()
            self._pcontext.close(signal.SIGTERM, min(GRACE_S, self._shutdown_timeout))
        result = super()._monitor_workers(worker_group)
        if not result.is_failed():
            return result
        failures = result.failures
        hung = {rank for rank in alive & failures.keys() if failures[rank].exitcode == -signal.SIGKILL}
        text, code = cause(failures, hung, worker_group.workers[0].world_size)
        if code in STOPPED:
            raise SystemExit(code)
        if code == USERS or not self._remaining_restarts:
            saved = any(self.folder.glob("checkpoint*"))
            go_on = f"; the same command goes on from {'its last checkpoint' if saved else 'the start'}"
            say(f"{self.folder}: {text}{'' if code == USERS else go_on}")
            raise SystemExit(code)
        start = worker_group.spec.max_restarts - self._remaining_restarts + 1
        say(f"{self.folder}: {text}; starting again ({start} of {worker_group.spec.max_restarts})")
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = GRACE_S) -> None:
        alive = self.alive() if self._pcontext else set()
        super()._shutdown(death_sig, timeout)
        handlers = self._pcontext.subprocess_handlers.values() if alive else ()
        if any(handler.proc.poll() == -signal.SIGKILL for handler in handlers):
            say(f"{self.folder}: killed, for it had not saved {timeout} s after {death_sig.name}; see --shutdown-timeout")


def main() -> int:
    """The exit code: of the worker at fault, 128 + signal where one ended it or us."""
    ours, parser = options.parser(__doc__), run.get_args_parser()
    parser.prog, parser.description, parser.epilog = ours.prog, ours.description, ours.epilog
    for action in parser._actions:
        action.help = action.help or "what the workers are given: the run's folder and their options"
    args = parser.parse_args()
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVING_S)
    if "LOGLEVEL" not in os.environ:
        for name in ("torch.distributed.elastic", "torch.distributed.run"):
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(logging.NullHandler())
    Agent.folder = Path(next(iter(args.training_script_args), ""))
    api.LocalElasticAgent = Agent
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        args.log_dir = args.log_dir or folder
        try:
            run.run(args)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except RendezvousError:
            say(f"{Agent.folder}: the other machines have ended the run; what they say is the reason")
            return LOST
    return 0


if __name__ == "__main__":
    errors.run(main)
