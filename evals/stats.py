"""Differences with intervals, and scaling fits with bands.

Seeds fix the order of the data, so two architectures trained with one seed saw the same batches: their difference is
taken seed by seed (paired), which removes the part of the noise that both share. Where no two seeds match, the means
are compared (Welch). One seed gives a number and no interval, and says so.

Losses of single runs are compared by `contrast`: a weighted sum whose standard error is that of its own coefficients and
of the seed `Noise`, which is pooled over every config that was run with two seeds or more. Nothing is assumed.

Scaling fits are two: `log_linear`, y = a - b * log10(x), the form of P1's sparse-parameter claim (figure 6b), and
`power_law`, y = c + a * x ** -b; `law` takes the second where the points determine it, else the first, and says so.
`slope` is the descent along a path of sizes with its interval. Fewer than four distinct x are never called a law: the
result is then a `NotALaw`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as distributions

MIN_POINTS = 4
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `low` and `high` are NaN where `n` values allow none.

    `n` counts pairs (paired), the smaller group (Welch) or values, and `method` says which. `spread` is the standard
    deviation of the value where each seed is run once, so that n seeds give `spread` / sqrt(n), and `freedom` the degrees
    of freedom it was estimated with; both NaN if unknown.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    spread: float = math.nan
    freedom: float = math.nan

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with its t interval."""
    x = _finite(values)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan, len(x), "one value")
    return _t_interval(float(x.mean()), float(x.std(ddof=1)), len(x), len(x) - 1, "t", level)


def _t_interval(value: float, spread: float, n: float, freedom: float, method: str, level: float = 0.95) -> Interval:
    half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * spread / math.sqrt(n)
    return Interval(value, value - half, value + half, int(n), method, spread, freedom)


