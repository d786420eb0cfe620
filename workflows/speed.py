"""Training speed, every implementation interleaved in one run: python -m workflows.speed --out speed.csv

The yardstick is a plain PyTorch GPT of the same shape: `nn.Linear`, `F.scaled_dot_product_attention`, tied head and
`F.cross_entropy`, fused AdamW, under bf16 autocast, as written (eager) and through `torch.compile`, whose compilation is
not timed. Ours are the suite's architectures at matched FLOPs, in bf16 and, on one thread, in fp32.
A step is forward, backward and optimizer on random tokens; steps of all implementations take turns, so that what the
machine does meanwhile hits all of them, and the ratio of each to its yardstick is the median over rounds.

Beside it, where a step's time goes (`workflows.step`, table `step`), of the same models in the same process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.records import errors, options, schema
from evals.records.provenance import device_name
from evals.records.runs import RunConfig
from kernels.allocator import keep_memory
from workflows import step
from workflows.matched import match_size, recipe
from workflows.optim import Optimizers, clip_gradients
from workflows.presets import Size, load_preset

WIDTHS = (64, 128, 256)
WARM_UP = 2  # rounds that are not counted, of which the first compiles
EAGER, COMPILED = "plain GPT", "plain GPT, compiled"


class PlainGPT(nn.Module):
    """What one would write first; same parameters and FLOPs as our dense model, none of its measures for speed."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, seq_len: int):
        super().__init__()
        self.n_heads = n_heads
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(seq_len, d_model)
        nn.init.normal_(self.token.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(d_model),
                    "qkv": nn.Linear(d_model, 3 * d_model, bias=False),
                    "out": nn.Linear(d_model, d_model, bias=False),
                    "norm2": nn.LayerNorm(d_model),
                    "gate": nn.Linear(d_model, d_ff, bias=False),
                    "up": nn.Linear(d_model, d_ff, bias=False),
                    "down": nn.Linear(d_ff, d_model, bias=False),
                }
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        x_BTD = self.token(tokens_BT) + self.position(torch.arange(T))
        for block in self.blocks:
            qkv = block["qkv"](block["norm1"](x_BTD)).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            y_BHTK = F.scaled_dot_product_attention(*qkv, is_causal=True)
            x_BTD = x_BTD + block["out"](y_BHTK.transpose(1, 2).reshape(B, T, -1))
            z_BTD = block["norm2"](x_BTD)
            x_BTD = x_BTD + block["down"](F.silu(block["gate"](z_BTD)) * block["up"](z_BTD))
        logits_BTV = F.linear(self.norm(x_BTD), self.token.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def plain_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def one_step(tokens_BT: Tensor, targets_BT: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return one_step


def our_step(run: RunConfig, device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """One training step in the middle of the run; it returns the loss."""
    model = run.model.build().to(device)
    optimizers, precision = Optimizers(model, run.train), run.train.precision

    def one_step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizers.set_lr(run.train.steps // 2)
        model.train()
        model.refresh()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, aux = model.loss(tokens_BT, targets_BT, precision)
        (loss + aux).backward()
        clip_gradients(model, run.train.grad_clip)
        optimizers.step()
        return loss

    return one_step


def bench_runs(d_model: int, batch_size: int, precision: str) -> dict[str, RunConfig]:
    """Architecture -> a run at matched FLOPs, of the shapes of the cpu preset.

    Raises:
        UserError: models of this width cannot be matched.
    """
    preset = load_preset("cpu")
    preset = replace(preset, sizes=preset.sizes | {"bench": Size(d_model=d_model, n_layers=4, n_heads=4)})
    models = match_size(preset, "bench").models
    runs = {}
    for arch, model in models.items():
        train = replace(recipe(preset, arch, "bench"), batch_size=batch_size, precision=precision)
        runs[arch] = RunConfig(run="", preset="", arch=arch, size="", seed=0, data="", model=model, train=train)
    return runs


def implementations(
    d_model: int, batch_size: int, precisions: tuple[str, ...]
) -> dict[tuple[str, str, str], Callable[[Tensor, Tensor], None]]:
    """(implementation, architecture, precision) -> one training step."""
    steps = {}
    for precision in precisions:
        runs = bench_runs(d_model, batch_size, precision)
        steps |= {("ours", arch, precision): our_step(run) for arch, run in runs.items()}
    dense = runs["dense"].model
    shape = (dense.vocab_size, d_model, dense.n_layers, dense.n_heads, dense.arch.d_ff, dense.seq_len)
    steps[EAGER, "dense", "bf16"] = plain_step(PlainGPT(*shape))
    steps[COMPILED, "dense", "bf16"] = plain_step(torch.compile(PlainGPT(*shape)))
    return steps


def measure(d_model: int, threads: int, batch_size: int, seq_len: int, rounds: int, device: str) -> list[dict]:
    """Rows of `speed.csv` for one width and thread count: median and spread of each, and its ratio to a reference.

    Dense models are compared with the compiled plain GPT; sparse ones with our dense, same precision.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    steps = implementations(d_model, batch_size, ("bf16", "fp32") if threads == 1 else ("bf16",))
    times: dict[tuple, list[float]] = {key: [] for key in steps}
    for round_ in range(rounds + WARM_UP):
        tokens = torch.randint(4096, (batch_size, seq_len + 1))
        for key, one_step in steps.items():
            keep_memory(key[0] == "ours")  # the trainer does, a plain script does not
            start = time.perf_counter()
            one_step(tokens[:, :-1], tokens[:, 1:])
            if round_ >= WARM_UP:
                times[key].append(1e3 * (time.perf_counter() - start))
    rows = []
    for key, ms in times.items():
        impl, arch, precision = key
        versus = (COMPILED, "dense", "bf16") if arch == "dense" else ("ours", "dense", precision)
        p20, p50, p80 = (statistics.quantiles(ms, n=10)[i] for i in (1, 4, 7))
        rows.append(
            {
                "benchmark": "training",
                "impl": impl,
                "arch": arch,
                "d_model": d_model,
                "tokens": batch_size * seq_len,
                "threads": threads,
                "precision": precision,
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "tokens_per_s": batch_size * seq_len / p50 * 1e3,
                "ratio": statistics.median(b / a for a, b in zip(ms, times[versus], strict=True)),
                "versus": " ".join(versus),
                "n_iters": len(ms),
                "device": device,
            }
        )
        print(f"{d_model:5d} {threads} {impl:19s} {arch:12s} {precision}  {p50:8.1f} ms  {rows[-1]['ratio']:.2f}x {versus}")
    return rows


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table speed")
    parser.add_argument("--parts", type=Path, help="CSV to write, of the table step: where a step's time goes, on one thread")
    parser.add_argument("--d-model", type=int, nargs="*", default=WIDTHS, help="widths to time (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2), help="threads to time with (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences of a step (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=7, help="interleaved rounds, half of them on more threads (default: %(default)s)"
    )
    args = parser.parse_args()
    rows, parts, shape = [], [], (args.batch_size, args.seq_len)
    for d_model in args.d_model:
        for threads in args.threads:
            rounds = args.rounds if threads == 1 else (args.rounds + 1) // 2
            rows += measure(d_model, threads, *shape, rounds, device_name("cpu"))
            schema.write(args.out, "speed", rows)
        if args.parts:
            parts += step.parts(bench_runs(d_model, args.batch_size, "bf16"), *shape, device_name("cpu"))
            schema.write(args.parts, "step", parts)


if __name__ == "__main__":
    errors.run(main)
