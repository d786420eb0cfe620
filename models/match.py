"""Matched compute: integer knobs that give every architecture the same FLOPs and the same total parameters.

Spec section E (rule V1): a sparse model stores `sparse_ratio` times its activated parameters, and all models spend equal
FLOPs per token. Each architecture names its knobs: `width_knob` moves FLOPs, `size_knob` moves total parameters,
`share_knob` moves what retrieval and projections take. FLOPs are affine in the width and every count is monotone in the
other knobs, so two evaluations find the one and bisection the others.
Integer knobs are coarse in small models (one unit of a top-8 expert's width is 3 % of the FLOPs at d_model 64), hence
the budget itself is chosen, among the levels the architectures can reach next to the nominal one, to make the worst
mismatch smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache

from models.cost import Cost
from models.transformer import ModelConfig


class MatchError(ValueError):
    """No setting of the knobs satisfies the rule; the message names the architecture and what was missed."""


@dataclass(frozen=True, kw_only=True)
class MatchRule:
    """What "matched" means.

    Args:
        sparse_ratio: total parameters / activated parameters of the sparse architectures (embeddings excluded).
        flops_ratio: FLOPs of all over those of the narrow dense comparator, whose blocks hold 12 d_model^2 parameters
            (P1: 0.35 / 0.30 G).
        flops_tolerance, params_tolerance: largest (max - min) / min over the matched models.
        max_memory_share: largest share of feed-forward plus memory compute for queries, keys and projections.
        width_multiple: widths are multiples of this; 8 is what vector units like, and too coarse for small models.
    """

    sparse_ratio: float = 12.0
    flops_ratio: float = 1.16
    flops_tolerance: float = 0.01
    params_tolerance: float = 0.02
    max_memory_share: float = 0.25
    width_multiple: int = 1


def narrow_dense(model: ModelConfig) -> int:
    """d_ff of the paper's narrow comparator, SwiGLU with 8 d_model^2 parameters a block."""
    return round(8 * model.d_model / 3)


def nearest(target: float, value: Callable[[int], float], low: int = 1, high: int = 1 << 22) -> int:
    """The integer whose monotone `value` is nearest to `target`."""
    floor = low
    while low < high:
        middle = (low + high) // 2
        if value(middle) < target:
            low = middle + 1
        else:
            high = middle
    return min((max(low - 1, floor), low), key=lambda knob: abs(value(knob) - target))


def flops(model: ModelConfig) -> int:
    return model.cost().flops


def params(model: ModelConfig) -> int:
    return model.cost().without("embedding").params


def turn(model: ModelConfig, **knobs: int) -> ModelConfig:
    """The model with other knobs, unchecked: a search asks thousands, and `solve` checks the one that it returns."""
    arch, turned = copy(model.arch), copy(model)
    for name, value in knobs.items():
        object.__setattr__(arch, name, value)
    object.__setattr__(turned, "arch", arch)
    return turned


def checked(model: ModelConfig) -> ModelConfig:
    """The same model, built as configs are: raises ValueError where a field cannot be what it is."""
    return replace(model, arch=replace(model.arch))


def solve_sizes(model: ModelConfig, target_flops: float, target_params: float, multiple: int = 1) -> ModelConfig:
    """Width and size such that both targets are met as nearly as integers allow.

    Both knobs move both counts (a router and keys cost FLOPs, an expert's width costs parameters), so the width is solved
    anew for every size that the search looks at.
    """
    arch = model.arch

    def at_width(sized: ModelConfig) -> tuple[ModelConfig, Cost]:
        def wide(units: int) -> ModelConfig:
            return turn(sized, **{arch.width_knob: multiple * units})

        one, two = (flops(wide(units)) for units in (1, 2))
        found = wide(max(1, 1 + round((target_flops - one) / (two - one))))
        cost = found.cost()
        if 2 * abs(cost.flops - target_flops) > two - one and target_flops >= one:  # the size follows the width
            found = wide(nearest(target_flops, lambda units: flops(wide(units)), high=1 << 16))
            cost = found.cost()
        return found, cost

    if not (size_knob := arch.size_knob):
        return at_width(model)[0]

    @cache
    def at_size(size: int) -> tuple[ModelConfig, Cost]:
        return at_width(turn(model, **{size_knob: size}))

    def stored(size: int) -> float:
        cost = at_size(size)[1]
        # Past the point where router or keys take half of the compute, more experts are so narrow that they store less.
        return cost.without("embedding").params if cost.memory_share <= 0.5 else math.inf

    return at_size(nearest(target_params, stored, low=arch.smallest_size, high=1 << 14))[0]


