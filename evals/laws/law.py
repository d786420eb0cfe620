"""A law of losses with intervals: a power law where the points determine its exponents, else a straight line in log10.

Both forms are fitted by `evals.laws.huber`. The power law stands if every exponent's 95 % interval over resampled seeds is
narrower than a factor of `WIDE` and clear of the bounds of the search, and those of E, A and B are clear of 0 (without a
floor that shows, an exponent is none of an approach to one). Otherwise the interval says nothing, and the line stands. The
largest size is held out and predicted by both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evals.laws import huber
from evals.laws.points import Series
from evals.stats.fits import MIN_POINTS

WIDE = 4.0
QUANTILES = (0.025, 0.975)
TERMS = {1: ("A", "alpha"), 2: ("A", "alpha", "B", "beta")}
SLOPES = {1: ("b",), 2: ("b", "d")}


@dataclass(frozen=True)
class Held:
    """The largest size: its name, the loss predicted without it with interval, and the mean that was measured."""

    size: str
    predicted: float
    low: float
    high: float
    truth: float


@dataclass(frozen=True)
class Law:
    """One form fitted to one series.

    Args:
        axes: names of the axes; each is divided by `centre`, its geometric mean over the runs.
        draws: parameters (1 + resamples, p) in the order of `names`; the first row is the fit to the losses as measured.
        objective: of that fit; `starts` were tried and `agree` of them reach it within a thousandth.
        residuals: log of measured over fitted loss, one for each run.
        repeated: whether any seed was repeated; without, there are no intervals.
    """

    power: bool
    axes: tuple[str, ...]
    centre: np.ndarray
    draws: np.ndarray
    objective: float
    starts: int
    agree: int
    residuals: np.ndarray
    repeated: bool
    held: Held | None = None

    @property
    def names(self) -> tuple[str, ...]:
        k = len(self.axes)
        return ("E", *TERMS[k]) if self.power else ("c", *SLOPES[k])

    @property
    def form(self) -> str:
        return form(self.power, self.axes)

    @property
    def params(self) -> dict[str, float]:
        return dict(zip(self.names, self.draws[0].tolist(), strict=True))

    def interval(self, name: str) -> tuple[float, float]:
        return _interval(self.draws[1:, self.names.index(name)], self.repeated)

    def curves(self, x: np.ndarray) -> np.ndarray:
        """Losses (1 + resamples, points) at `x` (points, axes)."""
        return curves(self.power, self.draws, np.log(np.asarray(x, float) / self.centre))


def form(power: bool, axes: tuple[str, ...]) -> str:
    """The formula in words; every axis is divided by the geometric mean of its runs, such as N0."""
    names = TERMS[len(axes)] if power else SLOPES[len(axes)]
    if power:
        terms = (f"{names[2 * j]} ({axis}/{axis}0)^-{names[2 * j + 1]}" for j, axis in enumerate(axes))
        return " + ".join(("L = E", *terms))
    return " - ".join(("L = c", *(f"{name} log10({axis}/{axis}0)" for name, axis in zip(names, axes, strict=True))))


def curves(power: bool, draws: np.ndarray, log_z: np.ndarray) -> np.ndarray:
    """Losses (draws, points) of parameters (draws, p) at logs of scaled axes (points, k)."""
    if not power:
        return draws @ huber.lines(log_z)[0].T
    linear = np.concatenate([draws[:, :1], draws[:, 1::2]], 1)
    return np.einsum("bnm,bm->bn", huber.powers(log_z, draws[:, 2::2]), linear)


@dataclass(frozen=True)
class Fitted:
    """What a series carries: the forms that were fitted (none if it is too short), which one stands, and the sentence."""

    series: Series
    laws: tuple[Law, ...] = ()
    stands: Law | None = None
    statement: str = ""
    reasons: tuple[str, ...] = ()


def fit(series: Series, hold_out: bool = True) -> Fitted:
    """Both forms on a series and the choice between them; too few sizes, or axes that move together, carry none."""
    if why := _too_few(series.x.to_numpy(float)):
        return Fitted(series, statement=f"not a law: {why}", reasons=(why,))
    laws = [(_held_out if hold_out else estimate)(series, power) for power in (True, False)]
    power, line = laws
    reasons = says_nothing(power)
    stands = line if reasons else power
    words = f"a power law of {len(series.runs)} runs" if not reasons else f"log-linear, since {'; '.join(reasons)}"
    return Fitted(series, tuple(laws), stands, f"{words}{_told(stands)}{_without(series)}", reasons)


def says_nothing(law: Law) -> tuple[str, ...]:
    """Why the exponents of a power law are not determined by its points; nothing if they are."""
    found = []
    for name in law.names[2::2]:
        low, high = law.interval(name)
        if not law.repeated:
            found.append(f"no seed was repeated, so {name} has no interval")
        elif low < huber.BOUNDS[0] * 1.01 or high > huber.BOUNDS[1] * 0.99:
            found.append(f"the interval of {name} ({low:.2g} to {high:.2g}) touches a bound of the search")
        elif high / low > WIDE:
            found.append(f"the interval of {name} ({low:.2g} to {high:.2g}) is wider than a factor of {WIDE:g}")
    level = float(law.draws[0][[0, *range(1, len(law.names), 2)]].sum())
    for name in law.names[:1] + law.names[1::2]:
        if min(law.params[name], law.interval(name)[0] if law.repeated else np.inf) < 1e-6 * level:
            found.append(f"{name} is not told from its bound of 0" + (", so the points show no floor" if name == "E" else ""))
    return tuple(found)


def estimate(series: Series, power: bool) -> Law:
    """One form on all runs of a series, with the resamples' parameters."""
    x = series.x.to_numpy(float)
    centre = np.exp(np.log(x).mean(0))
    log_z, losses = np.log(x / centre), series.losses
    if not power:
        found, starts, agree = huber.straight(log_z, losses), 1, 1
    else:
        found, starts, agree = _power(log_z, losses)
    draws = np.empty((len(losses), found.linear.shape[1] + found.exponents.shape[1]))
    draws[:, 0] = found.linear[:, 0]
    if power:
        draws[:, 1::2], draws[:, 2::2] = found.linear[:, 1:], found.exponents
    else:
        draws[:, 1:] = found.linear[:, 1:]
    residuals = np.log(losses[0] / curves(power, draws[:1], log_z)[0])
    axes = tuple(series.x.columns)
    return Law(power, axes, centre, draws, float(found.objective[0]), starts, agree, residuals, series.repeated)


