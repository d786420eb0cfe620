"""Differences with intervals, and scaling fits with bands.

Seeds fix the order of the data, so two architectures trained with one seed saw the same batches: their difference is
taken seed by seed (paired), which removes the part of the noise that both share. Where no two seeds match, the means
are compared (Welch). One seed gives a number and no interval, and says so.

Scaling fits are two: `log_linear`, y = a - b * log10(x), the form of P1's sparse-parameter claim (figure 6b), and
`power_law`, y = c + a * x ** -b. Fewer than four distinct x are never called a law: the result is then a `NotALaw`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize
from scipy import stats as distributions

MIN_POINTS = 4
RESAMPLES = 10_000
OWN_ROOFLINE = 1.3  # a mixture of experts that takes longer than this times its own roofline is no yardstick


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `low` and `high` are NaN where `n` values allow none.

    `n` counts pairs (paired), the smaller group (Welch) or values, and `method` says which.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with its t interval."""
    x = _finite(values)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan, len(x), "one value")
    half = distributions.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x), "t")


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
        return Interval(result.value, result.low, result.high, result.n, f"paired {result.method}")
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
    half = distributions.t.ppf(0.5 + level / 2, freedom) * math.sqrt(variances.sum())
    return Interval(value, value - half, value + half, n, "Welch")


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

    @property
    def statement(self) -> str:
        values = ", ".join(f"{k} = {v:.4g} ± {self.stderr[k]:.2g}" for k, v in self.params.items())
        return f"{self.form}: {values}; R² = {self.r2:.3f}; {self.n} points"

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
    a, b, c = values
    grow = scale**b
    jacobian = np.array([[grow, a * grow * math.log(scale), 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    residuals = y - curve(x / scale, *values)
    return _fit(POWER_LAW, "abc", (a * grow, b, c), jacobian @ covariance @ jacobian.T, y, residuals)


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
