"""Gains as the compute that dense would have needed, and that as time on the device at hand.

Dense's curve is fitted (`evals.laws.law`) to its losses against its training FLOPs: over the sizes of the grid, each with its
own tokens, and, where dense was swept over tokens, over these at one size. A loss is read off the curve backwards. What that
compute takes in time is dense's own core-seconds per FLOP, on a broken line in logs through its runs; a net speed-up is that
time over the run's own. Intervals are of resampled seeds, the same draw for dense and for what is held against it; they say
nothing of the times.

A run's wall time also tells what else ran on the machine, which differs from run to run and only ever slows. So times are those
of training at a run's own fastest pace (`undisturbed`), and of an arm's seeds the fastest counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from evals.laws.counting import EDGE, on_line
from evals.laws.law import QUANTILES, Fitted, Law, fit
from evals.laws.points import TOKENS, Points

DENSE = "dense"
SIZES, SWEEP = "sizes", "tokens"
SAME = ("device", "threads", "precision")
FASTEST = 0.98  # quantile of a run's tokens per second, step by step


@dataclass(frozen=True)
class Curve:
    """Dense over `sizes` or over `tokens` at the size `at`: the fit that stands and the runs behind it."""

    name: str
    fitted: Fitted
    at: str = ""

    @property
    def law(self) -> Law:
        assert self.fitted.stands
        return self.fitted.stands

    @property
    def flops(self) -> pd.Series:
        return self.fitted.series.x["C"]

    def needed(self, losses: np.ndarray) -> np.ndarray:
        """Training FLOPs (draws,) at which the curve of each draw has the loss of that draw; inf below its floor."""
        draws = self.law.draws
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.law.power:
                floor, height, exponent = draws.T
                z = np.where(losses > floor, ((losses - floor) / height) ** (-1 / exponent), np.inf)
            else:
                height, slope = draws.T
                z = np.where(slope > 0, 10 ** ((height - losses) / slope), np.inf)
        return z * self.law.centre[0]


def compute(points: Points) -> pd.Series:
    """Training FLOPs of every run by the papers' rule."""
    return 3 * points.runs["flops_per_token"] * points.runs["tokens"].astype(float)


def dense_curves(points: Points) -> list[Curve]:
    """The curves of dense that carry a law."""
    grid, sweep = points.grid(DENSE), points.chain(TOKENS)
    found = [Curve(SIZES, fit(points.of(grid, {"C": compute(points)})))]
    names = [name for name in sweep["run"][sweep["arch"] == DENSE] if name in points.runs.index]
    if names:
        at = points.runs.loc[names, "size"].mode()[0]
        names = [name for name in [*names, *grid] if name in points.runs.index and points.runs.loc[name, "size"] == at]
        found.append(Curve(SWEEP, fit(points.of(names, {"C": compute(points)})), at))
    return [curve for curve in found if curve.fitted.stands]


def undisturbed(runs: pd.DataFrame, train: pd.DataFrame | None) -> pd.Series:
    """Core-seconds by run of its training at its fastest pace, that of a fiftieth of its steps; NaN without a curve."""
    steps = train[train["split"] == "train"] if train is not None else pd.DataFrame({"run": [], "tokens_per_s": []})
    pace = steps.groupby("run")["tokens_per_s"].quantile(FASTEST).astype(float)
    return runs["tokens"] / runs["run"].map(pace) * (runs["core_seconds"] / runs["wall_s"])


