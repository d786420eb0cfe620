"""Fitted laws as `fits.csv` has them: the joint law beside its runs and what it leaves, every fit, and every counting rule."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from evals.laws.counting import PAPERS
from evals.laws.fits import RATIO, TABLE
from evals.laws.law import curves
from evals.laws.points import SPARSITY, TOKENS, Points
from reports import figures
from reports.figures import Series
from reports.page import Cell, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import in_order, interval, look

LOSS = "test loss (nats/token)"
PLACES = ("N0", "D0", "C0", "S0")


class Along:
    """A law of `fits.csv` along one axis; `other` makes of places on it those on all axes."""

    def __init__(self, rows: pd.DataFrame, axes: tuple[str, ...], other=lambda x: x[:, None]):
        self.power, self.other = rows["form"].iloc[0].startswith("L = E"), other
        values = rows.set_index("parameter")["value"]
        self.draws = values.drop([name for name in PLACES if name in values]).to_numpy()[None]
        self.centre = values[[f"{axis}0" for axis in axes]].to_numpy()

    def at(self, x: np.ndarray) -> np.ndarray:
        """Losses at places (points, axes)."""
        return curves(self.power, self.draws, np.log(x / self.centre))[0]

    def predict(self, x) -> np.ndarray:
        x = np.asarray(x, float)
        return self.at(self.other(x))


def fits(results: Results) -> Iterator:
    """The joint law and its residuals, every fit with intervals, and what the rule of counting changes."""
    if "fits" in results:
        yield from _laws(results, results["fits"])
    else:
        yield results.missing("fits")
    if "ranking" in results:
        yield from _rules(results, results["ranking"])
    else:
        yield results.missing("ranking")


def _laws(results: Results, frame: pd.DataFrame) -> Iterator:
    """How laws are fitted, the joint one, all of them, and the exponent by every rule."""
    yield Text(
        "Fits with intervals: a Huber loss on log L (width 0.001, summed over runs), E, A and B at least 0 and eliminated by "
        "variable projection, from a grid of starts; intervals by resampling seeds within cells; end-of-schedule test losses "
        "only; the largest size left out and predicted. A power law is claimed where every exponent's interval is narrower "
        "than a factor of 4 and no bound is touched; elsewhere a line in log₁₀, which is a summary and not a law. Figures draw "
        "what stands. Axes are divided by the geometric mean of their runs (N₀, D₀, C₀ or S₀, in the CSV)."
    )
    yield from _joint(results, frame[(frame["fit"] == "joint") & frame["stands"]])
    yield from _tables(results, frame[frame["fit"].isin([RATIO, TABLE]) & frame["stands"]])
    yield from _table(results, frame)
    yield from _exponents(results, frame)


def _joint(results: Results, frame: pd.DataFrame) -> Iterator:
    """Loss along both axes with the joint law through it, and what the law leaves against either."""
    if frame.empty:
        return
    points = Points(results.runs, results.tables.get("arms"), resamples=0)
    sweep, sizes, budgets, left = points.chain(TOKENS), [], [], {"N": [], "D": []}
    for arch in in_order(frame["arch"]):
        names = [*points.grid(arch), *sweep["run"][sweep["arch"] == arch]]
        runs = points.runs.loc[[name for name in dict.fromkeys(names) if name in points.runs.index]]
        runs = runs.assign(N=runs["active_params"].astype(float), D=runs["tokens"].astype(float), y=runs["test_loss"])
        grid = runs[runs["run"].isin(points.grid(arch))].sort_values("N")
        swept = runs[runs["size"] == runs["size"].mode()[0]]
        path = grid.groupby("N")["D"].mean()

        def at_path(n, path=path):
            return np.stack([n, np.exp(np.interp(np.log(n), np.log(path.index), np.log(path)))], 1)

        def at_size(d, size=swept["N"].iloc[0]):
            return np.stack([np.full_like(d, size), d], 1)

        rows, label = frame[frame["arch"] == arch], look(arch).label
        law = Along(rows, ("N", "D"), at_path)
        sizes.append(Series(arch, label, grid.assign(x=grid["N"])[["x", "y", "run"]], law))
        budgets.append(Series(arch, label, swept.assign(x=swept["D"])[["x", "y", "run"]], Along(rows, ("N", "D"), at_size)))
        runs["residual"] = np.log(runs["y"] / law.at(runs[["N", "D"]].to_numpy()))
        for axis, found in left.items():
            found.append(Series(arch, label, runs.assign(x=runs[axis])[["x", "y", "run", "residual"]], law))
    text = {"y_label": "log of loss over law"}
    yield Picture(
        "fits.csv + runs.csv + arms.csv",
        "The joint law of size and tokens, L = E + A (N/N₀)⁻ᵅ + B (D/D₀)⁻ᵝ, or the line that stands in its place, one point a "
        "run: along the grid's own path, along the token sweep at its size, and what it leaves against either axis.",
        results.context(points.runs.loc[pd.concat([one.points for one in left["N"]])["run"].unique()]),
        [
            figures.laws("joint-sizes", sizes, title="Along the grid", x_label="activated parameters", y_label=LOSS),
            figures.laws("joint-tokens", budgets, title="Along the token sweep", x_label="tokens", y_label=LOSS),
            figures.residuals("joint-left-n", left["N"], title="What it leaves", x_label="activated parameters", **text),
            figures.residuals("joint-left-d", left["D"], title="What it leaves", x_label="tokens", **text),
        ],
        in_order(frame["arch"]),
        kinds(points.runs["device"]),
    )


def _tables(results: Results, frame: pd.DataFrame) -> Iterator:
    """Loss against how much is stored, at fixed density, with the law of each line of the chain."""
    if frame.empty:
        return
    points, panels, drawn = Points(results.runs, results.tables.get("arms"), resamples=0), [], []
    chain = points.chain(SPARSITY)
    for place, (fit, words) in enumerate(((RATIO, "sparse over activated parameters"), (TABLE, "sparse parameters"))):
        series = []
        for (arch, line), rows in frame[frame["fit"] == fit].groupby(["arch", "series"], sort=False):
            names = chain["run"][(chain["arch"] == arch) & (chain["line"] == line)]
            runs = points.runs.loc[[name for name in names if name in points.runs.index]]
            over = runs["active_params"] if fit == RATIO else 1.0
            runs = runs.assign(x=runs["sparse_params"] / over, y=runs["test_loss"]).sort_values("x")
            law = Along(rows, ("S",))
            runs["residual"] = np.log(runs["y"] / law.predict(runs["x"]))
            if len(runs):
                series.append(Series(arch, f"{look(arch).label} {line}".strip(), runs[["x", "y", "run", "residual"]], law))
        if series:
            drawn += series
            panels.append(figures.laws(f"table-{place}", series, title=f"Against {words}", x_label=words, y_label=LOSS))
            text = {"title": "What it leaves", "x_label": words, "y_label": "log of loss over law"}
            panels.append(figures.residuals(f"table-left-{place}", series, **text))
    if not drawn:
        return
    runs = points.runs.loc[list(dict.fromkeys(pd.concat([one.points["run"] for one in drawn])))]
    yield Picture(
        "fits.csv + runs.csv + arms.csv",
        "The law of stored parameters, chain sparsity, one point a run: what stands of a power law and a line, and what it "
        "leaves. Open markers and dashes are a second line of an architecture (half as dense).",
        results.context(runs),
        panels,
        in_order(runs["arch"]),
        kinds(runs["device"]),
    )


def _table(results: Results, frame: pd.DataFrame) -> Iterator:
    """One row a fit: the form that stands, its parameters, how it was found, and the held-out size."""
    frame = frame[(frame["fit"] != "compute") | (frame["series"] == PAPERS)]
    rows = []
    for (fit, arch, series), here in frame.groupby(["fit", "arch", "series"], sort=False, dropna=False):
        stands = here[here["stands"]] if here["stands"].any() else here
        one, shown = stands.iloc[0], stands[~stands["parameter"].isin(["", *PLACES])]
        values = "; ".join(_value(row.parameter, row.value, row.low, row.high) for row in shown.itertuples())
        row = [Cell(fit), arch_cell(arch), Cell(series if fit != "compute" and series else "–")]
        row += [Cell(_formula(one["form"]) or "none"), Cell(values or "–", kind="prose"), number(one["n_runs"], "d")]
        row += [number(one["n_points"], "d"), Cell("–" if pd.isna(one["starts"]) else f"{one['agree']:g} of {one['starts']:g}")]
        run = one["worst_run"]
        row.append(number(one["worst_residual"], "+.4f", results.href(run) if run else None))
        predicted = "–" if pd.isna(one["predicted"]) else f"{one['predicted']:.3f}"
        row += [Cell(one["held_out"] or "–"), Cell(predicted, number=True)]
        row += [Cell(interval(one["predicted_low"], one["predicted_high"])), number(one["truth"], ".3f")]
        rows.append([*row, Cell(one["statement"].replace("-", "−") if not shown.size else one["statement"], kind="prose")])
    header = ["fit", "architecture", "series", "form", "parameters [95 % interval]", "runs", "points", "starts that agree"]
    header += ["largest residual of log L", "left out", "predicted", "95 % interval", "measured", "statement"]
    yield Table(
        "fits.csv",
        "Every law by the form that stands; objectives and the form that does not are in the CSV. Joint: sizes and tokens "
        "together; compute: the grid's own path, on which tokens move with the size; sparse ratio and table size: the chain "
        "sparsity.",
        results.context(results.grid),
        header,
        rows,
        kinds(results.runs["device"]),
        cards=True,
    )


def _exponents(results: Results, frame: pd.DataFrame) -> Iterator:
    """How loss falls along the compute path, by every rule of counting."""
    paths = frame[(frame["fit"] == "compute") & frame["stands"] & frame["parameter"].isin(["alpha", "b"])]
    archs, rows = in_order(paths["arch"]), []
    found = paths.set_index(["series", "arch"])
    for rule in dict.fromkeys(paths["series"]):
        row = [Cell(_rule(rule))]
        for arch in archs:
            if (rule, arch) in found.index:
                one = found.loc[(rule, arch)]
                unit = " a decade" * (one["parameter"] == "b")
                row.append(
                    Cell(f"{one['value']:.3f}{unit}", one["value"], title=interval(one["low"], one["high"]), number=True)
                )
            else:
                row.append(Cell("–"))
        rows.append(row)
    if rows:
        words = (
            "How the loss falls with training FLOPs along the grid’s path, by what is counted: the exponent of a power law, "
        )
        words += "or, where none stands, nats for ten times the FLOPs (a decade). Hover for the 95 % interval."
        header = ["counted beside the rest", *[look(arch).label for arch in archs]]
        yield Table("fits.csv", words, results.context(results.grid), header, rows, kinds(results.grid["device"]))


def _rules(results: Results, ranking: pd.DataFrame) -> Iterator:
    """Order by loss, and at equal counted FLOPs by every rule."""
    sizes, names = [size for size in results.sizes if size in set(ranking["size"])], list(dict.fromkeys(ranking["rule"]))
    rows = []
    for rule in names:
        row = [Cell(_rule(rule))]
        for size in sizes:
            here = ranking[(ranking["rule"] == rule) & (ranking["size"] == size) & ranking["gap"].notna()]
            here = here.sort_values("gap_rank").itertuples()
            told = [f"{look(one.arch).label} {one.gap:+.3f}{'*' * bool(one.beyond)}" for one in here]
            row.append(Cell(", ".join(told).replace("-", "−") or "–", kind="prose"))
        rows.append(row)
    by_loss = [ranking[(ranking["rule"] == names[0]) & (ranking["size"] == size)].sort_values("rank") for size in sizes]
    first = [Cell(", ".join(look(arch).label for arch in here["arch"]), kind="prose") for here in by_loss]
    yield Table(
        "ranking.csv",
        "Who is best, by every rule of counting. First by loss alone, then loss minus what dense has at equally many counted "
        "FLOPs (on the broken line through its sizes; * where that was prolonged), lowest first. Intervals are in the CSV. "
        "Router: a memory’s queries, keys and cores with it; the papers’ rule counts these and nothing else.",
        results.context(results.grid),
        ["counted beside the rest", *sizes],
        [[Cell("loss alone"), *first], *rows],
        kinds(results.grid["device"]),
    )


def _value(name: str, value: float, low: float, high: float) -> str:
    greek = {"alpha": "α", "beta": "β"}.get(name, name)
    return f"{greek} = {value:.3g}".replace("-", "−") + ("" if pd.isna(low) else f" [{interval(low, high, '.3g')}]")


def _formula(form: str) -> str:
    words = form.replace("^-alpha", "⁻ᵅ").replace("^-beta", "⁻ᵝ").replace(" - ", " − ").replace("log10", "log₁₀")
    return words.replace("0)", "₀)")


def _rule(rule: str) -> str:
    return f"{rule} (the papers’)" if rule == PAPERS else rule
