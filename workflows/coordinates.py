"""The coordinate check: does the size of activations depend on the width? python -m workflows.coordinates --out coordinates.csv

Models of the cpu preset at several widths, matched there as at the preset's own, take ten steps at their recipe's peak
learning rate; before and after, the root mean square of what every part adds to the residual stream is measured (Yang et al.
2022, arXiv 2203.03466, appendix D.1). Where learning rates carry over between widths, it does not grow or shrink with the
width. width_rule "scaled" is how the suite trains (`workflows.optim`); "flat" gives all widths the base width's rates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evals.claims.widths import slopes
from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.recipe import Train
from models.match import MatchError, match
from models.transformer import ModelConfig, Transformer
from workflows.matched import match_rule, prototype, recipe
from workflows.optim import Optimizers, clip_gradients
from workflows.presets import Preset, Size, load_preset

WIDTHS, SEEDS, STEPS = (32, 64, 128, 256), (0, 1, 2), 10
WIDTH_RULES = ("scaled", "flat")
VOCAB, BATCH, SEQ_LEN = 512, 8, 64


def widths_of(preset: Preset, widths: tuple[int, ...]) -> Preset:
    """The preset with a size `dW` of four blocks and four heads for every width W, and a vocabulary that is quick."""
    sizes = {f"d{width}": Size(d_model=width, n_layers=4, n_heads=4) for width in widths}
    return replace(preset, sizes=preset.sizes | sizes, data=preset.data | {"vocab_size": VOCAB})


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets (B, T): three of four times the one token that follows the last, else any."""
    generator = torch.Generator().manual_seed(seed)
    next_V = torch.randperm(VOCAB, generator=generator)
    tokens_BT = torch.randint(VOCAB, (BATCH, SEQ_LEN + 1), generator=generator)
    follows_BT = torch.rand(BATCH, SEQ_LEN + 1, generator=generator) < 0.75
    for t in range(1, SEQ_LEN + 1):
        tokens_BT[:, t] = torch.where(follows_BT[:, t], next_V[tokens_BT[:, t - 1]], tokens_BT[:, t])
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()


@contextmanager
def watched(model: Transformer) -> Iterator[dict[str, Tensor]]:
    """Place -> what it gave in the last forward pass; the residual is what the last norm is given."""
    places = {"embedding": model.embedding, "residual": model.norm}
    for layer, block in enumerate(model.blocks):
        places |= {f"attention.{layer}": block.attention, f"ffn.{layer}": block.ffn}
    places |= {f"memory.{read_at}": memory for memory, (read_at, _) in zip(model.memories, model.placement, strict=True)}
    seen: dict[str, Tensor] = {}

    def keep(where: str):
        def hook(_module, inputs: tuple, output) -> None:
            seen[where] = inputs[0] if where == "residual" else output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(where)) for where, module in places.items()]
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def activations(model: Transformer, tokens_BT: Tensor) -> dict[str, float]:
    """Place -> root mean square over all tokens and features."""
    model.eval()
    model.refresh()
    with watched(model) as seen:
        found = {"logits": model.logits(tokens_BT)} | seen
    return {where: x.square().mean().sqrt().item() for where, x in found.items()}


def check(cfg: ModelConfig, train: Train, seed: int) -> dict[int, dict[str, float]]:
    """Steps taken -> activations, of one model at initialisation and after the steps, all on one batch."""
    torch.manual_seed(seed)
    model, (tokens_BT, targets_BT) = cfg.build(), batch(seed)
    optimizers, found = Optimizers(model, train), {0: activations(model, tokens_BT)}
    model.train()
    for step in range(STEPS):
        optimizers.set_lr(step)
        model.refresh()
        sum(model.loss(tokens_BT, targets_BT)).backward()
        clip_gradients(model, train.grad_clip)
        optimizers.step()
    return found | {STEPS: activations(model, tokens_BT)}


def measure(archs: tuple[str, ...], widths: tuple[int, ...], seeds: tuple[int, ...]) -> list[dict]:
    """Rows of `coordinates.csv`: means over seeds.

    Steps come from the recipe, so that schedules of the value tables are where they are in a run, but at constant rates.
    """
    preset, rows = widths_of(load_preset("cpu"), widths), []
    for width in widths:
        try:
            models = match({arch: prototype(preset, arch, f"d{width}") for arch in archs}, match_rule(preset))
        except MatchError as error:
            raise UserError(f"--widths {width}: {error}") from error
        for arch in archs:
            train = recipe(preset, arch, f"d{width}")
            train = replace(train, tokens=train.steps * BATCH * SEQ_LEN, batch_size=BATCH, seq_len=SEQ_LEN, precision="fp32")
            train = replace(train, warmup=0.0, final_lr=1.0)
            for rule in WIDTH_RULES:
                model = replace(models[arch], base_width=0) if rule == "flat" else models[arch]
                values: dict[tuple[int, str], list[float]] = defaultdict(list)
                for seed in seeds:
                    for step, found in check(model, train, seed).items():
                        for where, value in found.items():
                            values[step, where].append(value)
                rows += [
                    {"arch": arch, "width_rule": rule, "d_model": width, "step": step, "where": where, "value": np.mean(value)}
                    for (step, where), value in values.items()
                ]
    return rows


def main() -> None:
    preset = load_preset("cpu")
    known = tuple(preset.archs)
    usual = [arch for arch in known if arch not in preset.beside]
    parser = options.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table coordinates")
    parser.add_argument("--archs", nargs="+", default=usual, choices=known, help=f"architectures (default: {' '.join(usual)})")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=WIDTHS, help="d_model, multiples of 8; two or more (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if len(set(args.widths)) < 2 or any(width < 8 or width % 8 for width in args.widths):
        raise UserError(f"--widths {' '.join(map(str, args.widths))}: give two different multiples of 8 or more")
    rows = measure(tuple(args.archs), tuple(dict.fromkeys(args.widths)), SEEDS)
    schema.write(args.out, "coordinates", rows)
    found = slopes(pd.DataFrame(rows))
    for (arch, rule, step), group in found.groupby(["arch", "width_rule", "step"], sort=False):
        steep = ", ".join(f"{row['where']} {row.slope:+.2f}" for _, row in group[~group.flat].iterrows())
        print(f"{arch:12s} {rule:6s} step {step:2d}  {'not flat: ' + steep if steep else 'flat'}")


if __name__ == "__main__":
    errors.run(main)
