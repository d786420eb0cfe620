"""The coordinate check: does the size of activations stay what it is as the model gets wider?"""

from collections.abc import Iterator

import pandas as pd

from evals.claims.widths import FLAT, slopes
from reports import figures
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, number
from reports.style import in_order, look

RULES = {"scaled": "the widths' own rates", "flat": "one rate for all widths"}


def coordinates(results: Results) -> Iterator:
    """Verdict, root mean square against width before training and after ten steps, and the slope of each."""
    if "coordinates" not in results:
        yield results.missing("coordinates")
        return
    if results["coordinates"]["d_model"].nunique() < 2:
        yield Missing("Not measured in this run: coordinates.csv has one width, and a slope takes two.")
        return
    frame = results["coordinates"].assign(kind=lambda rows: rows["where"].str.partition(".")[0])
    found = slopes(results["coordinates"])
    found = found.assign(kind=found["where"].str.partition(".")[0])
    steps = sorted(frame["step"].unique(), reverse=True)
    yield Text(_verdict(found[(found["width_rule"] == "scaled") & (found["step"] == steps[0])], steps[0]))
    scaled = frame[frame["width_rule"] == "scaled"]
    if scaled.empty:
        yield _slopes(found, steps, "")
        return
    widths = f"d_model {', '.join(map(str, sorted(scaled['d_model'].unique())))}"
    means = scaled.groupby(["arch", "kind", "step", "d_model"], as_index=False)["value"].mean()
    means = means.sort_values("step", ascending=False).assign(line=lambda rows: rows["step"].astype(str))
    panels = [
        figures.curves(
            f"coordinates-{kind}",
            means[means["kind"] == kind],
            *("d_model", "value"),
            title=kind,
            x_label="d_model",
            y_label="rms of the activation",
            log="xy",
            by=("arch", "line"),
            lines="line",
        )
        for kind in dict.fromkeys(frame["kind"])
        if (means["kind"] == kind).any()
    ]
    strokes = " and ".join(f"{stroke} after {step} steps" for stroke, step in zip(("solid", "dashed"), steps, strict=False))
    words = f"Root mean square of activations against width, mean over blocks; {strokes}. A rule of scaling that lets one "
    words += "learning rate serve every width leaves these lines level."
    yield Picture("coordinates.csv", words, widths, panels, in_order(frame["arch"]))
    yield _slopes(found, steps, widths)


def _verdict(found: pd.DataFrame, step: int) -> str:
    """What the slopes say, in a sentence or two."""
    if found.empty:
        return "No width was measured with scaled rates."
    off, within = found[~found["flat"]], f"within ±{FLAT} of 0 after {step} steps"
    if off.empty:
        return f"All {len(found)} slopes of log activation against log width are {within}: the check holds."
    worst = off.loc[off["slope"].abs().idxmax()]
    names = ", ".join(look(arch).label for arch in in_order(off["arch"]))
    lie = "is" if len(off) == 1 else "are"
    slope = f"{worst['slope']:+.2f}".replace("-", "−")
    return (
        f"{len(off)} of {len(found)} slopes of log activation against log width {lie} not {within} ({names}; the largest is "
        f"{slope}, {look(worst['arch']).label}, {worst['where']}): there the check fails."
    )


def _slopes(found: pd.DataFrame, steps: list[int], widths: str) -> Table:
    """The steepest slope over blocks of each kind of activation."""
    kinds, rows = list(dict.fromkeys(found["kind"])), []
    for rule in RULES:
        for step in steps:
            here = found[(found["width_rule"] == rule) & (found["step"] == step)]
            for arch in in_order(here["arch"]):
                of_arch = here[here["arch"] == arch]
                row = [arch_cell(arch), Cell(f"{rule}: {RULES[rule]}", rule), number(step, "d")]
                for kind in kinds:
                    slopes = of_arch.loc[of_arch["kind"] == kind, "slope"]
                    worst = slopes.loc[slopes.abs().idxmax()] if len(slopes) else None
                    cell = number(worst, "+.2f")
                    off = worst is not None and abs(worst) > FLAT
                    row.append(Cell(cell.text, cell.sort, number=True, kind="opposite" if off else ""))
                rows.append(row)
    words = "Slope of log activation against log width, the steepest block of each kind; 0 is level, 1 grows with the width. "
    words += f"Coloured where it is beyond ±{FLAT}. The flat rule is the control: what the scaling mends shows there."
    return Table("coordinates.csv", words, widths, ["architecture", "learning rates", "step", *kinds], rows)
