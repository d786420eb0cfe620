"""A law of losses with intervals: a power law where the points determine its exponents, else a straight line in log10.

Both forms are fitted by `evals.laws.huber`. The power law stands if every exponent's 95 % interval over resampled seeds is
narrower than a factor of `WIDE` and clear of the bounds of the search, and those of E, A and B are clear of 0 (without a
floor that shows, an exponent is none of an approach to one). Otherwise the interval says nothing, and the line stands. The
largest size is held out and predicted by both.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        return draws @ huber.lines(log_z).T
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


def fit(series: Series) -> Fitted:
    """`fit_all` of one series, its largest size held out."""
    return fit_all([series], [True])[0]


def fit_all(many: Sequence[Series], hold_out: Sequence[bool]) -> list[Fitted]:
    """Both forms on each series and the choice between them; too few sizes, or axes that move together, carry none."""
    why = [_too_few(series.x.to_numpy(float)) for series in many]
    able = [place for place, reason in enumerate(why) if not reason]
    forms = [estimate_all([many[place] for place in able], power) for power in (True, False)]
    for laws in forms:
        _hold_out([many[place] for place in able], laws, [hold_out[place] for place in able])
    laws_of = dict(zip(able, zip(*forms, strict=True), strict=True))
    return [_chosen(series, why[place], laws_of.get(place, ())) for place, series in enumerate(many)]


def _chosen(series: Series, why: str, laws: tuple[Law, ...]) -> Fitted:
    if why:
        return Fitted(series, statement=f"not a law: {why}", reasons=(why,))
    power, line = laws
    reasons = says_nothing(power)
    stands = line if reasons else power
    words = f"a power law of {len(series.runs)} runs" if not reasons else f"log-linear, since {'; '.join(reasons)}"
    return Fitted(series, laws, stands, f"{words}{_told(stands)}{_without(series)}", reasons)


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
    return estimate_all([series], power)[0]


def estimate_all(many: Sequence[Series], power: bool) -> list[Law]:
    """`estimate` of each; those of one shape are searched side by side, which costs little more than one of them."""
    x = [series.x.to_numpy(float) for series in many]
    centres = [np.exp(np.log(points).mean(0)) for points in x]
    logs = [np.log(points / centre) for points, centre in zip(x, centres, strict=True)]
    shapes: dict[tuple, list[int]] = {}
    for place, series in enumerate(many):
        shapes.setdefault((series.losses.shape, x[place].shape), []).append(place)
    laws: dict[int, Law] = {}
    for places in shapes.values():
        log_z, losses = np.stack([logs[place] for place in places]), np.stack([many[place].losses for place in places])
        for place, draws, objective, starts, agree in zip(places, *(_powers if power else _lines)(log_z, losses), strict=True):
            residuals = np.log(many[place].losses[0] / curves(power, draws[:1], logs[place])[0])
            found = (float(objective), starts, int(agree), residuals, many[place].repeated)
            laws[place] = Law(power, tuple(many[place].x.columns), centres[place], draws, *found)
    return [laws[place] for place in range(len(many))]


def _lines(log_z: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Parameters (P, 1 + resamples, p) of lines at `log_z` (P, n, k) through losses (P, 1 + resamples, n), and the search."""
    P, R, n = losses.shape
    found = huber.straight(np.repeat(log_z, R, 0), losses.reshape(P * R, n))
    return found.linear.reshape(P, R, -1), found.objective.reshape(P, R)[:, 0], [1] * P, [1] * P


def _powers(log_z: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """The same of power laws: the measured losses from the grid of starts, resamples from the exponents that it leads to.

    Where not all starts agree, resamples start from half of these exponents too, and the better end counts.
    """
    P, R, n = losses.shape
    k, starts = log_z.shape[2], huber.grid_of_starts(log_z.shape[2])
    tried = huber.power(log_z, losses[:, 0], np.repeat(starts[None], P, 0))
    best = [huber.polished(log_z[i], losses[i, 0], tried[i][int(tried.objective[i].argmin())]) for i in range(P)]
    least = np.array([one.objective for one in best])
    agree = (tried.objective <= least[:, None] * (1 + huber.SAME) + huber.TINY).sum(1)
    draws = np.empty((P, R, 1 + 2 * k))
    for i, one in enumerate(best):
        _into(draws[i, :1], one.linear[None], one.exponents[None])
    if R > 1:
        first = np.stack([one.exponents for one in best])
        ends = np.stack([first, np.clip(first / 2, *huber.BOUNDS)], 1)[:, : 1 if (agree == len(starts)).all() else 2]
        each = huber.power(np.repeat(log_z, R - 1, 0), losses[:, 1:].reshape(-1, n), np.repeat(ends, R - 1, 0))
        chosen = each[(np.arange(P * (R - 1)), each.objective.argmin(1))]
        _into(draws[:, 1:], chosen.linear.reshape(P, R - 1, -1), chosen.exponents.reshape(P, R - 1, -1))
    return draws, least, [len(starts)] * P, agree


def _into(draws: np.ndarray, linear: np.ndarray, exponents: np.ndarray) -> None:
    """Parameters in the order E, A, alpha, B, beta."""
    draws[..., 0], draws[..., 1::2], draws[..., 2::2] = linear[..., 0], linear[..., 1:], exponents


def _hold_out(many: Sequence[Series], laws: list[Law], wanted: Sequence[bool]) -> None:
    """Adds to laws of one form what they predict of the largest size if that is left out of the fit, where it is wanted."""
    left, without, held = [], [], []
    for place, series in enumerate(many):
        first = series.x.iloc[:, 0]
        out = (first >= first.max() * (1 - 1e-9)).to_numpy()
        kept = series.x[~out].drop_duplicates()
        if wanted[place] and len(kept) >= len(laws[place].names) and kept.nunique().min() >= min(3, len(laws[place].names)):
            left.append(place)
            without.append(series.where(~out))
            held.append(series.where(out))
    power = bool(laws and laws[0].power)
    for place, law, gone in zip(left, estimate_all(without, power), held, strict=True):
        each, first = law.curves(gone.x.to_numpy(float)).mean(1), gone.x.iloc[:, 0]
        several = many[place].runs["size"].nunique() > 1
        named = gone.runs["size"].iloc[0] if several else f"{first.name} = {first.max():.4g}"
        interval, truth = _interval(each[1:], gone.repeated), float(gone.losses[0].mean())
        laws[place] = replace(laws[place], held=Held(named, float(each[0]), *interval, truth))


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