def _power(log_z: np.ndarray, losses: np.ndarray) -> tuple[huber.Solution, int, int]:
    """The measured losses from the grid of starts, resamples from its best exponents and from half of them."""
    starts = huber.grid_of_starts(log_z.shape[1])
    tried = huber.power(log_z, losses[:1], starts[None])[0]
    best = huber.polished(log_z, losses[0], tried[int(tried.objective.argmin())])
    agree = int((tried.objective <= best.objective * (1 + huber.SAME) + huber.TINY).sum())
    if len(losses) == 1:
        rest = huber.Solution(*(values[:0] for values in (tried.linear, tried.exponents, tried.objective)))
    else:
        ends = np.stack([best.exponents, np.clip(best.exponents / 2, *huber.BOUNDS)])
        moved, place = np.unique(losses[1:], axis=0, return_inverse=True)
        each = huber.power(log_z, moved, np.repeat(ends[None], len(moved), 0))
        chosen = each[(np.arange(len(moved)), each.objective.argmin(1))]
        rest = chosen[place.ravel()]
    linear, exponents = np.vstack([best.linear, rest.linear]), np.vstack([best.exponents, rest.exponents])
    return huber.Solution(linear, exponents, np.append(best.objective, rest.objective)), len(starts), agree


def _held_out(series: Series, power: bool) -> Law:
    """A form on all runs, with what it predicts of the largest size if that is left out of the fit."""
    law, first = estimate(series, power), series.x.iloc[:, 0]
    out = (first >= first.max() * (1 - 1e-9)).to_numpy()
    kept = series.x[~out].drop_duplicates()
    if len(kept) < len(law.names) or kept.nunique().min() < min(3, len(law.names)):
        return law
    without, held = estimate(series.where(~out), power), series.where(out)
    each = without.curves(held.x.to_numpy(float)).mean(1)
    named = held.runs["size"].iloc[0] if series.runs["size"].nunique() > 1 else f"{first.name} = {first.max():.4g}"
    return replace(law, held=Held(named, float(each[0]), *_interval(each[1:], series.repeated), float(held.losses[0].mean())))


def _interval(draws: np.ndarray, repeated: bool) -> tuple[float, float]:
    if not repeated or not len(draws):
        return np.nan, np.nan
    low, high = np.quantile(draws, QUANTILES, method="nearest")
    return float(low), float(high)


def _too_few(x: np.ndarray) -> str:
    """Why runs at these points (runs, axes) carry no law, or ""."""
    n = len(np.unique(x[:, 0]))
    if n < MIN_POINTS:
        return f"{n} size{'s' * (n != 1)}, a law needs {MIN_POINTS}"
    if x.shape[1] > 1 and max(len(np.unique(x[x[:, 0] == size, 1])) for size in np.unique(x[:, 0])) < MIN_POINTS:
        return "tokens move with the size, and no size has a sweep of four budgets: the two cannot be told apart"
    return ""


def _told(law: Law) -> str:
    """How a form was found and what it predicts, in words that follow a first half of a sentence."""
    worst = int(np.abs(law.residuals).argmax())
    told = f"; {law.agree} of {law.starts} starts end at this objective" if law.power else ""
    told += f"; the largest residual of log L is {law.residuals[worst]:+.4f}"
    if held := law.held:
        inside = "inside" if held.low <= held.truth <= held.high else "outside"
        interval = (
            f" [{held.low:.3f}, {held.high:.3f}], {inside} of which the measured {held.truth:.3f} lies" if law.repeated else ""
        )
        told += f"; {held.size} left out is predicted at {held.predicted:.3f}{interval or f', measured {held.truth:.3f}'}"
    return told


def _without(series: Series) -> str:
    return f"; left out: {', '.join(series.left_out)}" if series.left_out else ""
