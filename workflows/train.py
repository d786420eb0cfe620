"""Trains one run, in one file that reads from top to bottom: python -m workflows.train results/cpu/runs/dense-xs-s0

Parse, build, loop, CSV. Batches are a function of the data seed and the step alone, so every architecture sees the same
ones in the same order and a resumed run sees what it would have seen. Training knows nothing of reports or workflows.
Above 300 lines, because a trainer is read as one.
"""

from __future__ import annotations

import datetime
import math
import os
import resource
import signal
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from evals.records import errors, options, schema, tensors
from evals.records.errors import UserError
from evals.records.provenance import machine, training_source
from evals.records.runs import RunConfig, load_run
from evals.records.shards import Shards, load_shards
from kernels.allocator import keep_memory
from models import arch_module
from models.balance import whole_batch
from workflows import checkpoint, health
from workflows.optim import Optimizers, clip_gradients, mean_over_workers

PROGRESS = ("step", "elapsed", "resumed", "rows", "health", "started")  # of a trainer, in its checkpoints


class Windows:
    """Non-overlapping windows of the training shard, shuffled and shifted anew each epoch by the data seed.

    They begin at multiples of `align`, which no document of a memory task crosses.

    Raises:
        UserError: the shard is shorter than one batch, or seq_len is no multiple of `align`.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int, align: int = 1):
        self.tokens, self.batch_size, self.seq_len, self.seed, self.align = tokens, batch_size, seq_len, seed, align
        if seq_len % align:
            raise UserError(
                f"seq_len {seq_len} is no multiple of {align}, at which the data is aligned; set data.align to a divisor"
            )
        self.count = (len(tokens) - 1) // seq_len - 1
        if self.count < batch_size:
            raise UserError(f"the training shard holds {len(tokens):,} tokens, less than one batch; prepare more text")
        self.epoch, self.order, self.offset = -1, None, 0

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of step `step`."""
        rows = []
        for index in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(index, self.count)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.epoch, self.order = epoch, rng.permutation(self.count)
                self.offset = int(rng.integers(self.seq_len // self.align)) * self.align
            start = self.offset + int(self.order[place]) * self.seq_len
            rows.append(self.tokens[start : start + self.seq_len + 1])
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


class Stop:
    """Turns SIGTERM, SIGINT and the death of the parent process into a flag that the loop looks at between steps.

    A workflow engine killed with -9 leaves its jobs behind; they save and leave, and a restart continues them.
    """

    def __init__(self):
        self.signal, self.parent = 0, os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number: int, _frame) -> None:
        self.signal = number

    def requested(self) -> int:
        """The signal to stop for, SIGHUP for an orphan, or 0."""
        return self.signal or (signal.SIGHUP if os.getppid() != self.parent else 0)


class Trainer:
    """One run from its config to its CSVs; `train()` continues from the folder's checkpoint if there is one."""

    def __init__(self, folder: Path, run: RunConfig, device: str):
        self.folder, self.run, self.cfg, self.device = folder, run, run.train, device
        self.rank, self.workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.workers != self.cfg.workers:
            raise UserError(f"{run.run} is set for {self.cfg.workers} workers, but {self.workers} run; start it with torchrun")
        torch.set_num_threads(self.cfg.threads)
        self.shards: Shards = load_shards(Path(run.data))
        sizes = self.cfg.batch_size, self.cfg.seq_len
        self.windows = Windows(self.shards.train, *sizes, run.seeds["data"], self.shards.align)
        torch.manual_seed(run.seeds["init"])
        self.model = run.model.build().to(device)
        torch.manual_seed(run.seeds["rest"])
        self.optimizers = Optimizers(self.model, run.train)
        self.reads = health.count_reads(self.model) if self.cfg.health_tokens else {}
        self.rows: list[dict] = []
        self.health: list[dict] = []
        self.step, self.elapsed, self.resumed = 0, 0.0, 0
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def autocast(self):
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.cfg.precision == "bf16")

    def restore(self) -> None:
        if not self.checkpoint.exists():
            return
        note = checkpoint.restore(self.checkpoint, self.model, self.optimizers, self.reads, self.device, self.identity())
        vars(self).update({name: note[name] for name in PROGRESS})
        self.resumed += 1

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have been made by to be continued."""
        source = training_source(arch_module(self.run.model.arch.name))
        return {"config": self.run.sha, "source": source, "data": self.shards.meta["sha256"]["train.bin"]}

    def save(self) -> None:
        if self.rank == 0:
            note = {name: getattr(self, name) for name in PROGRESS} | {"identity": self.identity()}
            checkpoint.save(self.checkpoint, self.model, self.optimizers, self.reads, note)

    def train(self, stop: Stop) -> None:
        """Runs to the last step, or saves and leaves with 128 + signal when told to stop.

        Raises:
            UserError: the loss is not finite; names the step and the last good checkpoint.
        """
        cfg, steps = self.cfg, self.cfg.steps
        evaluate_at = {round(steps * (i + 1) / cfg.evaluate) for i in range(cfg.evaluate)}
        clock, said, saved = time.perf_counter(), 0.0, time.monotonic()
        while self.step < steps:
            loss, aux, norm, lr = self.update()
            now = time.perf_counter()
            speed, clock = cfg.batch_size * cfg.seq_len / (now - clock), now
            self.elapsed += cfg.batch_size * cfg.seq_len / speed
            self.step += 1
            self.log("train", "", loss=loss, aux_loss=aux, lr=lr, grad_norm=norm, tokens_per_s=speed)
            if self.rank == 0 and (now - said > 5 or self.step == steps):
                said = now
                left = (steps - self.step) * self.elapsed / self.step
                print(
                    f"{self.run.run}  step {self.step}/{steps}  loss {loss:.3f}  {speed:,.0f} tok/s  "
                    f"{int(left) // 60}:{int(left) % 60:02d} left",
                    flush=True,
                )
            if self.step in evaluate_at and self.rank == 0:
                self.evaluate(lr)
                if self.step == steps:
                    self.score(lr)
                clock = time.perf_counter()
            if self.step < steps and (reason := self.agreed(stop.requested())):
                self.save()
                if self.workers > 1:
                    dist.barrier()  # torchrun kills the others soon after the first one has left
                name = signal.Signals(reason).name
                if self.rank == 0:
                    print(f"{self.run.run}: stopped by {name}; saved at step {self.step} of {steps}", file=sys.stderr)
                raise SystemExit(128 + reason)
            if time.monotonic() - saved >= cfg.checkpoint_s and self.step < steps:
                self.save()
                saved, clock = time.monotonic(), time.perf_counter()

    def agreed(self, reason: int) -> int:
        """The signal that any worker was told to stop by: a signal may reach one of them, but all leave after the same step."""
        if self.workers == 1:
            return reason
        flag = torch.tensor(reason, device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)

    def update(self) -> tuple[float, float, float, float]:
        """One optimizer step; returns loss, auxiliary loss, gradient norm and learning rate."""
        tokens_BT, targets_BT = (t.to(self.device) for t in self.windows.batch(self.step))
        lr = self.optimizers.set_lr(self.step)
        self.model.train()
        self.model.refresh()
        loss, aux = self.gradients(tokens_BT, targets_BT)
        norm = clip_gradients(self.model, self.cfg.grad_clip)
        values = (loss.item(), aux.item(), norm.item(), lr)
        if not math.isfinite(sum(values)):
            good = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "none was saved yet"
            raise UserError(
                f"{self.run.run}: loss {values[0]}, gradient norm {values[2]} at step {self.step + 1}; {good}; "
                f"lower lr ({self.cfg.lr}) or raise warmup"
            )
        self.optimizers.step()
        return values

    def gradients(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves the mean gradient over the batch in the parameters; returns mean loss and auxiliary loss.

        Each worker takes its rows of the batch, in pieces of `micro_batch`.
        """
        share = self.cfg.batch_size // self.workers
        mine = slice(self.rank * share, (self.rank + 1) * share)
        piece = self.cfg.micro_batch or share
        sums = torch.zeros(2, device=self.device)

        def forward(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with self.autocast():
                return self.model.loss(*pair, self.cfg.precision)

        pieces = list(zip(tokens_BT[mine].split(piece), targets_BT[mine].split(piece), strict=True))
        with whole_batch(self.model, pieces, forward):
            for pair in pieces:
                loss, aux = forward(pair)
                ((loss + aux) * (piece / share)).backward()
                sums += torch.stack((loss.detach(), aux.detach())).float() * (piece / share)
        if self.workers > 1:
            dist.all_reduce(sums)
            sums /= self.workers
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = mean_over_workers(parameter.grad, self.workers)
        return sums[0], sums[1]

    def log(self, split: str, source: str, **values: float) -> None:
        tokens = self.step * self.cfg.batch_size * self.cfg.seq_len
        place = {"run": self.run.run, "step": self.step, "tokens": tokens, "split": split, "source": source}
        self.rows.append(place | values | {"elapsed_s": self.elapsed})

    @torch.no_grad()
    def evaluate(self, lr: float) -> None:
        """One point of the curve: validation loss on an eighth of the tokens, the same windows each time; and health."""
        self.losses("validation", self.shards.validation, self.cfg.validation_tokens // 8, lr)
        if self.cfg.health_tokens:
            sample = next(iter(self.shards.validation.values()))
            rows = health.measure(self.model, sample, self.cfg.health_tokens, self.device)
            self.health += [{"run": self.run.run, "step": self.step} | row for row in rows]

    @torch.no_grad()
    def score(self, lr: float) -> None:
        """The finished model's losses: on validation, by which recipes are chosen, and on test, which is reported."""
        self.losses("validation-final", self.shards.validation, self.cfg.validation_tokens, lr)
        self.losses("test", self.shards.test, self.cfg.validation_tokens, lr)

    def losses(self, split: str, heldout: dict[str, np.ndarray], wanted: int, lr: float) -> None:
        """Logs the loss of each source, and of the headline sources weighted by their shares of the training tokens."""
        self.model.eval()
        self.model.refresh()
        losses = {name: self.loss_on(tokens, wanted) for name, tokens in heldout.items()}
        losses["all"] = self.headline(losses, "tokens")
        for name, loss in losses.items():
            self.log(split, name, loss=loss, lr=lr)

    def headline(self, values: dict[str, float], unit: str) -> float:
        """Mean of the headline sources' values, weighted by their training tokens or bytes."""
        sources = self.shards.meta["sources"]
        weights = {name: sources[name][unit]["train"] for name in values if sources[name].get("headline", True)}
        return sum(values[name] * weight for name, weight in weights.items()) / sum(weights.values())

    def loss_on(self, tokens: np.ndarray, wanted: int) -> float:
        """Mean loss on the first windows of `tokens`, about `wanted` tokens."""
        seq_len = self.cfg.seq_len
        count = min(max(1, wanted // seq_len), (len(tokens) - 1) // seq_len)
        if count < 1:
            raise UserError(f"{self.run.data}: a held-out source is shorter than seq_len {seq_len}; prepare more text")
        total = 0.0
        for first in range(0, count, self.cfg.batch_size):
            starts = range(first, min(first + self.cfg.batch_size, count))
            batch = np.stack([tokens[s * seq_len : (s + 1) * seq_len + 1] for s in starts]).astype(np.int64)
            batch = torch.from_numpy(batch).to(self.device)
            with self.autocast():
                loss, _ = self.model.loss(batch[:, :-1], batch[:, 1:], self.cfg.precision)
            total += loss.item() * len(starts)
        return total / count

    def single_tokens(self) -> None:
        """`tokens.safetensors`: what `health.single_tokens` finds, 100 kB at most; its note says which test tokens they are."""
        self.model.eval()
        self.model.refresh()
        with self.autocast():
            found, sources = health.single_tokens(
                self.model, self.reads, self.shards, self.cfg.seq_len, self.device, self.cfg.precision
            )
        tensors.write_tensors(self.folder / "tokens.safetensors", found, self.identity() | {"sources": sources})

    def write(self) -> None:
        """The run's CSVs, its losses on single tokens and its final weights; the checkpoint is no longer needed then."""
        if self.cfg.health_tokens:
            self.single_tokens()
        tensors.write_tensors(self.folder / "model.safetensors", dict(self.model.state_dict()), self.identity())
        schema.write(self.folder / "health.csv", "health", self.health)
        schema.write(self.folder / "train.csv", "train", self.rows)
        schema.write(self.folder / "runs.csv", "runs", [self.summary()])
        self.checkpoint.unlink(missing_ok=True)

    def summary(self) -> dict:
        cost, run = self.run.model.cost().without("embedding"), self.run
        sources = self.shards.meta["sources"]

        def scored(row_split: str, split: str) -> tuple[float, float]:
            """Nats per token and bits per byte of the headline sources."""
            losses = {row["source"]: row["loss"] for row in self.rows if row["split"] == row_split}
            bits = {
                name: losses[name] / math.log(2) * sources[name]["tokens"][split] / sources[name]["bytes"][split]
                for name in losses
                if name != "all"
            }
            return losses["all"], self.headline(bits, "bytes")

        val_loss, val_bpb = scored("validation-final", "validation")
        test_loss, test_bpb = scored("test", "test")
        steps = [row for row in self.rows if row["split"] == "train"]
        tail = [row["loss"] for row in steps]
        identity = self.identity()
        return {
            "run": run.run,
            "preset": run.preset,
            "arch": run.arch,
            "size": run.size,
            "seed": run.seed,
            "d_model": run.model.d_model,
            "n_layers": run.model.n_layers,
            "params": cost.params,
            "active_params": cost.active_params,
            "sparse_params": cost.sparse_params,
            "flops_per_token": cost.flops,
            "compute_share_memory": cost.memory_share,
            "tokens": self.step * self.cfg.batch_size * self.cfg.seq_len,
            "steps": self.step,
            "train_loss": statistics.fmean(tail[-max(1, len(tail) // 10) :]),
            "val_loss": val_loss,
            "val_bpb": val_bpb,
            "test_loss": test_loss,
            "test_bpb": test_bpb,
            "tokens_per_s": statistics.median(row["tokens_per_s"] for row in steps),
            "core_seconds": self.elapsed * self.workers * (self.cfg.threads if self.device == "cpu" else 1),
            "wall_s": self.elapsed,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "precision": self.cfg.precision,
            "value_optimizer": self.cfg.value_optimizer if self.model.tables() else None,
            "threads": self.cfg.threads,
            "status": "finished",
            "config_sha": identity["config"],
            "source_sha": identity["source"],
            "data_sha": identity["data"][:12],
            **{f"seed_{name}": seed for name, seed in run.seeds.items()},
            "started": self.started,
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "resumed": self.resumed,
            **machine(self.device),
        }


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("folder", type=Path, help="run folder that holds config.yaml")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for another trainer of this run")
    args = parser.parse_args()
    stop, rank, device = Stop(), int(os.environ.get("RANK", 0)), args.device
    keep_memory()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        device = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    with checkpoint.lock(args.folder, args.patience) if rank == 0 else nullcontext():
        trainer = Trainer(args.folder, load_run(args.folder), device)
        trainer.restore()
        trainer.train(stop)
        if rank == 0:
            trainer.write()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    errors.run(main)
