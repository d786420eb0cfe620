"""Scaling laws with intervals, the ranking by every counting rule, and gains as the compute that dense would need.

From the tables of a results folder alone: `runs.csv`, and `arms.csv`, `counting.csv` and training curves where they are. A law
is fitted for every architecture over sizes and tokens jointly (`joint`: the grid and the chain scaling_tokens together), along
the grid's own path (`compute`), and over the chain sparsity (`sparse ratio`, `table size`). `evals.laws.law` says when a power
law stands and when a line does.

    python -m evals.laws.fits --results results/cpu --out results/cpu/fits.csv
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from evals.laws import counting
from evals.laws.equivalents import equivalents, undisturbed
from evals.laws.law import Fitted, Law, fit_all
from evals.laws.points import SPARSITY, TOKENS, Points, Series
from evals.records import options, schema
from evals.records.curves import curves
from evals.records.errors import run

JOINT, COMPUTE, RATIO, TABLE = "joint", "compute", "sparse ratio", "table size"


def all_series(points: Points, counts: pd.DataFrame | None = None) -> Iterator[tuple[str, str, Series]]:
    """(fit, name of the series, its runs) of everything that is fitted, the table `counting` in `counts`."""
    runs, sweep = points.runs, points.chain(TOKENS)
    for arch in points.archs:
        names = [*points.grid(arch), *sweep["run"][sweep["arch"] == arch]]
        yield JOINT, "", points.of(names, {"N": runs["active_params"], "D": runs["tokens"]})
    for rule, parts in counting.rules().items() if counts is not None else ():
        of_rule = counting.counted(counts, parts)
        for arch in points.archs:
            spent = counting.compute(points, points.grid(arch), of_rule)
            if len(spent):
                yield COMPUTE, rule, points.of(spent.index, {"C": spent}, points.grid(arch))
    if counts is None:
        spent = 3 * runs["flops_per_token"] * runs["tokens"].astype(float)
        for arch in points.archs:
            yield COMPUTE, counting.PAPERS, points.of(points.grid(arch), {"C": spent})
    for (_, line), here in points.chain(SPARSITY).groupby(["arch", "line"], sort=False):
        yield RATIO, line, points.of(here["run"], {"S": runs["sparse_params"] / runs["active_params"]})
        yield TABLE, line, points.of(here["run"], {"S": runs["sparse_params"]})


def rows(name: str, series: str, found: Fitted) -> list[dict]:
    """Rows of the table `fits` of one fit: a row for each parameter of each form, or one that says why there is none."""
    runs = found.series.runs
    about = {"fit": name, "arch": found.series.arch, "series": series, "n_runs": len(runs), "statement": found.statement}
    about["n_points"] = len(found.series.x.drop_duplicates())
    if not found.laws:
        return [about | {"stands": False}]
    return [about | row for law in found.laws for row in _of_law(law, runs, law is found.stands)]


def _of_law(law: Law, runs: pd.DataFrame, stands: bool) -> Iterator[dict]:
    worst = int(np.abs(law.residuals).argmax())
    about = {"form": law.form, "stands": stands, "objective": law.objective, "starts": law.starts, "agree": law.agree}
    about |= {"worst_residual": float(law.residuals[worst]), "worst_run": runs["run"].iloc[worst]}
    if held := law.held:
        about |= {"held_out": held.size, "predicted": held.predicted, "predicted_low": held.low}
        about |= {"predicted_high": held.high, "truth": held.truth}
    for parameter, value in law.params.items():
        low, high = law.interval(parameter)
        yield about | {"parameter": parameter, "value": value, "low": low, "high": high}
    for axis, centre in zip(law.axes, law.centre.tolist(), strict=True):
        yield about | {"parameter": f"{axis}0", "value": centre}


def tables(folder: Path, resamples: int) -> dict[str, list[dict]]:
    """Rows of `fits`, `ranking` and `equivalents` of a results folder."""
    runs = schema.read(folder / "runs.csv", "runs")
    arms, counts = (
        schema.read(path, name) if (path := folder / f"{name}.csv").exists() else None for name in ("arms", "counting")
    )
    points = Points(runs, arms, resamples)
    times = undisturbed(points.runs, curves(folder, points.runs["run"]))
    series = [one for one in all_series(points, counts) if len(one[2].runs)]
    hold_out = [name != COMPUTE or rule == counting.PAPERS for name, rule, _ in series]
    found = fit_all([here for *_, here in series], hold_out)
    fits = [row for (name, rule, _), each in zip(series, found, strict=True) for row in rows(name, rule, each)]
    ranked = counting.ranking(points, counts) if counts is not None else []
    return {"fits": fits, "ranking": ranked, "equivalents": equivalents(points, times)}


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a results folder, e.g. results/cpu")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table fits")
    parser.add_argument("--ranking", type=Path, help="where to write the table ranking, if it is wanted")
    parser.add_argument("--equivalents", type=Path, help="where to write the table equivalents, if it is wanted")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap over seeds (default: %(default)s)")
    args = parser.parse_args(arguments)
    found = tables(args.results, args.resamples)
    for table, path in (("fits", args.out), ("ranking", args.ranking), ("equivalents", args.equivalents)):
        if path:
            schema.write(path, table, found[table])
    told = {(row["fit"], row["arch"], row["series"]): row["statement"] for row in found["fits"]}
    for (name, arch, series), statement in told.items():
        if name != COMPUTE or series == counting.PAPERS:
            print(f"{name} {series}, {arch}: {statement}".replace(" ,", ","))


if __name__ == "__main__":
    run(main)
