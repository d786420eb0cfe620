"""Copies of a trained model that learn in one of the ways: all of it, LoRA's adapters, or chosen rows of its value tables."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evals.forgetting import slots
from evals.forgetting.settings import WARMUP, Way
from models.moe import MoE
from models.transformer import Transformer


@dataclass
class Pupil:
    """A model that is being taught; `trained` counts the parameters that may change."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    trained: int

    def __post_init__(self) -> None:
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
        self.learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def step(self, *batches: tuple[Tensor, Tensor]) -> float:
        """One step on the summed losses of batches of tokens and targets (B, T), gradients clipped to a norm of 1; that sum."""
        self.model.train()
        self.model.refresh()
        device, total = self.model.embedding.weight.device, 0.0
        for tokens_BT, targets_BT in batches:
            loss, aux = self.model.loss(tokens_BT.to(device), targets_BT.to(device))
            (loss + aux).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return total


def pupil(model: Transformer, way: Way, rate: float, rank: int, rows: dict[str, Tensor], seed: int) -> Pupil:
    """A copy of `model` that learns by `way`: constant rate after a warm-up, no weight decay, which forgets by itself.

    Args:
        rank: of LoRA's adapters.
        rows: of each value table, for the way "slots".
        seed: of the adapters' initialisation.
    """
    copy = deepcopy(model)
    if way.name == "slots":
        learning = slots.only(copy, rows)
        width = {name: table.values_NC.shape[1] for name, table in slots.tables(copy).items()}
        trained = sum(len(rows[name]) * width[name] for name in rows)
    else:
        if way.name == "lora":
            torch.manual_seed(seed)
            adapted(copy, rank)
        learning = [parameter for parameter in copy.parameters() if parameter.requires_grad]
        trained = sum(parameter.numel() for parameter in learning)
    kind: Any = torch.optim.AdamW if way.optimizer == "adamw" else torch.optim.SGD
    return Pupil(copy, kind(learning, lr=rate, weight_decay=0.0), trained)


def adapted(model: Transformer, rank: int) -> None:
    """Puts LoRA's adapters (Hu et al. 2021, by `peft`) beside every linear map of the blocks and memories, experts included.

    Routers, whose weight is used as it is, norms, embedding and value tables stay as they are.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not _apart(name)]
    moe = [name for name, module in model.named_modules() if isinstance(module, MoE)]
    experts = [f"{name}.{weight}" for name in moe for weight in ("up_EDF", "down_EFD")]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear, target_parameters=experts or None)
    inject_adapter_in_model(config, model)


def _apart(name: str) -> bool:
    return name == "head" or name.endswith("router")