def solve(
    model: ModelConfig, target_flops: float, target_params: float, rule: MatchRule, like: ModelConfig | None = None
) -> ModelConfig:
    """One architecture at given targets.

    With a share knob, the largest multiple of 4 that keeps retrieval within the rule's `max_memory_share`,
    or within the architecture's own `memory_share` if it has one; `like`, what was found for targets nearby, is where the
    search begins.

    Raises:
        MatchError: even the smallest key width takes more than the allowed share.
    """
    knob, max_share = model.arch.share_knob, rule.max_memory_share
    if knob is None:
        return checked(solve_sizes(model, target_flops, target_params, rule.width_multiple))
    limit = min(max_share, getattr(model.arch, "memory_share", None) or max_share)

    def at_key(units: int) -> ModelConfig:
        return solve_sizes(turn(model, **{knob: 4 * units}), target_flops, target_params, rule.width_multiple)

    low, high, best = 1, model.d_model, at_key(1)
    hints = [getattr(like.arch, knob) // 4 + step for step in (0, 1)] if like else []
    while low < high:
        middle = hints.pop(0) if hints else (low + high + 1) // 2
        if not low < middle <= high:
            continue
        solved = at_key(middle)
        if solved.cost().retrieval_share <= limit:
            low, best = middle, solved
        else:
            high = middle - 1
    if best.cost().retrieval_share > max_share:
        raise MatchError(
            f"{model.arch.name} at d_model {model.d_model}: retrieval takes {best.cost().retrieval_share:.0%} of the compute "
            f"even with {knob} 4, more than the {max_share:.0%} allowed; use fewer or larger memory layers"
        )
    return checked(best)


def spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / min(values)


def match(models: dict[str, ModelConfig], rule: MatchRule) -> dict[str, ModelConfig]:
    """Solves all architectures of one size together.

    Args:
        models: name -> model whose knobs may hold any value; all share one backbone.

    Returns:
        name -> model with its knobs set. `gate` says whether the result is good enough.
    """
    backbone = next(iter(models.values()))
    block = 12 * backbone.d_model**2 * backbone.n_layers
    nominal = 2 * block * rule.flops_ratio

    found: dict[str, ModelConfig] = {}  # where the search of each ended last

    @cache
    def solve_all(target_flops: float, target_params: float) -> dict[str, ModelConfig]:
        for name, model in models.items():
            found[name] = solve(model, target_flops, target_params, rule, found.get(name))
        return dict(found)

    def worst(solved: dict[str, ModelConfig]) -> tuple[float, float]:
        sparse = [params(m) for m in solved.values() if m.arch.size_knob]
        return spread([flops(m) for m in solved.values()]), spread(sparse) if sparse else 0.0

    def stored(level: float) -> float:
        return rule.sparse_ratio * level / 2

    levels = {nominal} | {flops(m) for m in solve_all(nominal, stored(nominal)).values()}
    candidates = [solve_all(level, stored(level)) for level in sorted(levels)]
    best = min(candidates, key=lambda solved: worst(solved)[0])
    level = sum(flops(m) for m in best.values()) / len(best)
    sizes = {params(m) for m in best.values() if m.arch.size_knob}
    candidates = [best] + [solve_all(level, size) for size in sorted(sizes)]
    within = [c for c in candidates if worst(c)[0] <= rule.flops_tolerance] or candidates
    return min(within, key=lambda solved: worst(solved)[1])


def gate(models: dict[str, ModelConfig], rule: MatchRule) -> None:
    """Refuses models that are not matched.

    Raises:
        MatchError: names the two models furthest apart and by how much, or the one whose retrieval is too dear.
    """
    sparse = {n: m for n, m in models.items() if m.arch.size_knob}
    for what, of, group, tolerance in (
        ("FLOPs per token", flops, models, rule.flops_tolerance),
        ("total parameters", params, sparse, rule.params_tolerance),
    ):
        if not group:
            continue
        low, high = min(group, key=lambda n: of(group[n])), max(group, key=lambda n: of(group[n]))
        apart = of(group[high]) / of(group[low]) - 1
        if apart > tolerance:
            raise MatchError(
                f"{what} at d_model {models[low].d_model}: {high} has {of(group[high]):,} and {low} {of(group[low]):,}, "
                f"{apart:.2%} apart where {tolerance:.0%} is allowed; change a fixed field of one of them or the rule"
            )
    for name, model in models.items():
        if model.arch.share_knob and model.cost().retrieval_share > rule.max_memory_share:
            raise MatchError(
                f"{name} at d_model {model.d_model} spends {model.cost().retrieval_share:.1%} of feed-forward plus memory "
                f"compute on retrieval and projections where {rule.max_memory_share:.0%} is allowed; lower its key width"
            )
