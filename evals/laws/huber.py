"""L = E + sum_j A_j z_j^-alpha_j, fitted to many resamples of the losses at once: Huber on log L, linear parameters eliminated.

The objective is sum_i H(log L(z_i) - log L_i), H the Huber loss of width `DELTA`, summed over runs as in Hoffmann et al. 2022
(2203.15556, D.3) and its re-fit (2404.10102). For given exponents E and A_j >= 0 are what is best for this same objective:
H is bounded by the parabola of weight min(1, DELTA / |r|) that touches it, log L is linearised about the present values, and
the weighted least squares that is left is solved exactly under the signs, by trying every support. Where that repeats itself
the conditions of the Huber objective hold, so nothing is approximated but by stopping. Exponents then move by Gauss-Newton
steps on what the linear parameters cannot explain (Kaufman's variable projection), damped until the objective falls.

B problems (resamples times starts), n runs, k axes, m = 1 + k linear parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import optimize

DELTA = 1e-3
BOUNDS = (0.02, 3.0)  # of an exponent
INNER, OUTER, LAST = 12, 60, 200
STARTS = {1: (0.03, 0.1, 0.25, 0.5, 1.0, 2.0), 2: (0.05, 0.15, 0.35, 0.8, 1.6)}
SAME = 1e-3  # two starts agree whose objectives differ by less than this part
TINY = 1e-14  # an objective of points that lie on the curve


@dataclass(frozen=True)
class Solution:
    """`linear` (B, m): E and A_j, or of a straight line height and slopes; `exponents` (B, k or 0); `objective` (B,)."""

    linear: np.ndarray
    exponents: np.ndarray
    objective: np.ndarray

    def __getitem__(self, rows: Any) -> Solution:
        return Solution(self.linear[rows], self.exponents[rows], self.objective[rows])


def huber(residual: np.ndarray) -> np.ndarray:
    """Summed over the last axis."""
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2)).sum(-1)


def powers(log_z: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Columns 1 and z_j^-alpha_j, (B, n, m), of `log_z` (n, k) or (B, n, k) and exponents (B, k)."""
    terms = np.exp(-exponents[:, None, :] * log_z)
    return np.concatenate([np.ones_like(terms[..., :1]), terms], -1)


def lines(log_z: np.ndarray) -> np.ndarray:
    """Columns 1 and -log10 z_j, (..., n, m)."""
    return np.concatenate([np.ones_like(log_z[..., :1]), -log_z / np.log(10)], -1)


def straight(log_z: np.ndarray, losses: np.ndarray) -> Solution:
    """L = c - sum_j b_j log10 z_j for losses (B, n) at `log_z` (B, n, k), by the same objective; no sign is asked for."""
    columns = lines(log_z)
    linear, objective = _linear(columns, np.log(losses), _first(columns, losses, signed=False), LAST, signed=False)
    return Solution(linear, np.zeros((len(losses), 0)), objective)


def power(log_z: np.ndarray, losses: np.ndarray, starts: np.ndarray) -> Solution:
    """What `starts` (B, s, k) lead to for losses (B, n) at `log_z` (B, n, k): arrays (B, s, ...)."""
    B, s, k = starts.shape
    found = _power(np.repeat(log_z, s, 0), np.repeat(np.log(losses), s, 0), np.log(starts.reshape(B * s, k)))
    return Solution(*(values.reshape(B, s, *values.shape[1:]) for values in (found.linear, found.exponents, found.objective)))


def grid_of_starts(k: int) -> np.ndarray:
    """Exponents to start from, (starts, k)."""
    return np.array(list(product(STARTS[k], repeat=k)))


def polished(log_z: np.ndarray, losses: np.ndarray, found: Solution) -> Solution:
    """`found` (one problem) after scipy's trust region on all parameters of the same objective, if that finds less.

    It hardly ever does; that it does not is what says that the search above has converged.
    """
    m, low = 1 + log_z.shape[1], np.log(BOUNDS[0])

    def residual(values: np.ndarray) -> np.ndarray:
        terms = powers(log_z, np.exp(values[None, m:]))[0]
        return np.log(np.maximum(terms @ values[:m], 1e-9)) - np.log(losses)

    start = np.concatenate([np.maximum(found.linear, 1e-12), np.log(found.exponents)])
    ends = ([0.0] * m + [low] * (m - 1), [np.inf] * m + [np.log(BOUNDS[1])] * (m - 1))
    start = np.clip(start, np.add(ends[0], 1e-12), np.subtract(ends[1], 1e-12))
    done = optimize.least_squares(residual, start, bounds=ends, loss="huber", f_scale=DELTA, x_scale="jac", max_nfev=400)
    if not done.cost < found.objective * (1 - 1e-9):
        return found
    return Solution(done.x[:m], np.exp(done.x[m:]), np.asarray(done.cost))


def _first(columns: np.ndarray, losses: np.ndarray, signed: bool) -> np.ndarray:
    """Linear parameters by least squares of relative errors."""
    scaled = columns / losses[..., None]
    return _solve(scaled, np.ones_like(losses), np.ones_like(losses), signed)


