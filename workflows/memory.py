"""What one GPU holds while it trains, estimated: everything replicated, or in parts (workflows/parallel)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from evals.access.partition import WAYS, Lookup
from evals.records.runs import RunConfig
from models.memory_config import MemoryConfig
from models.transformer import ModelConfig
from workflows.parallel.settings import Parallel

USABLE = 0.9  # of a GPU's memory; the CUDA context and fragmentation take the rest
# Bytes saved for the backward pass per token, layer and unit of width under bf16 autocast, the most of six architectures
# (MoE-8; dense models save two thirds of it). A test holds it to what autograd saves.
ACTIVATION_BYTES = 140
TRAINED_AS = {"number": "pooled", "dimension": "dimension"}  # `Parallel.values` -> the way of evals/access/partition.py


def micro_tokens(run: RunConfig) -> int:
    """Tokens that a worker takes through the model at a time."""
    return (run.train.micro_batch or run.train.batch_size // run.train.workers) * run.train.seq_len


def replicated_bytes(run: RunConfig) -> float:
    """Memory of one worker that holds everything, in bytes.

    Weights, gradients and two moments in float32, 4 bytes each, but of value tables under `value_optimizer: rows` only the
    gradients of rows that a micro-batch reads; a bf16 copy of all that is multiplied; activations of one micro-batch.
    """
    train, cost, tokens = run.train, run.model.cost(), micro_tokens(run)
    values = [part for part in cost.parts if part.name == "values"]
    tables = sum(part.params for part in values)
    touched = sum(part.rows_read(tokens, "worst") * part.width for part in values)
    gradients = cost.params - tables + (touched if train.value_optimizer == "rows" else tables)
    low = train.precision == "bf16"
    activations = ACTIVATION_BYTES * tokens * run.model.n_layers * run.model.d_model * (1 if low else 2)
    return 12 * cost.params + 4 * gradients + (2 * (cost.params - tables) if low else 0) + activations


@dataclass(frozen=True)
class Sized:
    """A model's parameters by what becomes of them when it is spread."""

    cfg: ModelConfig

    @cached_property
    def built(self) -> torch.nn.Module:
        with torch.device("meta"):
            return self.cfg.build()

    @cached_property
    def tables(self) -> int:
        """Values and pre-values."""
        owners = [module for module in self.built.modules() if hasattr(module, "value_names")]
        return sum(getattr(owner, name).numel() for owner in owners for name in owner.value_names)

    @cached_property
    def experts(self) -> int:
        return sum(p.numel() for name, p in self.built.named_parameters() if name.endswith(("up_EDF", "down_EFD")))

    @cached_property
    def dense(self) -> int:
        return sum(p.numel() for p in self.built.parameters()) - self.tables - self.experts

    @cached_property
    def addresses(self) -> int:
        """Bytes of buffers, which every GPU holds whole; layers share one shuffle on a CPU and have copies on a GPU."""
        return sum(buffer.nbytes for _, buffer in self.built.named_buffers(remove_duplicate=False))

    @property
    def memory(self) -> MemoryConfig | None:
        """What its memory layers are."""
        return self.built.memories[0].cfg if len(self.built.memories) else None

    @cached_property
    def ask(self) -> Lookup | None:
        """What a token asks of one memory layer."""
        if (arch := self.memory) is None:
            return None
        widths = arch.value_width(self.cfg.d_model), arch.pre_width(self.cfg.d_model)
        return Lookup(arch.n_mem_heads * arch.top_m, widths[0], arch.n_cores, arch.blocks, widths[1])

    @property
    def partitions(self) -> tuple[str, ...]:
        return tuple(WAYS) if self.ask else ("experts",) if self.experts else ("none",)

    def partition(self, spread: Parallel) -> str:
        """The one of `partitions` that a preset asks for."""
        return TRAINED_AS[spread.values] if self.ask else self.partitions[0]


def sharded_bytes(model: Sized, partition: str, workers: int, micro: int, spread: Parallel) -> dict[str, float]:
    """Memory of one of `workers` that hold everything in parts, in bytes by kind, at `micro` tokens in bf16.

    Weights, gradients and two moments in float32 lie in parts. Checkpointed (`spread.recompute`) a block keeps its input, and
    one block at a time is run again and keeps everything, its memory's scores among it; otherwise all blocks do. Two dense
    blocks and the ends are gathered in `spread.gather`, and what is exchanged lies in buffers.
    """
    cfg, share = model.cfg, (model.tables + model.experts + model.dense) / workers
    layers, width = cfg.n_layers, cfg.d_model
    at_once = 1 if spread.recompute else layers
    activations = micro * width * ((2.0 * layers if spread.recompute else 0.0) + ACTIVATION_BYTES * at_once)
    exchanged = 0.0
    if model.ask is not None:
        arch, ask, memories = model.memory, model.ask, len(model.built.memories)
        scores = 2 * arch.n_mem_heads * arch.axis(memories) * arch.rank
        activations += 2 * 4.0 * micro * scores * (1 if spread.recompute else memories)
        rows = {"number": ask.picks, "pooled": min(ask.picks, workers * ask.groups), "dimension": ask.groups}[partition]
        gathered = workers * ask.picks * (4 + 2 * ask.cores) if partition == "dimension" else 0
        exchanged = micro * (2.0 * rows * (ask.d_value + ask.d_pre_value) + gathered)
    if model.experts:
        exchanged = max(exchanged, micro * 2.0 * 2 * cfg.arch.top_k * width)
    low = {"bf16": 2.0, "fp32": 4.0}[spread.gather]
    ends = cfg.vocab_size * width
    blocks = 2 * low * (model.dense - ends) / layers  # this one and the next
    return {
        "parameters": 4 * share,
        "gradients": 4 * share,
        "moments": 8 * share,
        "activations": activations,
        "buffers": blocks + low * ends + exchanged + model.addresses,
    }


def training_bytes(run: RunConfig, spread: Parallel, model: Sized) -> float:
    """Memory of one worker of a run while it trains, in bytes; `model` is the run's, sized once for all runs that have it."""
    if spread.engine == "replicated":
        return replicated_bytes(run)
    return sum(sharded_bytes(model, model.partition(spread), run.train.workers, micro_tokens(run), spread).values())
