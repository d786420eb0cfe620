"""The trainer of a spread run: `workflows.train`'s, with a model in parts, whose every forward pass is everybody's.

Losses, tables and scores are those of one worker but for rounding: batches are split over workers, balance losses are taken
over the global batch, held-out windows are shared out, and what is written at the end is one file as always.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from evals.records.errors import UserError
from evals.records.provenance import WRITERS, stage_source
from evals.records.runs import RunConfig
from models import arch_module
from models.balance import whole_batch
from workflows.optim import Optimizers
from workflows.parallel import store
from workflows.parallel.settings import Parallel
from workflows.parallel.spread import Spreading, split_groups
from workflows.train import PROGRESS, Stop, Trainer


class SpreadTrainer(Trainer):
    """One run on all workers of the process group; every method is called by all of them together."""

    def __init__(self, folder: Path, run: RunConfig, device: str, setting: Parallel):
        super().__init__(folder, run, "cpu")  # whole, until it is spread
        self.device = device
        for table in self.model.tables():  # reads are counted where rows lie
            vars(table).pop("read", None)
        mesh = init_device_mesh(device.split(":")[0], (self.workers,))
        self.spreading = Spreading(self.model, mesh, setting, self.cfg.precision)
        self.spreading.counting = bool(self.cfg.health_tokens)
        self.optimizers = Optimizers(self.model, run.train)
        for optimizer in self.optimizers.parts:
            split_groups(optimizer)
        store.allocate(self.optimizers)
        self.store, self.wish = store.Store(folder, setting.async_save), False
        steps = self.cfg.steps
        self.evaluate_at = {round(steps * (i + 1) / self.cfg.evaluate) for i in range(self.cfg.evaluate)}

    def restore(self) -> None:
        if (path := self.store.latest()) is None:
            return
        note = self.store.restore(path, store.state(self.spreading, self.optimizers), self.made_by())
        vars(self).update({name: note[name] for name in PROGRESS})
        self.resumed += 1

    def made_by(self) -> dict[str, str]:
        """`identity`, but for the number of workers, which may change; and the code that spreads the run."""
        alike = replace(self.run, train=replace(self.cfg, workers=1, micro_batch=0))
        spread = stage_source("spread", [arch_module(self.run.model.arch.name)], WRITERS)
        return self.identity() | {"config": alike.sha, "spreading": spread}

    def save(self) -> None:
        """Wishes for a checkpoint; clocks differ, so workers make it when they next agree."""
        self.wish = True

    def keep(self) -> None:
        note = {name: getattr(self, name) for name in PROGRESS} | {"identity": self.made_by()}
        self.store.save(self.step, store.state(self.spreading, self.optimizers), note)

    def train(self, stop: Stop) -> None:
        super().train(stop)
        self.take_part()
        self.store.finish()

    def take_part(self) -> None:
        """The first worker evaluates and scores within its loop; the others with it, before they go on."""
        if self.rank and self.step in self.evaluate_at:
            self.evaluate(0.0)
            if self.step == self.cfg.steps:
                self.score(0.0)

    def agreed(self, reason: int) -> int:
        self.take_part()
        flags = torch.tensor([reason, self.wish], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        reason, wish = flags.tolist()
        if reason or wish:
            self.wish = False
            self.keep()
        if reason:
            self.store.finish()
        return reason

    def update(self) -> tuple[float, float, float, float]:
        tokens_BT, targets_BT = (t.to(self.device) for t in self.windows.batch(self.step))
        lr = self.optimizers.set_lr(self.step)
        self.model.train()
        self.model.refresh()
        loss, aux = self.gradients(tokens_BT, targets_BT)
        norm = self.spreading.clip(self.cfg.grad_clip)
        values = (loss.item(), aux.item(), norm.item(), lr)
        if not np.isfinite(values).all():
            path = self.store.latest()
            good = f"the last good checkpoint is {path}" if path else "none was saved yet"
            raise UserError(
                f"{self.run.run}: loss {values[0]}, gradient norm {values[2]} at step {self.step + 1}; {good}; "
                f"lower lr ({self.cfg.lr}) or raise warmup"
            )
        self.optimizers.step()
        return values

    def gradients(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
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
                self.spreading.counting = bool(self.cfg.health_tokens)
                loss, aux = forward(pair)
                self.spreading.counting = False  # what is computed again for gradients is not read again
                ((loss + aux) * (piece / share)).backward()
                sums += torch.stack((loss.detach(), aux.detach())).float() * (piece / share)
        dist.all_reduce(sums)
        self.spreading.finish_gradients()
        return (sums / self.workers).unbind()

    @torch.no_grad()
    def evaluate(self, lr: float) -> None:
        # Health asks layers in float32, which weights gathered in bfloat16 cannot answer.
        half = torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.spreading.setting.gather == "bf16")
        with self.spreading.gathered(), half:
            super().evaluate(lr)

    def loss_on(self, tokens: np.ndarray, wanted: int) -> float:
        """As one worker's, each taking every P-th window; who has none left repeats one, for all run as often."""
        seq_len, P = self.cfg.seq_len, self.workers
        count = min(max(1, wanted // seq_len), (len(tokens) - 1) // seq_len)
        if count < 1:
            raise UserError(f"{self.run.data}: a held-out source is shorter than seq_len {seq_len}; prepare more text")
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        each = max(1, self.cfg.batch_size // P)
        for first in range(0, count, each * P):
            last = min(first + each * P, count)
            size = -(-(last - first) // P)
            mine = range(first + self.rank * size, min(first + (self.rank + 1) * size, last))
            starts = mine or range(first, first + 1)
            batch = np.stack([tokens[s * seq_len : (s + 1) * seq_len + 1] for s in starts]).astype(np.int64)
            batch_BT = torch.from_numpy(batch).to(self.device)
            batch_BT = batch_BT[torch.arange(size, device=self.device).clamp(max=len(starts) - 1)]
            targets_BT = batch_BT[:, 1:].clone()
            targets_BT[len(mine) :] = -100
            with self.autocast():
                loss, _ = self.model.loss(batch_BT[:, :-1], targets_BT, self.cfg.precision)
            if mine:
                total += loss * len(mine)
        dist.all_reduce(total)
        return total.item() / count

    def write(self) -> None:
        """What one worker writes, by the first, which holds the whole model in main memory for it."""
        state, reads = store.whole(self.spreading), store.whole_reads(self.spreading)
        if self.rank == 0:
            self.model, self.reads, self.device = self.run.model.build(), reads, "cpu"
            self.model.load_state_dict(state)
            super().write()
        self.store.clear()