def bootstrap(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean with a percentile bootstrap interval; the same values give the same interval.

    Percentile intervals of a handful of values are too narrow (three values: about 75 % cover at a stated 95 %), which
    is why claims are ruled on with the t interval and this one is a check where values are many and skewed.
    """
    x = _finite(values)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan, len(x), "one value")
    means = np.random.default_rng(seed).choice(x, (RESAMPLES, len(x))).mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x), "bootstrap")


def difference(left: Mapping[int, float], right: Mapping[int, float], level: float = 0.95, method: str = "t") -> Interval:
    """Mean of left minus right, both keyed by seed: paired over shared seeds, Welch if fewer than two are shared.

    Args:
        method: "t" or "bootstrap", for the paired difference.

    Raises:
        ValueError: a side is empty, a value is not finite, or the method is unknown.
    """
    if method not in ("t", "bootstrap"):
        raise ValueError(f"method {method!r} is not one of t, bootstrap")
    if not left or not right:
        raise ValueError("a difference needs at least one value on each side")
    shared = sorted(left.keys() & right.keys())
    if len(shared) >= 2:
        paired = [left[seed] - right[seed] for seed in shared]
        result = bootstrap(paired, level) if method == "bootstrap" else mean(paired, level)
        return replace(result, method=f"paired {result.method}")
    if len(left) >= 2 and len(right) >= 2:
        return _welch(_finite(left.values()), _finite(right.values()), level)
    if shared:
        (seed,) = shared
        value = float(_finite([left[seed] - right[seed]])[0])
        return Interval(value, math.nan, math.nan, 1, "one pair")
    value = float(_finite(left.values()).mean() - _finite(right.values()).mean())
    return Interval(value, math.nan, math.nan, 1, "unpaired, one value")


def _welch(left: np.ndarray, right: np.ndarray, level: float) -> Interval:
    variances = np.array([left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)])
    value = float(left.mean() - right.mean())
    n = min(len(left), len(right))
    if variances.sum() == 0:
        return Interval(value, value, value, n, "Welch")
    freedom = variances.sum() ** 2 / (variances**2 / np.array([len(left) - 1, len(right) - 1])).sum()
    return _t_interval(value, math.sqrt(n * variances.sum()), n, float(freedom), "Welch", level)


@dataclass(frozen=True)
class Noise:
    """What a loss varies by if only the seed changes, from configs that were run with two seeds or more.

    Args:
        variance: of one run about the mean of its config, pooled over configs.
        freedom: degrees of freedom of `variance`: runs less configs.
        paired: variance that is left once what a seed does to all configs of a block alike is taken out; two runs of one
            seed and block differ by twice this.
        paired_freedom: its degrees of freedom.
        deviations: from the mean of its config, one for each run, scaled to have the pooled variance.
    """

    variance: float
    freedom: int
    paired: float
    paired_freedom: int
    deviations: np.ndarray = field(repr=False, compare=False)


def noise(runs: pd.DataFrame) -> Noise | None:
    """Seed noise of `value` over the rows of a frame with columns config, seed, block, value; None if no seed was repeated.

    A block is what shares its order of data seed by seed: runs of one size and number of tokens.
    """
    again = runs.dropna(subset=["value"])
    again = again[again.groupby("config").value.transform("size") > 1]
    if again.empty:
        return None
    cells = again.groupby("config").value
    count, apart = cells.transform("size"), again.value - cells.transform("mean")
    freedom = len(again) - again.config.nunique()
    squares, paired_freedom = 0.0, 0
    for _, block in again.groupby("block", dropna=False):
        if block.config.nunique() < 2:
            continue
        design = pd.get_dummies(block[["config", "seed"]].astype(str), dtype=float).to_numpy()
        fitted, _, rank, _ = np.linalg.lstsq(design, block.value.to_numpy(float), rcond=None)
        squares += float(((block.value.to_numpy(float) - design @ fitted) ** 2).sum())
        paired_freedom += len(block) - int(rank)
    return Noise(
        variance=float((apart**2).sum()) / freedom,
        freedom=freedom,
        paired=squares / paired_freedom if paired_freedom else math.nan,
        paired_freedom=paired_freedom,
        deviations=(apart * np.sqrt(count / (count - 1))).to_numpy(float),
    )


@dataclass(frozen=True)
class Term:
    """One config of a contrast: its weight, its values by seed, and the block that pairs it (see `noise`)."""

    weight: float
    values: Mapping[int, float]
    block: Hashable = None


MIN_PAIRED = 2  # degrees of freedom below which the paired variance is not used


def contrast(terms: Sequence[Term], seed_noise: Noise | None, level: float = 0.95) -> Interval:
    """Weighted sum of the means of configs, its standard error that of the weights: sqrt(variance * sum(w^2 / n)).

    Where the weights of every block sum to zero, the sum is taken seed by seed over the seeds that all terms share, and the
    paired variance is used. The t quantile has the noise's degrees of freedom. `n` counts the pairs, or the seeds of the
    term that has fewest; without noise there is no interval. ValueError: a term without a value.
    """
    values = [{seed: float(x) for seed, x in term.values.items()} for term in terms]
    if not values or not all(values):
        raise ValueError("a contrast needs at least one value in each term")
    weights = np.array([term.weight for term in terms], float)
    sums = pd.Series(weights).groupby(pd.Categorical([repr(term.block) for term in terms]), observed=True).sum()
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values)))
    pairs = bool(shared) and bool((sums.abs() < 1e-9 * np.abs(weights).max()).all())
    if pairs:
        values = [{seed: by_seed[seed] for seed in shared} for by_seed in values]
    counts = np.array([len(by_seed) for by_seed in values])
    value, n = float(sum(w * _finite(x.values()).mean() for w, x in zip(weights, values, strict=True))), int(counts.min())
    method = "paired by seed" if pairs else "seeds"
    if seed_noise is None:
        return Interval(value, math.nan, math.nan, n, method)
    variance, freedom = seed_noise.variance, seed_noise.freedom
    if pairs and seed_noise.paired_freedom >= MIN_PAIRED:
        variance, freedom = seed_noise.paired, seed_noise.paired_freedom
    return _t_interval(value, math.sqrt(n * variance * float((weights**2 / counts).sum())), n, freedom, method, level)


def seeds_needed(effect: float, spread: float, freedom: float, power: float = 0.8, level: float = 0.95) -> int | None:
    """Seeds with which an effect of this size is told from none in `power` of all repetitions; None if either is unknown.

    Args:
        spread: standard deviation of the value for one seed, of `freedom` degrees of freedom.
    """
    if not (math.isfinite(effect) and math.isfinite(spread)) or not effect:
        return None
    if not spread:
        return 2

    def quantiles(n: int) -> float:
        of = max(freedom, n - 1)
        return float(distributions.t.ppf(0.5 + level / 2, of) + distributions.t.ppf(power, of))

    n = max(2, math.floor(((distributions.norm.ppf(0.5 + level / 2) + distributions.norm.ppf(power)) * spread / effect) ** 2))
    while math.sqrt(n) * abs(effect) < quantiles(n) * spread:
        n += 1
    return n


@dataclass(frozen=True)
class NotALaw:
    """What a fit returns when the points cannot carry one."""

    n: int
    reason: str

    @property
    def statement(self) -> str:
        return f"not a law: {self.reason}"


@dataclass(frozen=True)
class Fit:
    """A fitted curve. `params` and `stderr` are keyed by letter, `residuals` are y minus curve in the order given."""

    form: str
    params: dict[str, float]
    stderr: dict[str, float]
    r2: float
    n: int
    residuals: np.ndarray
    covariance: np.ndarray = field(repr=False)
    note: str = ""

    @property
    def statement(self) -> str:
        values = ", ".join(f"{k} = {v:.4g} ± {self.stderr[k]:.2g}" for k, v in self.params.items())
        text = f"{self.form}: {values}; R² = {self.r2:.3f}; {self.n} points"
        return f"{text}; {self.note}" if self.note else text

    def predict(self, x: Sequence[float]) -> np.ndarray:
        return FORMS[self.form](np.asarray(x, float), *self.params.values())

    def band(self, x: Sequence[float], level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence band of the curve (not of new points), by the delta method."""
        x = np.asarray(x, float)
        values = np.array(list(self.params.values()))
        gradient = np.empty((len(x), len(values)))
        for i, value in enumerate(values):
            step = 1e-6 * max(abs(value), 1e-3)
            up, down = values.copy(), values.copy()
            up[i], down[i] = value + step, value - step
            gradient[:, i] = (FORMS[self.form](x, *up) - FORMS[self.form](x, *down)) / (2 * step)
        half = self._quantile(level) * np.sqrt(np.einsum("ni,ij,nj->n", gradient, self.covariance, gradient))
        return self.predict(x) - half, self.predict(x) + half

    def interval(self, name: str, level: float = 0.95) -> Interval:
        half = self._quantile(level) * self.stderr[name]
        return Interval(self.params[name], self.params[name] - half, self.params[name] + half, self.n, "fit")

    def _quantile(self, level: float) -> float:
        return float(distributions.t.ppf(0.5 + level / 2, self.n - len(self.params)))


FORMS = {
    "y = a - b log10(x)": lambda x, a, b: a - b * np.log10(x),
    "y = c + a x^-b": lambda x, a, b, c: c + a * x**-b,
}
LOG_LINEAR, POWER_LAW = FORMS


def log_linear(x: Sequence[float], y: Sequence[float]) -> Fit | NotALaw:
    """Least squares of y = a - b log10(x); b > 0 means that y falls as x grows."""
    x, y = _points(x, y)
    if problem := _too_few(x):
        return problem
    design = np.stack([np.ones_like(x), -np.log10(x)], axis=1)
    values, *_ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ values
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals) / (len(x) - 2)
    return _fit(LOG_LINEAR, "ab", values, covariance, y, residuals)


