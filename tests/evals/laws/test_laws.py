"""Laws of known exponents: found within their interval, by an objective that scipy cannot lower, or not claimed at all."""

import numpy as np
import pandas as pd
import pytest
from laws import SIZES, frames, joint, reference, run_row
from scipy import optimize

from evals.laws import huber, law
from evals.laws.fits import JOINT, rows
from evals.laws.points import Points


def series(runs, arms=(), axes=("N", "D"), resamples=60, arch="dense"):
    points = Points(*frames(runs, arms), resamples)
    names = [*points.grid(arch), *points.chain("scaling_tokens")["run"]]
    columns = {"N": points.runs["active_params"], "D": points.runs["tokens"]}
    columns["C"] = 3 * points.runs["flops_per_token"] * points.runs["tokens"]
    return points.of(names, {axis: columns[axis] for axis in axes})


def test_the_joint_law_finds_its_exponents_and_predicts_the_size_that_it_did_not_see():
    found = law.fit(series(*reference()))
    this = found.stands
    assert this.form == "L = E + A (N/N0)^-alpha + B (D/D0)^-beta"
    for name, known in (("E", 2.0), ("alpha", 0.4), ("beta", 0.3)):
        low, high = this.interval(name)
        assert low < known < high, name
        assert high / low < law.WIDE, name
    assert (this.starts, this.agree) == (25, 25)
    assert this.held.size == "d128"
    assert this.held.low < joint(0.92e6, 9.2e6) < this.held.high
    assert this.held.truth == pytest.approx(joint(0.92e6, 9.2e6), rel=0.01)
    assert np.abs(this.residuals).max() < 0.012
    assert "d128 left out is predicted at" in found.statement
    line = next(one for one in found.laws if not one.power)
    assert line.held.predicted < this.held.low  # a line runs on below the floor


def test_the_objective_is_that_of_huber_and_nothing_finds_a_lower_one():
    rng = np.random.default_rng(0)
    log_z = np.log(np.stack([np.tile([0.4, 0.7, 1.5, 2.6], 6), np.repeat([0.2, 0.4, 0.8, 1.6, 3.2, 6.4], 4)], 1))
    losses = huber.powers(log_z, np.array([[0.5, 0.25]]))[0] @ [2.0, 1.0, 1.5] * np.exp(rng.standard_t(2, (3, 24)) * 0.004)
    found = huber.power(np.stack([log_z] * 3), losses, np.repeat(huber.grid_of_starts(2)[None], 3, 0))
    for here, of in zip(losses, (found[i] for i in range(3)), strict=True):
        best = of[int(of.objective.argmin())]
        residual = np.log(huber.powers(log_z, best.exponents[None])[0] @ best.linear) - np.log(here)
        small = np.abs(residual) <= 1e-3
        assert best.objective == pytest.approx(
            (residual[small] ** 2 / 2).sum() + 1e-3 * (np.abs(residual[~small]) - 5e-4).sum()
        )
        assert huber.polished(log_z, here, best).objective == pytest.approx(best.objective, rel=1e-4)

        def free(v, here=here):
            return huber.huber(np.log(np.maximum(v[:3] @ huber.powers(log_z, v[None, 3:])[0].T, 1e-9)) - np.log(here))

        ends = [(0, None)] * 3 + [huber.BOUNDS] * 2
        other = optimize.minimize(free, [1.8, 1.1, 1.6, 0.45, 0.27], method="L-BFGS-B", bounds=ends, options={"maxiter": 2000})
        assert best.objective <= other.fun * (1 + 1e-6)


def test_linear_parameters_are_those_of_nonnegative_least_squares():
    rng = np.random.default_rng(2)
    columns, target, weights = rng.normal(size=(40, 9, 3)), rng.normal(size=(40, 9)), rng.random((40, 9))
    found = huber._solve(columns, target, weights, signed=True)
    for i in range(40):
        root = np.sqrt(weights[i])
        known, _ = optimize.nnls(columns[i] * root[:, None], target[i] * root)
        assert found[i] == pytest.approx(known, abs=1e-8)


