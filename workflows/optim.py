"""Parameter groups, learning-rate schedules and the row-wise update of value tables."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn

from evals.records.recipe import Train


def cosine(step: int, cfg: Train) -> float:
    """Learning-rate factor of step `step` (0-based): linear warm-up, then a cosine from 1 to `final_lr` (P1 table 4)."""
    warmup = max(1, round(cfg.warmup * cfg.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, cfg.steps - warmup)
    return cfg.final_lr + (1 - cfg.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def value_factor(step: int, cfg: Train, multiplier: float, decay_fraction: float, schedule: str) -> float:
    """Learning-rate factor of value tables.

    "decay" (P1 section 3.2, official code): the backbone's cosine times a multiplier that falls linearly from `multiplier`
    to 1 over `decay_fraction` of the steps; 0 keeps it. "constant" (Lample et al., Memory+): `multiplier` times the peak
    learning rate from the first step to the last.
    """
    if schedule == "constant":
        return multiplier
    left = max(0.0, 1 - step / (cfg.steps * decay_fraction)) if decay_fraction else 1.0
    return cosine(step, cfg) * (1 + (multiplier - 1) * left)


@torch.no_grad()
def clip_gradients(model: nn.Module, largest: float) -> torch.Tensor:
    """Scales all gradients so that their common norm is at most `largest`; returns the norm before. Knows sparse ones."""
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # layers that share a table each add to it
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = nn.utils.get_total_norm(gradients)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm


def mean_over_workers(grad: torch.Tensor, workers: int) -> torch.Tensor:
    """The mean of a gradient over all workers, in every one of them.

    The rows of a sparse one are gathered and summed, for NCCL reduces dense tensors only.
    """
    if not grad.is_sparse:
        dist.all_reduce(grad)
        return grad.div_(workers)
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(workers)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most), values.new_zeros(most, *values.shape[1:])
    parts = []
    for mine, room in zip((rows, values), padded, strict=True):
        room[: len(mine)] = mine
        everyone = [torch.empty_like(room) for _ in range(workers)]
        dist.all_gather(everyone, room)
        parts.append(torch.cat([one[:count] for one, count in zip(everyone, counts, strict=True)]))
    return torch.sparse_coo_tensor(parts[0][None], parts[1] / workers, grad.shape).coalesce()


class RowAdamW(torch.optim.Optimizer):
    """AdamW that updates only the rows in a sparse gradient: moments, bias correction and decay of others stand still.

    Equal to AdamW when every step touches every row; otherwise untouched rows neither drift along old moments nor decay.
    Expects coalesced sparse gradients of shape (rows, width).
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                grad = parameter.grad.coalesce()
                rows, grad_RC = grad.indices()[0], grad.values()
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(parameter.shape[0], device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                step_R1 = (state["step"][rows] + 1)[:, None]
                first_RC = state["exp_avg"][rows].lerp_(grad_RC, 1 - beta1)
                second_RC = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(grad_RC, grad_RC, value=1 - beta2)
                state["step"][rows] = step_R1[:, 0]
                state["exp_avg"][rows] = first_RC
                state["exp_avg_sq"][rows] = second_RC
                denominator_RC = (second_RC / (1 - beta2**step_R1)).sqrt_().add_(group["eps"])
                kept_RC = parameter[rows].mul_(1 - group["lr"] * group["weight_decay"])
                parameter[rows] = kept_RC - group["lr"] * (first_RC / (1 - beta1**step_R1)) / denominator_RC


# Whether a group's learning rate falls as base_width / d_model (with the decay per step kept), and why.
WIDTH_RULE = {
    "hidden": True,  # matrices between widths: muP for Adam, Yang et al. 2022 (arXiv 2203.03466), table 8
    "router": True,  # logits over a fixed number of experts from d_model inputs: Malasnicki et al. 2025 (arXiv 2508.09752)
    "embedding": False,  # one-hot inputs, and the tied head, whose logits carry the factor instead (2203.03466, table 8)
    "vector": False,  # norm gains, taps, cores: nothing is summed over the width
    "values": False,  # rows picked by address, like an embedding's; their own multiplier is P1's, P2's or Lample's
    "pre_values": True,  # rows that d_pre_value inputs are multiplied with
}


def parameter_roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every parameter's key into `WIDTH_RULE`."""
    roles = {}
    for path, module in model.named_modules():
        values = getattr(module, "value_names", ())
        for name, parameter in module.named_parameters(recurse=False):
            if name in values:
                role = "pre_values" if name.startswith("pre_") else "values"
            elif isinstance(module, nn.Embedding) or path == "head":
                role = "embedding"
            elif parameter.ndim < 2 or name in getattr(module, "width_free", ()):
                role = "vector"
            else:
                role = "router" if path.endswith("router") else "hidden"
            roles[parameter] = role
    return roles


def build_optimizers(model: nn.Module, cfg: Train) -> list[torch.optim.Optimizer]:
    """AdamW over one group for every role and rank: vectors do not decay, value tables have their own learning rate.

    Every group carries `factor`, its schedule by name, and `scale`, base_width / d_model where its role asks for it; decay
    is divided by it, so that a step shrinks weights equally at every width.
    """
    for table in model.tables():
        table.gradient = cfg.value_optimizer
    groups: dict[tuple[str, bool], dict] = {}
    for parameter, role in parameter_roles(model).items():
        if parameter.requires_grad:
            scale = model.cfg.width_scale if WIDTH_RULE[role] else 1.0
            decay = cfg.weight_decay / scale if parameter.ndim >= 2 else 0.0
            factor = "value" if role in ("values", "pre_values") else "base"
            fresh = {"params": [], "role": role, "scale": scale, "factor": factor, "weight_decay": decay}
            groups.setdefault((role, parameter.ndim >= 2), fresh)["params"].append(parameter)
    adam = {"lr": cfg.lr, "betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps}
    rows = [group for group in groups.values() if group["factor"] == "value" and cfg.value_optimizer == "rows"]
    rest = [group for group in groups.values() if not any(group is row for row in rows)]
    return [torch.optim.AdamW(rest, fused=True, **adam), *([RowAdamW(rows, **adam)] if rows else [])]


class Optimizers:
    """Several optimizers behind one face, with the schedules of their groups."""

    def __init__(self, model: nn.Module, cfg: Train):
        self.cfg, self.arch = cfg, model.cfg.arch
        self.parts = build_optimizers(model, cfg)

    def set_lr(self, step: int) -> float:
        base = cosine(step, self.cfg)
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                factor = base
                if group["factor"] == "value":
                    arch = self.arch
                    factor = value_factor(
                        step, self.cfg, arch.value_lr_multiplier, arch.value_lr_decay_fraction, arch.value_lr_schedule
                    )
                group["lr"] = self.cfg.lr * factor * group["scale"]
        return self.cfg.lr * base

    def step(self) -> None:
        for optimizer in self.parts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @property
    def state(self) -> dict:
        return {p: state for optimizer in self.parts for p, state in optimizer.state.items()}

    def owner(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        return next(o for o in self.parts for g in o.param_groups if any(p is parameter for p in g["params"]))