def power_law(x: Sequence[float], y: Sequence[float]) -> Fit | NotALaw:
    """Least squares of y = c + a x^-b with a, b, c >= 0 (a loss has a floor and does not rise with scale).

    x is divided by its geometric mean while fitting, which makes a and b far less correlated. A fit that ends at a
    bound or has no finite covariance is not called a law: its parameters are then not determined by the points.
    """
    x, y = _points(x, y)
    if problem := _too_few(x):
        return problem
    scale, span = float(np.exp(np.log(x).mean())), float(np.ptp(y))
    if span <= 1e-9 * np.abs(y).max():
        return NotALaw(len(x), "y does not vary")
    curve = FORMS[POWER_LAW]
    try:
        values, covariance = optimize.curve_fit(
            curve, x / scale, y, p0=(span, 0.3, max(float(y.min()) - span, 0.0)), bounds=(0.0, np.inf), maxfev=20_000
        )
    except (RuntimeError, ValueError) as error:
        return NotALaw(len(x), f"the fit did not converge ({error})")
    if not np.isfinite(covariance).all() or values[0] < 1e-9 * span or values[1] < 1e-6:
        return NotALaw(len(x), "the points do not determine a, b and c")
    if values[2] < 1e-6 * span:
        return NotALaw(len(x), "c is at its bound of 0, so the points show no floor")
    a, b, c = values
    grow = scale**b
    jacobian = np.array([[grow, a * grow * math.log(scale), 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    residuals = y - curve(x / scale, *values)
    return _fit(POWER_LAW, "abc", (a * grow, b, c), jacobian @ covariance @ jacobian.T, y, residuals)


def law(x: Sequence[float], y: Sequence[float]) -> Fit | NotALaw:
    """`power_law` where the points determine its exponent, else `log_linear` with a note that says why."""
    fit = power_law(x, y)
    if isinstance(fit, Fit) and fit.interval("b").low > 0:
        return fit
    why = fit.reason if isinstance(fit, NotALaw) else "the interval of its exponent includes 0"
    line = log_linear(x, y)
    return replace(line, note=f"no power law: {why}") if isinstance(line, Fit) else line


def line_weights(x: Sequence[float], line: Sequence[Hashable] | None = None) -> np.ndarray:
    """Weights w of the points such that sum(w * y) is b of y = a - b log10(x), least squares, one a for each line, b shared."""
    points = pd.DataFrame({"x": np.log10(_finite(x)), "line": 0 if line is None else list(line)})
    centred = points.x - points.groupby("line").x.transform("mean")
    return (-centred / (centred**2).sum()).to_numpy()


def line_r2(x: Sequence[float], y: np.ndarray, line: Sequence[Hashable] | None = None) -> np.ndarray:
    """Share of the variance within lines that y = a - b log10(x) explains (one a for each line); y is (..., points)."""
    points = pd.DataFrame({"x": np.log10(_finite(x)), "line": 0 if line is None else list(line)})
    y = np.asarray(y, float)
    within = np.eye(len(points)) - (same := (points.line.to_numpy()[:, None] == points.line.to_numpy())) / same.sum(1)
    x_in, y_in = within @ points.x.to_numpy(), y @ within.T
    total = (y_in**2).sum(-1)
    return np.divide((y_in @ x_in) ** 2 / (x_in @ x_in), total, out=np.ones_like(total), where=total > 0)


def line_slope(
    x: Sequence[float],
    values: Sequence[Mapping[int, float]],
    blocks: Sequence[Hashable],
    line: Sequence[Hashable] | None = None,
    seed_noise: Noise | None = None,
) -> Interval:
    """b of y = a - b log10(x) through the means of `values` (by seed) at each x, one a for each line, with its interval.

    The interval is that of `contrast` (method "seed noise"), or, where no seed was repeated, the t interval of what the
    lines leave ("residuals of the line"). `n` counts seeds.
    """
    weights = line_weights(x, line)
    terms = [Term(w, by_seed, block) for w, by_seed, block in zip(weights, values, blocks, strict=True)]
    found = contrast(terms, seed_noise)
    if found.bounded:
        return replace(found, method="seed noise")
    y, method = np.array([np.mean(list(by_seed.values())) for by_seed in values]), "residuals of the line"
    freedom = len(y) - len(set([0] if line is None else line)) - 1
    if freedom < 1:
        return replace(found, method=method)
    points = pd.DataFrame({"x": np.log10(_finite(x)), "y": y, "line": 0 if line is None else list(line)})
    left = points.y + found.value * points.x
    left -= left.groupby(points.line).transform("mean")
    error = math.sqrt(float((left**2).sum()) / freedom * float((weights**2).sum()))
    return replace(_t_interval(found.value, error, 1, freedom, method), n=found.n)


def line_r2_interval(
    x: Sequence[float],
    values: Sequence[Mapping[int, float]],
    line: Sequence[Hashable] | None = None,
    seed_noise: Noise | None = None,
    level: float = 0.95,
) -> Interval:
    """`line_r2` of the means of `values`, its interval by bootstrap: every run gets the deviation of some repeated seed."""
    y = np.array([np.mean(list(by_seed.values())) for by_seed in values])
    r2, n = float(line_r2(x, y, line)), min(map(len, values))
    if seed_noise is None:
        return Interval(r2, math.nan, math.nan, n, "one seed")
    rng = np.random.default_rng(0)
    moved = [rng.choice(seed_noise.deviations, (RESAMPLES, len(by_seed))).mean(axis=1) for by_seed in values]
    low, high = np.quantile(line_r2(x, y + np.stack(moved, axis=1), line), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(r2, float(low), float(high), n, "seed bootstrap")


def share(value: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of n trials, inside [0, 1]; too wide where a trial is itself a mean of picks."""
    hits, tail = value * n, 0.5 - level / 2
    low = float(distributions.beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    return low, float(distributions.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0


def slope(
    runs: pd.DataFrame, seed_noise: Noise | None = None, y: str = "test_loss", x: str = "active_params"
) -> Interval | NotALaw:
    """Loss gained by ten times the activated parameters along a path of sizes, with its 95 % interval: b of y = a - b log10(x).

    Tokens may move with the size (they do in the presets), so this is the slope of that compute path and of no other.
    The fit is through the mean of each size. Where seeds are repeated (here, or in the runs behind `seed_noise`), the
    interval is what other seeds of the same sizes would give; else it is the t interval of what the line leaves.

    Args:
        runs: runs of one architecture, with columns `x`, `y` and seed.
        seed_noise: from more runs than these; by default from these alone.

    Returns:
        The interval, `n` the number of sizes and `method` one of "seed noise" and "residuals of the line"; `NotALaw` with
        fewer than four sizes.
    """
    runs = runs.dropna(subset=[x, y])
    sizes = {float(at): dict(zip(here.seed, here[y], strict=True)) for at, here in runs.groupby(x)}
    if problem := _too_few(np.array(list(sizes))):
        return problem
    if seed_noise is None:
        seed_noise = noise(pd.DataFrame({"config": runs[x], "seed": runs.seed, "block": runs[x], "value": runs[y]}))
    found = line_slope(list(sizes), list(sizes.values()), list(sizes), seed_noise=seed_noise)
    return replace(found, n=len(sizes))


def slopes(runs: pd.DataFrame, y: str = "test_loss") -> dict[str, Interval | NotALaw]:
    """`slope` of every architecture of the comparison's runs, with the seed noise of all of them together."""
    cells = pd.DataFrame({"config": runs.arch + " " + runs["size"], "seed": runs.seed, "block": runs["size"], "value": runs[y]})
    pooled = noise(cells)
    return {arch: slope(here, pooled, y) for arch, here in runs.groupby("arch", sort=False)}


def _fit(form: str, names: str, values, covariance: np.ndarray, y: np.ndarray, residuals: np.ndarray) -> Fit:
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float(residuals @ residuals) / spread if spread else 1.0
    stderr = np.sqrt(np.diag(covariance))
    params = {k: float(v) for k, v in zip(names, values, strict=True)}
    errors = {k: float(v) for k, v in zip(names, stderr, strict=True)}
    return Fit(form, params, errors, r2, len(y), residuals, covariance)


def _too_few(x: np.ndarray) -> NotALaw | None:
    n = len(np.unique(x))
    return NotALaw(n, f"{n} point{'s' * (n != 1)}, a law needs {MIN_POINTS}") if n < MIN_POINTS else None


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite(x), _finite(y)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} x but {len(y)} y")
    if (x <= 0).any():
        raise ValueError("a scaling fit needs x > 0")
    return x, y


def _finite(values) -> np.ndarray:
    x = np.asarray(list(values), float)
    if not len(x):
        raise ValueError("no values")
    if not np.isfinite(x).all():
        raise ValueError("a value is not a finite number")
    return x
