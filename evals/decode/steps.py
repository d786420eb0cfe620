"""The models of the decode benchmark, the steps that are timed, and what each step asks of the machine.

Models are untrained, matched as the trained ones are (`results/{preset}/latency.yaml`), and of a size whose tables dwarf
the last-level cache. A step is one new token for each sequence of a batch, behind a cache full of noise.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from evals.access.counted import DTYPES as DTYPE_NAMES
from evals.access.counted import recorded
from evals.access.declared import FEED_FORWARD
from evals.decode.roofline import Operation
from evals.decode.settings import Latency
from evals.records import strict
from evals.records.errors import UserError
from evals.records.runs import build_model
from models.decode import DecodeState
from models.transformer import ModelConfig, Transformer, rotary

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A model of the benchmark before it is built."""

    arch: str
    sparse_ratio: float
    cfg: ModelConfig


def load(results: Path) -> tuple[Latency, list[Entry]]:
    """The preset's settings and models.

    Raises:
        UserError: the preset has no such benchmark, or it was resolved by other code.
    """
    path = results / "latency.yaml"
    if not path.exists():
        raise UserError(f"{path} does not exist: the preset has no measure.latency, or snakemake has not resolved it yet")
    data = yaml.safe_load(path.read_text())
    settings = strict.build(Latency, data["settings"], str(path))
    models = (
        Entry(entry["arch"], entry["sparse_ratio"], build_model(entry["model"], f"{path}: {entry['arch']}"))
        for entry in data["models"]
    )
    return settings, list(models)


def build(cfg: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model as it decodes: in eval mode, in the dtype, its weights laid out for decoding."""
    torch.manual_seed(0)
    model = cfg.build().eval().requires_grad_(False)
    model.refresh()
    return ready(model, dtype, device)


def ready(model: Transformer, dtype: torch.dtype, device: torch.device) -> Transformer:
    """The same model in another dtype or place; its old weights go."""
    model.to(device=device, dtype=dtype)
    for module in model.modules():
        if lay_out := getattr(module, "lay_out_for_decoding", None):
            lay_out()
    return model


@torch.no_grad()
def fill(model: Transformer, device: str) -> None:
    """Gives a model without memory of its own (on `meta`) noise for weights where it will lie, nothing of its size elsewhere.

    A shuffle of addresses is zero afterwards.

    Raises:
        ValueError: it has a buffer that nobody here fills.
    """
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02)
    cfg = model.cfg
    turns = dict(zip(("cos_TK", "sin_TK"), rotary(cfg.seq_len, cfg.d_head, cfg.rope_theta), strict=True))
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if last in turns:
            buffer.copy_(turns[last])
        elif last in ("u_Hr", "t_Hr", "scale", "shuffle"):
            buffer.fill_(last != "shuffle")
        else:
            raise ValueError(f"buffer {name} of {cfg.arch.name} holds nothing: fill it")


def noisy(cfg: ModelConfig, dtype: torch.dtype, device: str) -> Transformer:
    """A model by its shapes, of noise (`fill`), ready to decode on `device`."""
    with torch.device("meta"):
        model = cfg.build()
    model = model.eval().requires_grad_(False).to(dtype)
    fill(model, device)
    for number, memory in enumerate(model.memories):
        memory.add_addresses(number)
    model.to(device)
    model.refresh()
    return ready(model, dtype, torch.device(device))


class NoAttention(nn.Module):
    def forward(self, x_BTD: Tensor, *_: object) -> Tensor:
        return x_BTD.new_zeros(())


def slots_only(model: Transformer) -> Transformer:
    """The model without its attention; all weights are shared."""
    bare = copy.copy(model)
    blocks = [copy.copy(block) for block in model.blocks]
    for block, whole in zip(blocks, model.blocks, strict=True):
        block._modules = whole._modules | {"attention": NoAttention()}
    bare._modules = model._modules | {"blocks": nn.ModuleList(blocks)}
    return bare


@dataclass
class Step:
    """A decoding step that can be repeated: `tokens_B1` may be changed in place."""

    model: Transformer
    state: DecodeState
    tokens_B1: Tensor
    context: int

    def __call__(self) -> Tensor:
        self.state.length = self.context
        return self.model.hidden(self.tokens_B1, self.state)[0]


def step_of(model: Transformer, batch: int, context: int) -> Step:
    """One step of `batch` sequences, each with `context` tokens of noise behind it."""
    state = model.decode_state(batch, context + 1)
    state.pretend(context)
    return Step(model, state, torch.zeros(batch, 1, dtype=torch.int64, device=model.embedding.weight.device), context)


def asked(step: Step, part: str, itemsize: int) -> Iterator[Operation]:
    """What the step really asks for, one operation for each part of the model, each table and the cache.

    Selection of the top values is not in it, nor are launches. Keys of memory layers are kept in float32, whatever the dtype.
    """
    cfg, batch = step.model.cfg, len(step.tokens_B1)
    with recorded(step.model) as reads:
        step()
    cost = cfg.cost().without("embedding", "table")
    for one in (cost.only(*FEED_FORWARD) if part == "ffn" else cost).parts:
        size = 4 if one.name == "keys" else itemsize
        yield Operation(size * one.params, 2 * one.params * batch, rows=batch)
    picks: Counter[tuple] = Counter()
    for read in reads:
        picks[read.bank] += read.index_TM.numel()
    tables = {read.bank: read.tables for read in reads}
    for bank, unique in reads.unique().items():
        if tables[bank][0].dim() == 3:
            yield Operation(itemsize * unique * bank[2], 2 * bank[2] * picks[bank], rows=picks[bank] / unique)
        else:
            for table in tables[bank]:
                size = itemsize * table.shape[1]
                yield Operation(unique * size, record=size)
    if part == "model":
        flops = 4 * step.context * cfg.n_heads * cfg.d_head * cfg.n_layers * batch
        yield Operation(batch * cfg.kv_bytes(step.context, itemsize), flops, rows=cfg.n_heads / cfg.kv_heads)


def foldable(cfg: ModelConfig) -> bool:
    return getattr(cfg.arch, "projects", False) and getattr(cfg.arch, "expansion", 1) > 1