def _linear(
    columns: np.ndarray, logs: np.ndarray, linear: np.ndarray, iterations: int, signed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """E and A_j >= 0 that are best for given columns (B, n, m) by the Huber objective, from `linear`, and the objective."""
    best, least = linear, np.full(len(logs), np.inf)
    for _ in range(iterations):
        curve = np.maximum(np.einsum("bnm,bm->bn", columns, linear), 1e-9)
        residual = np.log(curve) - logs
        objective = huber(residual)
        better = objective < least
        if not (objective < least * (1 - 1e-10)).any():
            best, least = np.where(better[:, None], linear, best), np.minimum(objective, least)
            break
        best, least = np.where(better[:, None], linear, best), np.minimum(objective, least)
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
        linear = _solve(columns / curve[..., None], 1.0 - residual, weights, signed)
    return best, least


def _solve(columns: np.ndarray, target: np.ndarray, weights: np.ndarray, signed: bool) -> np.ndarray:
    """Weighted least squares (B, m); with signs, the best of the supports whose solution has none below zero."""
    weighted = columns * weights[..., None]
    gram, right = np.einsum("bnm,bnl->bml", weighted, columns), np.einsum("bnm,bn->bm", weighted, target)
    m = columns.shape[-1]
    if not signed:
        return _ridged(gram, right)
    best, gain = np.zeros_like(right), np.full(len(right), -np.inf)
    for kept in product((True, False), repeat=m):
        on = [place for place in range(m) if kept[place]]
        if not on:
            continue
        part = _ridged(gram[:, on][:, :, on], right[:, on])
        fits = np.where((part >= 0).all(-1), np.einsum("bm,bm->b", part, right[:, on]), -np.inf)
        better = fits > gain * (1 + 1e-13)
        gain = np.where(better, fits, gain)
        whole = np.zeros_like(right)
        whole[:, on] = part
        best = np.where(better[:, None], whole, best)
    return best


def _ridged(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """gram^-1 right; the last digits of a singular matrix are lost instead of the fit."""
    scale = np.sqrt(np.einsum("bmm->bm", gram)) + 1e-300
    unit = gram / (scale[:, :, None] * scale[:, None, :]) + 1e-13 * np.eye(gram.shape[-1])
    return np.linalg.solve(unit, (right / scale)[..., None])[..., 0] / scale


def _power(log_z: np.ndarray, logs: np.ndarray, log_exponents: np.ndarray) -> Solution:
    low, high = np.log(BOUNDS)
    at, damping = np.clip(log_exponents, low, high), np.full(len(logs), 1e-3)
    columns = powers(log_z, np.exp(at))
    linear, least = _linear(columns, logs, _first(columns, np.exp(logs), True), 4 * INNER, True)
    left = np.arange(len(logs))  # problems that still move
    for _ in range(OUTER):
        now, curves, y = at[left], columns[left], logs[left]
        step = _step(log_z[left], curves, y, linear[left], np.exp(now), damping[left])
        tried = np.clip(now + np.clip(step, -1.0, 1.0), low, high)
        new = powers(log_z[left], np.exp(tried))
        values, objective = _linear(new, y, linear[left], INNER, True)
        before = least[left]
        better = objective < before
        at[left], linear[left] = np.where(better[:, None], tried, now), np.where(better[:, None], values, linear[left])
        columns[left], least[left] = np.where(better[:, None, None], new, curves), np.where(better, objective, before)
        damping[left] = np.clip(np.where(better, damping[left] / 5, damping[left] * 6), 1e-9, 1e9)
        stuck = np.where(better, before - objective < 1e-9 * before, damping[left] > 1e5) | (least[left] < TINY)
        left = left[~stuck]
        if not len(left):
            break
    linear, least = _linear(columns, logs, linear, LAST, True)
    return Solution(linear, np.exp(at), least)


def _step(
    log_z: np.ndarray,
    columns: np.ndarray,
    logs: np.ndarray,
    linear: np.ndarray,
    exponents: np.ndarray,
    damping: np.ndarray,
) -> np.ndarray:
    """Gauss-Newton step of the logs of the exponents, (B, k): their part that E and A_j in use cannot follow."""
    curve = np.maximum(np.einsum("bnm,bm->bn", columns, linear), 1e-9)
    residual = np.log(curve) - logs
    weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
    unit = columns / curve[..., None] * (linear > 0)[:, None, :]
    jacobian = -exponents[:, None, :] * linear[:, None, 1:] * columns[..., 1:] * log_z / curve[..., None]
    weighted = unit * weights[..., None]
    gram = np.einsum("bnm,bnl->bml", weighted, unit) + np.einsum("bm,ml->bml", linear <= 0, np.eye(unit.shape[-1]))
    for j in range(jacobian.shape[-1]):
        along = _ridged(gram, np.einsum("bnm,bn->bm", weighted, jacobian[..., j]))
        jacobian[..., j] -= np.einsum("bnm,bm->bn", unit, along)
    slope = np.einsum("bnk,bn->bk", jacobian * weights[..., None], residual)
    curvature = np.einsum("bnk,bnl->bkl", jacobian * weights[..., None], jacobian)
    scale = np.einsum("bkk->bk", curvature)
    curvature += np.einsum("bk,kl->bkl", damping[:, None] * scale + 1e-15, np.eye(scale.shape[-1]))
    return -np.linalg.solve(curvature, slope[..., None])[..., 0]