def equivalents(points: Points, times: pd.Series) -> list[dict]:
    """Rows of the table `equivalents`: the models of the grid, then the arms of every chain, on each curve that fits them.

    Args:
        times: core-seconds by run (`undisturbed`).
    """
    curves = dense_curves(points)
    rows = []
    for arch in points.archs:
        runs = points.runs[points.runs["run"].isin(points.grid(arch))]
        for _, here in sorted(runs.groupby("size"), key=lambda item: item[1]["active_params"].iloc[0]):
            rows += [_row(points, curve, here, {}, times) for curve in curves if curve.at in ("", here["size"].iloc[0])]
    if points.arms is None:
        return rows
    for chain in dict.fromkeys(points.arms["chain"]):
        before: dict[str, np.ndarray] = {}
        for step, arms in (
            points.arms[points.arms["chain"] == chain].sort_values("order", kind="stable").groupby("step", sort=False)
        ):
            here = points.runs[points.runs["run"].isin(arms["run"])]
            if here.empty:
                continue
            names = {"chain": chain, "step": step, "label": arms["label"].iloc[0]}
            for curve in (curve for curve in curves if curve.at in ("", here["size"].iloc[0])):
                needed = curve.needed(points.of(here.index, {}).losses.mean(1))
                row = _row(points, curve, here, names, times)
                if curve.name in before:
                    row |= _spread("step_ratio", "step_low", "step_high", _over(needed, before[curve.name]), points.repeated)
                if arms["kind"].iloc[0] == "cumulative" or curve.name not in before:
                    before[curve.name] = needed
                rows.append(row)
    return rows


def _row(points: Points, curve: Curve, here: pd.DataFrame, names: dict, times: pd.Series) -> dict:
    """One model or arm against one curve."""
    losses, flops = points.of(here.index, {}).losses.mean(1), float(compute(points)[here.index].mean())
    needed = curve.needed(losses)
    row = names | {"arch": here["arch"].iloc[0], "size": here["size"].iloc[0], "curve": curve.name, "n": len(here)}
    row |= {"loss": float(losses[0]), "flops": flops, "dense_flops": _finite(needed[0]), "runs": " ".join(here["run"])}
    row |= _spread("ratio", "ratio_low", "ratio_high", needed / flops, points.repeated)
    inside = curve.flops.min() * np.exp(-EDGE) <= needed[0] <= curve.flops.max() * np.exp(EDGE)
    row["beyond"] = not inside
    told = f"dense would need {needed[0] / flops:.2f} times the compute" if np.isfinite(needed[0]) else "below dense's floor"
    row["statement"] = told if inside else f"{told}: beyond the measured range"
    if known := _seconds(curve, here, times):
        own = float(times[here.index].min())
        with np.errstate(over="ignore"):
            taken = np.exp(_line(np.log(np.minimum(needed, 1e300)), *known))
        taken = np.where(np.isfinite(needed), taken, np.inf)
        row |= {"core_seconds": own, "dense_core_seconds": _finite(taken[0])}
        row |= _spread("speedup", "speedup_low", "speedup_high", taken / own, points.repeated)
        if np.isfinite(taken[0]):
            word = "faster" if taken[0] >= own else "slower"
            row["statement"] += f"; net of time {max(taken[0] / own, own / taken[0]):.2f} times {word} than dense"
    return row


def _seconds(curve: Curve, here: pd.DataFrame, times: pd.Series) -> tuple[np.ndarray, np.ndarray] | None:
    """Logs of FLOPs and of core-seconds of the curve's runs, the fastest seed's, on the very device of some others."""
    dense, first = curve.fitted.series.runs, here.iloc[0]
    dense = dense[(dense[list(SAME)] == first[list(SAME)]).all(axis=1) & times[dense.index].notna()]
    if times[here.index].isna().any() or (here[list(SAME)] != first[list(SAME)]).any(axis=None):
        return None
    spent = times[dense.index].groupby(curve.flops[dense.index]).min()
    return (np.log(spent.index.to_numpy(float)), np.log(spent.to_numpy(float))) if len(spent) > 1 else None


def _line(at: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The broken line through `values` at `known`, read at each of `at`; its ends prolonged."""
    return np.array([on_line(float(np.exp(x)), np.exp(known), values[None])[0][0] for x in at])


def _over(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Ratios; where both are beyond dense's floor there is none."""
    with np.errstate(invalid="ignore"):
        return new / old


def _spread(value: str, low: str, high: str, draws: np.ndarray, repeated: bool) -> dict:
    """A value with the ends of its interval; an end that is not finite is left empty."""
    drawn = np.sort(np.where(np.isnan(draws[1:]), np.inf, draws[1:]))
    ends = drawn[np.round(np.array(QUANTILES) * (len(drawn) - 1)).astype(int)] if repeated and len(drawn) else (np.nan, np.nan)
    return {value: _finite(draws[0]), low: _finite(ends[0]), high: _finite(ends[1])}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
