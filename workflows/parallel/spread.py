"""Spreads a model over the workers of a process group: the dense part by FSDP2, value tables and experts in parts of their own.

Blocks' attention and FFN, memory layers, and what is left (embedding, last norm, head) are gathered when they run, let go
after, and gathered again for their gradients, which are averaged where a parameter's part lies. Tables and experts are never
gathered (`tables.py`, `experts.py`): their gradients are sums over all workers' tokens, made means by `finish_gradients`.
Parameters that are read outside a forward pass (Tucker cores, whose singular vectors every step needs) lie on every worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from models.moe import MoE
from models.value_table import Table
from workflows.parallel.experts import SpreadExperts
from workflows.parallel.settings import Parallel
from workflows.parallel.tables import WAYS, split_columns, split_rows


@dataclass(frozen=True)
class Part:
    """How a worker's part of a tensor lies in the whole one: `view` of the whole, cut along `dim`; `flat` is the shape it has.

    A table by dimension is cut within each core's slice: viewed as (N, h, C/h), along the last.
    """

    view: tuple[int, ...]
    dim: int
    flat: tuple[int, ...]

    def as_dtensor(self, local: Tensor, mesh: DeviceMesh) -> DTensor:
        """The whole tensor, as viewed, of which each worker gives its part."""
        lead = self.view[: self.dim]
        local = local.reshape(*lead, -1, *self.view[self.dim + 1 :])
        stride = torch.empty(self.view, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(self.dim)], run_check=False, shape=torch.Size(self.view), stride=stride)


class Spreading:
    """A model in parts, and what holds them together.

    Args:
        model: whole, in main memory; what becomes of it lies on the mesh's device.
        precision: "bf16" sends what tables and experts are asked and answer in bfloat16.

    Raises:
        UserError: tables by dimension whose width does not split over the workers.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh, setting: Parallel, precision: str):
        self.model, self.mesh, self.setting = model, mesh, setting
        self.rank, self.workers, self.device = mesh.get_local_rank(), mesh.size(), mesh.device_type
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.parts: dict[nn.Parameter, Part] = {}
        self.reads: dict[str, Tensor] = {}
        self.counting = False
        tables = {module: name for name, module in model.named_modules() if isinstance(module, Table)}
        whole_rows = {table: len(table.values_NC) for table in tables}
        for memory in model.memories:
            self.split_table(memory.table, memory.cfg.n_cores)
        for memory in model.memories:
            WAYS[setting.values](memory, whole_rows[memory.table], self.dtype, self.count)
        for table, name in tables.items():
            self.reads[name] = torch.zeros(len(table.values_NC), dtype=torch.int64, device=table.values_NC.device)
        self.names = tables
        for module in model.modules():
            if isinstance(module, MoE):
                self.split_experts(module)
        self.replicated = [p for m in model.modules() if m is not model and hasattr(m, "refresh") for p in m.parameters()]
        for parameter in self.replicated:
            parameter.data = parameter.data.to(self.device)
        if setting.recompute:
            self.recompute()
        self.shard_rest()

    def cut(self, owner: nn.Module, name: str, local: Tensor, part: Part) -> None:
        whole: nn.Parameter = getattr(owner, name)
        mine = nn.Parameter(local.to(self.device), requires_grad=whole.requires_grad)
        setattr(owner, name, mine)
        self.parts[mine] = part

    def split_table(self, table: Table, cores: int) -> None:
        """Cuts the values and pre-values of a table that is still whole."""
        for name in table.value_names:
            whole_NC = getattr(table, name)
            if whole_NC in self.parts:  # of a layer before, which shares it
                return
            (N, C), h = whole_NC.shape, cores if name == "values_NC" else 1
            if self.setting.values == "number":
                self.cut(table, name, split_rows(whole_NC.detach(), self.rank, self.workers), Part((N, C), 0, (N, C)))
            else:
                local = split_columns(whole_NC.detach(), h, self.rank, self.workers, f"{type(table).__name__}.{name}")
                self.cut(table, name, local, Part((N, h, C // h), 2, (N, C)))

    def split_experts(self, moe: MoE) -> None:
        for name in ("up_EDF", "down_EFD"):
            whole = getattr(moe, name)
            shape = tuple(whole.shape)
            self.cut(moe, name, split_rows(whole.detach(), self.rank, self.workers), Part(shape, 0, shape))
        SpreadExperts(moe, self.dtype)

    def recompute(self) -> None:
        """Activations of attention, FFN and memory layers are not kept but made again when their gradients are taken.

        Kernels of experts ask for what they saved twice, which only the re-entrant kind allows.
        """
        layers = [layer for block in self.model.blocks for layer in (block.attention, block.ffn)]
        for layer in (*layers, *self.model.memories):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=isinstance(layer, MoE))

    def shard_rest(self) -> None:
        bf16 = torch.bfloat16 if self.setting.gather == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        shard = partial(fully_shard, mesh=self.mesh, mp_policy=policy, ignored_params={*self.parts, *self.replicated})
        # Its outputs are views; the model adds them to the residual stream out of place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        for block in self.model.blocks:
            shard([block.attention_norm, block.attention, block.ffn_norm, block.ffn])
        for memory in self.model.memories:
            shard(memory)
        shard(self.model)
        register_fsdp_forward_method(self.model, "loss")

    def count(self, table: Table, row_X: Tensor) -> None:
        """Adds one for each time that rows of this worker's part are read in training, while `counting`."""
        if self.counting and table.training and torch.is_grad_enabled():
            row_X = row_X.flatten()
            self.reads[self.names[table]].scatter_add_(0, row_X, torch.ones_like(row_X))

    def by_row(self, parameter: nn.Parameter, number_R: Tensor) -> Tensor:
        """One number for each row of a table that lies here, as those of the whole table: in parts where they are by number."""
        rows = self.parts[parameter].flat[0]
        return Part((rows,), 0, (rows,)).as_dtensor(number_R, self.mesh) if self.setting.values == "number" else number_R

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Makes means over workers of what FSDP has not averaged: sums in the parts, and gradients of what lies everywhere."""
        for parameter in self.parts:
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()
                    parameter.grad.values().div_(self.workers)
                else:
                    parameter.grad.div_(self.workers)
        small = [parameter.grad for parameter in self.replicated if parameter.grad is not None]
        if small:
            flat = torch.cat([grad.flatten() for grad in small])
            dist.all_reduce(flat)
            for grad, mean in zip(small, (flat / self.workers).split([grad.numel() for grad in small]), strict=True):
                grad.copy_(mean.view_as(grad))

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """`optim.clip_gradients` over all workers' parts; returns the norm before."""
        mine, everywhere = [], []
        for parameter in self.model.parameters():
            if (grad := parameter.grad) is None:
                continue
            grad = grad.to_local() if isinstance(grad, DTensor) else grad.values() if grad.is_sparse else grad
            (everywhere if any(parameter is other for other in self.replicated) else mine).append(grad)
        squares = torch.stack(
            [nn.utils.get_total_norm(part).square() if part else torch.zeros(()) for part in (mine, everywhere)]
        )
        dist.all_reduce(squares[:1])
        norm = squares.sum().sqrt()
        torch._foreach_mul_([grad for grad in (*mine, *everywhere) if grad.numel()], (largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the dense part lies whole on every worker, so that layers may be asked for more than their forward pass."""
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not self.model, recurse=False)
                unit.reshard()


def split_groups(optimizer: torch.optim.Optimizer) -> None:
    """Tensors that FSDP spreads and others get groups of their own, which one fused step cannot mix."""
    for group in list(optimizer.param_groups):
        kinds: dict[bool, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            kinds.setdefault(isinstance(parameter, DTensor), []).append(parameter)
        first, *others = kinds.values()
        group["params"] = first
        optimizer.param_groups += [{**group, "params": other} for other in others]
