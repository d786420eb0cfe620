"""Scaling fits with bands.

There are two: `log_linear`, y = a - b * log10(x), the form of P1's sparse-parameter claim (figure 6b), and `power_law`,
y = c + a * x ** -b. Fewer than four distinct x are never called a law: the result is then a `NotALaw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as distributions

from evals.stats.intervals import finite

MIN_POINTS = 4


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

    def predict(self, x: ArrayLike) -> np.ndarray:
        return FORMS[self.form](np.asarray(x, float), *self.params.values())

    def band(self, x: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence band of the curve (not of new points), by the delta method."""
        x = np.asarray(x, float)
        values = np.array(list(self.params.values()))
        gradient = np.empty((len(x), len(values)))
        for i, value in enumerate(values):
            step = 1e-6 * max(abs(value), 1e-3)
            up, down = values.copy(), values.copy()
            up[i], down[i] = value + step, value - step
            gradient[:, i] = (FORMS[self.form](x, *up) - FORMS[self.form](x, *down)) / (2 * step)
        quantile = float(distributions.t.ppf(0.5 + level / 2, self.n - len(values)))
        half = quantile * np.sqrt(np.einsum("ni,ij,nj->n", gradient, self.covariance, gradient))
        return self.predict(x) - half, self.predict(x) + half


FORMS: dict[str, Callable[..., np.ndarray]] = {
    "y = a - b log10(x)": lambda x, a, b: a - b * np.log10(x),
    "y = c + a x^-b": lambda x, a, b, c: c + a * x**-b,
}


LOG_LINEAR, POWER_LAW = FORMS


def log_linear(x: Sequence[float], y: Sequence[float]) -> Fit | NotALaw:
    """Least squares of y = a - b log10(x); b > 0 means that y falls as x grows."""
    x, y = _points(x, y)
    if problem := too_few(x):
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
    if problem := too_few(x):
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


def _fit(form: str, names: str, values: Iterable[float], covariance: np.ndarray, y: np.ndarray, residuals: np.ndarray) -> Fit:
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float(residuals @ residuals) / spread if spread else 1.0
    stderr = np.sqrt(np.diag(covariance))
    params = {k: float(v) for k, v in zip(names, values, strict=True)}
    errors = {k: float(v) for k, v in zip(names, stderr, strict=True)}
    return Fit(form, params, errors, r2, len(y), residuals, covariance)


def too_few(x: np.ndarray) -> NotALaw | None:
    """Why the points carry no law, if they have fewer than `MIN_POINTS` distinct x."""
    n = len(np.unique(x))
    return NotALaw(n, f"{n} point{'s' * (n != 1)}, a law needs {MIN_POINTS}") if n < MIN_POINTS else None


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = finite(x), finite(y)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} x but {len(y)} y")
    if (x <= 0).any():
        raise ValueError("a scaling fit needs x > 0")
    return x, y
