"""Parameter groups, learning-rate schedules and the row-wise update of value tables."""

from __future__ import annotations

import math

import torch
from torch import nn

from workflows.presets import Train


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


def build_optimizers(model: nn.Module, cfg: Train) -> list[torch.optim.Optimizer]:
    """AdamW over matrices (with decay), vectors (without) and value tables (with their own learning rate).

    Every parameter group carries `factor`, its learning-rate schedule by name.
    """
    for table in model.tables():
        table.gradient = cfg.value_optimizer
    values = {id(p): p for p in model.value_parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in values]
    adam = {"lr": cfg.lr, "betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps}
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": cfg.weight_decay, "factor": "base"},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "factor": "base"},
    ]
    tables = {"params": [p for p in values.values() if p.requires_grad], "factor": "value"}
    tables["weight_decay"] = cfg.weight_decay
    if not tables["params"]:
        return [torch.optim.AdamW(groups, fused=True, **adam)]
    if cfg.value_optimizer == "dense":
        return [torch.optim.AdamW([*groups, tables], fused=True, **adam)]
    return [torch.optim.AdamW(groups, fused=True, **adam), RowAdamW([tables], **adam)]


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
                group["lr"] = self.cfg.lr * factor
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
