"""One of several workers of a run, which `workflows.launch` starts: python -m workflows.worker results/cpu/runs/dense-xs-s0

Trains as `workflows.train` does. Here, whichever engine trains, workers meet, say what went wrong and leave:
- One that raises tells the others through the store of the process group before it dies, and leaves its sentence for the
  launcher in the file that torch's elastic engine reads. A mistake of the user ends with 2, any other with 1 and a traceback.
- One that loses the exchange (gloo raises at once where a peer died, and after --timeout where one hangs) calls the roll: the
  cause is what another told, or else those that do not answer. Nothing of gloo's own is printed. NCCL, says its documentation,
  ends a process that waited too long by SIGABRT; then the launcher names those that it had to kill.
- None takes its interpreter down: torch 2.13's gloo has threads that may still let go of tensors then, for which they want an
  interpreter, and the process aborts ("terminate called without an active exception") after all its work is done.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import os
import re
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from evals.records import options
from evals.records.errors import UserError
from evals.records.runs import load_run
from kernels.allocator import keep_memory
from workflows import checkpoint
from workflows.launch import LOST, ROUND, USERS
from workflows.parallel.settings import Parallel, add_options, told
from workflows.parallel.trainer import SpreadTrainer
from workflows.train import Stop, Trainer

ROLL_S = 5.0  # in which those who lost the exchange answer one another


class Fault(Exception):
    """A sentence for the launcher."""


class Workers:
    """The process group of a run, and what its members tell one another when something breaks.

    Raises:
        UserError: nobody started several workers.
    """

    def __init__(self, device: str, timeout_s: float):
        if "WORLD_SIZE" not in os.environ:
            raise UserError("a worker is one of several: start them with python -m workflows.launch")
        self.timeout, self.stop = datetime.timedelta(seconds=timeout_s), Stop()
        self.backend, self.device = ("nccl", f"cuda:{os.environ['LOCAL_RANK']}") if device == "cuda" else ("gloo", device)
        store, self.rank, self.count = next(dist.rendezvous("env://", timeout=self.timeout))
        self.store = dist.PrefixStore(os.environ.get(ROUND, ""), store)

    def meet(self) -> None:
        """Makes the process group, once all are there."""
        if self.backend == "nccl":
            torch.cuda.set_device(self.device)
        store, size = dist.PrefixStore("group", self.store), self.count
        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=size, timeout=self.timeout)

    def cause(self, error: BaseException) -> tuple[str, int]:
        """One sentence on why the run broke, which names the rank, and the exit code of this worker."""
        if lost(error) and (absent := self.absent()) and not self.told():
            names = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} of {self.count}"
            if re.search("timed out|timeout", str(error), re.IGNORECASE):
                return f"{names} said nothing for {self.timeout.total_seconds():g} s (--timeout)", LOST
            return f"{names} did not answer rank {self.rank}, which met {sentence(error)}", LOST
        mine = f"{code_of(error)} rank {self.rank} of {self.count} failed: {sentence(error)}"
        first = self.store.compare_set("fault", "", mine).decode()
        if first == mine and code_of(error) != USERS:
            traceback.print_exception(error)
        code, _, said = first.partition(" ")
        return said, int(code)

    def told(self) -> bool:
        """Whether a worker has left its fault for the others to read."""
        return self.store.check(["fault"])

    def absent(self) -> list[int]:
        """Ranks that do not answer while there is time: until another's fault is told or this worker is told to leave."""
        self.store.set(f"here/{self.rank}", "")
        self.store.add("here", 1)
        deadline = time.monotonic() + ROLL_S
        while self.store.add("here", 0) < self.count and time.monotonic() < deadline:
            if self.told() or self.stop.signal:
                break
            time.sleep(0.1)
        return [rank for rank in range(self.count) if not self.store.check([f"here/{rank}"])]


def lost(error: BaseException) -> bool:
    """Whether it is an exchange that failed; gloo's errors are RuntimeErrors that name their source file."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def code_of(error: BaseException) -> int:
    return USERS if isinstance(error, UserError) or getattr(error, "errno", None) == errno.ENOSPC else 1


def sentence(error: BaseException) -> str:
    return " ".join((str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}").split())


def leave(code: object) -> NoReturn:
    """Ends the process with an exit code at once; what was printed is written out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def tell(error: BaseException, workers: Workers | None) -> int:
    """Leaves the cause of `error` where the launcher finds it, or says it if there is none; the exit code."""
    try:
        said, code = workers.cause(error) if workers else (sentence(error), code_of(error))
    except RuntimeError:  # the store is gone, with the launcher of the first worker
        said, code = f"rank {workers.rank} of {workers.count} lost the others: {sentence(error)}", LOST
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(Fault(said))
    else:
        print(f"error: {said}", file=sys.stderr)
    return code


def train(folder: Path, workers: Workers, patience_s: float, setting: Parallel) -> None:
    """Replicated: the whole model in each worker, of which the first keeps the checkpoint. The first holds the folder."""
    first, sharded = workers.rank == 0, setting.engine == "sharded"
    with checkpoint.lock(folder, patience_s) if first else nullcontext():
        run = load_run(folder)
        trainer = SpreadTrainer(folder, run, workers.device, setting) if sharded else Trainer(folder, run, workers.device)
        trainer.restore()
        if trainer.resumed and first:
            print(f"{trainer.run.run}: goes on from step {trainer.step} of {trainer.cfg.steps}", file=sys.stderr, flush=True)
        trainer.train(workers.stop)
        if first or sharded:
            trainer.write()


def arguments() -> argparse.Namespace:
    parser = options.parser(__doc__)
    parser.add_argument("folder", type=Path, help="run folder that holds config.yaml")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for another trainer of this run")
    add_options(parser)
    return parser.parse_args()


def main() -> None:
    args, workers = arguments(), None
    keep_memory()
    try:
        workers = Workers(args.device, args.timeout_s)
        workers.meet()
        train(args.folder, workers, args.patience, told(args))
        dist.destroy_process_group()
    except SystemExit as left:
        leave(left.code)
    except KeyboardInterrupt:
        leave(130)
    except BaseException as error:  # torch's CheckpointException is no Exception
        leave(tell(error, workers))
    leave(0)


if __name__ == "__main__":
    main()
