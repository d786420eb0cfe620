"""Where the time of a training step goes, part by part, against what its matrix products take at their measured rate.

A part is run alone, forward and backward, on inputs of the right shape, once for each of its places in the model:
attention with its norm; the feed-forward slot with its norm, and in a mixture of experts its routing; a memory layer, and in
it the scores of keys, the selection and the reading of values; the head with the loss; the optimizer with the clipping of
gradients. "rest" is what a whole step takes beyond them: embedding, residual stream, averages of noise.

`product_ms` is the time of the part's matrix products alone: `torch.mm` of the same shapes, forward and both gradients, in
bfloat16 or, where the processor is faster at that, in float32; attention's scores and sums are left out. The share of it in
the part's time is how near the part is to what this machine can do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from evals.records.runs import RunConfig
from kernels.allocator import keep_memory
from kernels.cpu.build import multiplies_bf16
from models.moe import MoE
from workflows.optim import Optimizers, clip_gradients

ROUNDS = 5


def timed(function: Callable[[], Any]) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def both_ways(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of everything in the result that has a gradient, under autocast."""
    inputs = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = function(*inputs)
        found = [y for y in (found if isinstance(found, tuple) else (found,)) if torch.is_tensor(y) and y.requires_grad]
        torch.autograd.backward(found, [torch.ones_like(y) for y in found])

    return run


def products(rows: int, linears: list[tuple[int, int]], precision: str = "bf16") -> float:
    """Milliseconds of the products of linear maps (in, out) over so many rows: forward and both gradients."""
    dtype, total = torch.bfloat16 if precision == "bf16" and multiplies_bf16() else torch.float32, 0.0
    for d_in, d_out in linears:
        x, w, dy = (torch.randn(shape, dtype=dtype) for shape in ((rows, d_in), (d_out, d_in), (rows, d_out)))
        total += timed(lambda x=x, w=w: x @ w.T) + timed(lambda w=w, dy=dy: dy @ w) + timed(lambda x=x, dy=dy: dy.T @ x)
    return total


def linear_maps(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def model_parts(run: RunConfig, batch_size: int, seq_len: int) -> Iterator[tuple[str, float, float | None]]:
    """(part, milliseconds in a step, milliseconds of its linear maps or None)."""
    model, cfg = run.model.build().train(), run.model
    optimizers, rows = Optimizers(model, run.train), batch_size * seq_len
    x_BTD, z_BTD = torch.randn(2, batch_size, seq_len, cfg.d_model)
    z_BTD = z_BTD.bfloat16()
    turns = model.cos_TK[:seq_len], model.sin_TK[:seq_len]
    first, n = model.blocks[0], cfg.n_layers
    attend = both_ways(lambda x: first.attention(first.attention_norm(x), *turns), x_BTD)
    yield "attention", n * timed(attend), n * products(rows, linear_maps(first.attention))
    ffn = both_ways(lambda x: first.ffn(first.ffn_norm(x)), x_BTD)
    if isinstance(first.ffn, MoE):
        routing = timed(both_ways(lambda z: first.ffn.route(z)[:2], z_BTD.flatten(0, 1)))
        yield "routing", n * routing, n * products(rows, linear_maps(first.ffn.router))
        E, F, D = first.ffn.down_EFD.shape
        each = products(rows * first.ffn.cfg.top_k // E, [(D, first.ffn.up_EDF.shape[2]), (F, D)])
        yield "experts", n * (timed(ffn) - routing), n * E * each
    else:
        yield "feed-forward", n * timed(ffn), n * products(rows, linear_maps(first.ffn))
    if len(model.memories):
        memory, places = model.memories[0], len(model.memories)
        row_THnr, col_THnr = (score.detach() for score in memory.scores(z_BTD.float()))
        whole = timed(both_ways(lambda z: memory(z)[0], z_BTD))
        scoring = timed(both_ways(memory.scores, z_BTD))
        selecting = timed(both_ways(lambda a, b: memory.select(a, b)[0], row_THnr, col_THnr))
        _, H, r, keys, width = memory.scored_keys().shape
        scored = products(rows, linear_maps(memory.query)) + 2 * H * r * products(rows, [(width, keys)], "fp32")
        yield "memory: scores", places * scoring, places * scored
        yield "memory: selection", places * selecting, None
        yield "memory: values", places * (whole - scoring - selecting), None
    targets, hidden = torch.randint(cfg.vocab_size, (rows,)), x_BTD.flatten(0, 1)
    head = both_ways(lambda h: kernels.cross_entropy(h, model.head_weight, targets, precision="bf16"), hidden)
    yield "head and loss", timed(head), products(rows, [(cfg.d_model, cfg.vocab_size)])
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
    if run.train.value_optimizer == "rows":  # of one step: the rows that it reads
        both_ways(lambda t: model.loss(t, t)[0], torch.randint(cfg.vocab_size, (batch_size, seq_len)))()
        gradients = [p.grad for p in model.parameters()]

    def update() -> None:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient if parameter.requires_grad else None
        clip_gradients(model, run.train.grad_clip)
        optimizers.step()

    optimizers.set_lr(0)
    yield "optimizer", timed(update), None


def parts(runs: dict[str, RunConfig], batch_size: int, seq_len: int, device: str) -> list[dict]:
    """Rows of the table `step`, of every architecture on one thread in bf16."""
    from workflows.speed import our_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    found = []
    for arch, run in runs.items():
        step, tokens = our_step(run), torch.randint(run.model.vocab_size, (batch_size, seq_len + 1))
        whole = timed(lambda step=step, tokens=tokens: step(tokens[:, :-1], tokens[:, 1:]))
        rows = list(model_parts(run, batch_size, seq_len))
        rows.append(("rest", whole - sum(ms for _, ms, _ in rows), None))
        for part, ms, product_ms in rows:
            where = {
                "arch": arch,
                "d_model": run.model.d_model,
                "tokens": batch_size * seq_len,
                "threads": 1,
                "precision": "bf16",
            }
            found.append(where | {"part": part, "p50_ms": ms, "product_ms": product_ms, "step_ms": whole, "device": device})
            print(
                f"{run.model.d_model:5d} {arch:12s} {part:18s} {ms:7.1f} of {whole:.1f} ms, products {product_ms or 0:.1f} ms"
            )
    return found
