"""Losses of runs: gaps between architectures, contrasts of the arms of a chain, and whether two runs may be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evals import stats
from evals.claims.evidence.results import Evidence, NotTested, Results, block, metric, of_seeds


def by_seed(runs: pd.DataFrame, column: str = "test_loss") -> dict[int, float]:
    """A column of the runs, keyed by seed, without those that lack it."""
    return runs[column].dropna().to_dict()


def term(weight: float, runs: pd.DataFrame, column: str = "test_loss") -> stats.Term:
    """The runs as one config of a contrast; NotTested where none has the column."""
    losses = by_seed(runs, column)
    if not losses:
        raise NotTested(f"no {column} of {', '.join(runs.run)}")
    return stats.Term(weight, losses, block(runs).iloc[0])


@metric
def loss_gap(results: Results, of: str, against: str, size: str = "", against_size: str = "") -> Evidence:
    """Test loss of one architecture minus another's, in nats, paired by seed, in the main grid.

    Without a size, the largest of those that both have with the most seeds; smallest and largest are of those too.
    """
    if size in ("smallest", "largest"):
        ends = {name: end for end, name in zip((0, -1), ("smallest", "largest"), strict=True)}
        sizes = results.sizes([of, against], 2)
        size, against_size = sizes[ends[size]], sizes[ends[against_size]] if against_size in ends else against_size
    elif not size:
        sizes = results.sizes([of, against])
        if not sizes:
            raise NotTested(f"no size of the grid has both {of} and {against}")
        size = sizes[-1]
    left, right = results.grid(of, size), results.grid(against, against_size or size)
    flops = left.flops_per_token.mean() / right.flops_per_token.mean()
    gap = stats.contrast([term(1, left), term(-1, right)], results.noise())
    return of_seeds(gap, [*left.run, *right.run], f"FLOPs ratio {flops:.2f}")


@metric
def gap_change(results: Results, of: str, against: str) -> Evidence:
    """The loss gap at the largest size minus that at the smallest; negative means gaining with scale."""
    sizes = results.sizes([of, against], 2)
    if len(sizes) < 2:
        raise NotTested(f"needs {of} and {against} at two sizes")
    corners = ((1, of, -1), (-1, against, -1), (-1, of, 0), (1, against, 0))
    runs = [(sign, results.grid(arch, sizes[end])) for sign, arch, end in corners]
    gap = stats.contrast([term(sign, found) for sign, found in runs], results.noise())
    return of_seeds(gap, [run for _, found in runs for run in found.run], f"{sizes[0]} to {sizes[-1]}")


@metric
def contrast(results: Results, chain: str, weights: dict[str, float], column: str = "test_loss") -> Evidence:
    """Weighted sum of the losses of arms, by seed: {arm: 1, other: -1} is what the arm changes, in nats."""
    arms = {name: results.arm(chain, name) for name in weights}
    terms = [term(weight, arms[name], column) for name, weight in weights.items()]
    return of_seeds(stats.contrast(terms, results.noise(column)), [run for runs in arms.values() for run in runs.run])


@metric
def best_arm(results: Results, chain: str, arms: list[str], column: str, factor: float = 1.0) -> Evidence:
    """What the arm with the lowest loss has in `column` of its runs; the interval spans arms that are not clearly worse."""
    runs = {name: results.arm(chain, name) for name in arms}
    settings = {name: factor * float(found[column].mean()) for name, found in runs.items()}
    losses = {name: by_seed(found) for name, found in runs.items()}
    means = {name: np.mean(list(values.values())) for name, values in losses.items()}
    best = min(means, key=means.__getitem__)
    close = []
    for name, found in runs.items():
        gap = stats.contrast([term(1, found), term(-1, runs[best])], results.noise())
        if name == best or not gap.bounded or gap.low <= 0:
            close.append(settings[name])
    n = min(len(values) for values in losses.values())
    tried = ", ".join(f"{value:.3g}" for value in sorted(settings.values()))
    note = f"tried {tried}; interval: settings not clearly worse"
    behind = tuple(run for found in runs.values() for run in found.run)
    return Evidence(settings[best], min(close), max(close), n, "seeds", note, behind, seeds=n)


@metric
def loss_jump(results: Results, chain: str, of: str, against: str, skip: float = 0.1) -> Evidence:
    """Largest rise of the training loss above its running minimum after `skip` of the run: one arm minus another."""
    train = results.table("train")
    sides = []
    for name in (of, against):
        runs, rise = results.arm(chain, name), {}
        for seed, run_id in runs.run.items():
            curve = train[(train.run == run_id) & (train.split == "train")].sort_values("step")
            curve = curve[curve.step > skip * curve.step.max()].loss.to_numpy()
            if len(curve):
                rise[seed] = float((curve - np.minimum.accumulate(curve)).max())
        sides.append((runs, rise))
    (left, a), (right, b) = sides
    if not a or not b:
        raise NotTested("no training curve")
    return of_seeds(stats.difference(a, b), [*left.run, *right.run])


def unequal_base(results: Results, chain: str, base: str, arch: str) -> str:
    """Why a chain's base is not the grid's model of `arch`, or "" if it is, within seed noise, or was not run."""
    try:
        arm = results.arm(chain, base)
        model = results.grid(arch, arm["size"].iloc[0])
        gap = stats.contrast([term(1, arm), term(-1, model)], results.noise())
    except NotTested:
        return ""
    if not gap.value or (gap.bounded and gap.low <= 0 <= gap.high):
        return ""
    noise = f" [{gap.low:.3g}, {gap.high:.3g}]" if gap.bounded else ", and no seed was repeated to show it to be noise"
    return f"the base of chain {chain} differs from the grid's {arch} by {gap.value:.3g} nats{noise}"


def edge_rate(results: Results, arch: str) -> str:
    """Why the learning rate of an architecture is not known to be its best: it is the lowest or highest tried."""
    try:
        table = results.table("tuning")
    except NotTested:
        return ""
    tried = table[table.arch == arch]
    chosen = tried.lr[tried.chosen.fillna(False).astype(bool)]
    ends = {"lowest": tried.lr.min(), "highest": tried.lr.max()}
    return next((f"{arch} has the {end} of the rates tried ({lr:g})" for end, lr in ends.items() if (chosen == lr).any()), "")