def test_an_outlier_moves_least_squares_and_not_the_law():
    runs, arms = reference(noise=0.001)
    planted = [run | {"test_loss": run["test_loss"] * 1.08} if run["run"] == "dense-d96-s1" else run for run in runs]
    clean, moved = (law.estimate(series(here, arms, resamples=0), power=True) for here in (runs, planted))
    assert moved.params["alpha"] == pytest.approx(clean.params["alpha"], rel=0.1)
    path = [law.estimate(series(here, axes=("C",), resamples=0), power=True).params["alpha"] for here in (runs, planted)]
    least = []
    for here in (runs, planted):
        x, y = zip(*((6 * r["active_params"] * r["tokens"], r["test_loss"]) for r in here if "." not in r["run"]), strict=True)
        x, start = np.array(x) / np.exp(np.log(x).mean()), (np.ptp(y), 0.3, min(y) - np.ptp(y))
        (_, b, _), _ = optimize.curve_fit(lambda x, a, b, c: c + a * x**-b, x, y, start, bounds=(0, np.inf), maxfev=20_000)
        least.append(b)
    assert abs(np.log(path[1] / path[0])) < 0.1 < abs(np.log(least[1] / least[0])) / 2
    assert moved.residuals.max() == pytest.approx(np.log(1.08), abs=0.01)


def test_points_without_curvature_fall_back_to_a_line_and_say_so():
    found = law.fit(
        series(reference(law=lambda n, d: 6.0 - 0.8 * np.log10(n * d / 1e11), noise=0.002, sweep=())[0], axes=("C",))
    )
    assert not found.stands.power
    assert found.stands.form == "L = c - b log10(C/C0)"
    low, high = found.stands.interval("b")
    assert low < 0.8 < high
    assert found.statement.startswith("log-linear, since E is not told from its bound of 0, so the points show no floor")
    assert {one.power for one in found.laws} == {True, False}


def test_a_wide_interval_says_nothing():
    """A floor that shows and an exponent that does not: noise of the size of the last steps."""
    found = law.fit(
        series(reference(law=lambda n, d: 4.0 + 0.2 * (n * d / 2e12) ** -0.5, noise=0.012, sweep=())[0], axes=("C",))
    )
    assert not found.stands.power
    assert "wider than a factor of 4" in found.statement or "touches a bound" in found.statement


def test_equal_seeds_have_no_width_and_one_seed_no_interval():
    runs, arms = reference(noise=0.0)
    this = law.fit(series(runs, arms)).stands
    assert this.power
    for name, known in (("alpha", 0.4), ("beta", 0.3)):
        assert this.interval(name) == pytest.approx((known, known), rel=1e-3)
        assert np.ptp(this.interval(name)) == pytest.approx(0, abs=1e-6)
    alone = law.fit(series(*reference(seeds=1)))
    assert not alone.stands.power
    assert "no seed was repeated, so alpha has no interval" in alone.statement
    assert np.isnan(alone.stands.interval("b")).all()


def test_what_cannot_be_told_apart_is_no_law_and_a_run_without_a_loss_is_named():
    runs, _ = reference(sweep=())
    assert law.fit(series(runs)).statement.startswith("not a law: tokens move with the size")
    few = law.fit(series([run for run in runs if run["size"] != "d128"], axes=("C",)))
    assert few.statement == "not a law: 3 sizes, a law needs 4"
    (row,) = rows(JOINT, "", few)
    assert (row["n_runs"], row["n_points"], row["stands"]) == (9, 3, False)
    lost = [run | {"test_loss": None, "status": "stopped"} if run["run"] == "dense-d64-s1" else run for run in runs]
    lost = [run | {"data_sha": "other"} if run["run"] == "dense-d48-s0" else run for run in lost]
    found = law.fit(series(lost, axes=("C",)))
    assert found.statement.endswith("left out: dense-d48-s0 (other data), dense-d64-s1 (no test loss)")
    assert len(found.series.runs) == 10


def test_seeds_are_drawn_within_cells_alike_for_what_shares_batches():
    runs, _ = reference(("dense", "pkm"), sweep=(), noise=0.01)
    runs.append(run_row("dense-d160-s0", "dense", "d160", 1.4e6, 1.4e7, 0, 3.5))
    points = Points(pd.DataFrame(runs), resamples=4000)
    for size in SIZES:
        logs = np.log(points.of([f"dense-{size}-s{seed}" for seed in range(3)], {}).losses)
        drawn = logs[1:].mean(1)
        assert drawn.mean() == pytest.approx(logs[0].mean(), abs=5e-4)
        assert drawn.std() == pytest.approx(logs[0].std(ddof=1) / np.sqrt(3), rel=0.05)  # not a fifth less
        other = np.log(points.of([f"pkm-{size}-s{seed}" for seed in range(3)], {}).losses)
        same = [np.corrcoef(logs[1:, 0] == logs[1:, 1], other[1:, 0] == other[1:, 1])[0, 1]]
        assert same == pytest.approx([1.0])
    alone = np.log(points.of(["dense-d160-s0"], {}).losses[1:, 0])
    assert alone.std() == pytest.approx(np.log(points.of(["dense-d96-s0"], {}).losses[1:]).std(), rel=1.0)
    assert alone.std() > 0
