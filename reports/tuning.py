"""Equal tuning, and how sharply each architecture's loss depends on its learning rate, at two sizes."""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.page import Cell, Picture, Results, Table, Text, arch_cell, kinds, number, span
from reports.rates import rates
from reports.style import in_order, look

TRANSFER = 1.5  # optima of two sizes that lie within this factor are called the same


def tuning(results: Results) -> Iterator:
    """Trials and winners, loss against the rate, whether rates hold with all tokens, and the whole sweep."""
    if "tuning" not in results:
        yield results.missing("tuning")
        yield from rates(results)
        return
    frame = results["tuning"]
    done = results.runs[results.runs["run"].isin(frame["run"])]
    context, badges = results.context(done), kinds(done["device"])
    trials = frame.groupby("arch").size()
    equal = "The number is the same for all" if trials.nunique() == 1 else "The number is not the same for all"
    yield Text(
        f"Each architecture was tried with {span(trials, str)} settings. {equal}. Winners are chosen on the validation split; "
        "what the rest of the report says of the runs is of the test split."
    )
    best = optima(frame)
    if frame["lr"].nunique() > 1:
        panels = list(_panels(results, frame, best))
        sizes = list(dict.fromkeys(best.sort_values("d_model")["size"]))
        strokes = ", ".join(f"{stroke} {size}" for stroke, size in zip(("solid", "dashed", "dotted"), sizes, strict=False))
        caption = (
            "Learning-rate sensitivity: validation loss against the peak rate, the best over the other settings at each rate; "
            f"{strokes}; the ring is the optimum."
        )
        yield Picture("tuning.csv", caption, context, panels, in_order(frame["arch"]), badges)
    yield _winners(results, frame, best, context, badges)
    yield from rates(results)
    order = {arch: place for place, arch in enumerate(in_order(frame["arch"]))}
    frame = frame.assign(place=frame["arch"].map(order)).sort_values(["place", "d_model", "val_loss"])
    names = ["arch", "size", "lr", "weight_decay", "value_lr_multiplier", "init", "seed"]
    names += ["val_loss", "chosen", "edge", "run", "setting"]
    listing = results.listing("tuning", frame, names)
    yield Table("tuning.csv", "The sweep, best first.", context, *listing, badges, searchable=True, tall=True)


def lowest(frame: pd.DataFrame) -> pd.DataFrame:
    """Lowest validation loss at each rate of each architecture and size, over the other settings; seeds are averaged."""
    cell = ["arch", "size", "d_model", "lr", "setting"]
    means = frame[frame["val_loss"].notna()].groupby(cell, as_index=False, dropna=False)
    means = means.agg(val_loss=("val_loss", "mean"), edge=("edge", "any"), run=("run", "first"))
    return means.sort_values("val_loss").drop_duplicates(["arch", "size", "lr"])


def optima(frame: pd.DataFrame) -> pd.DataFrame:
    """The best rate of each architecture and size, and whether it lies on an edge of what was tried."""
    best = lowest(frame).drop_duplicates(["arch", "size"])
    edge = frame.groupby(["arch", "size"])["edge"].any()
    return best.assign(edge=[bool(edge[key]) for key in zip(best["arch"], best["size"], strict=True)])


def _panels(results: Results, frame: pd.DataFrame, best: pd.DataFrame) -> Iterator:
    points = results.linked(lowest(frame))
    for place, arch in enumerate(in_order(points["arch"])):
        here, marks = points[points["arch"] == arch].sort_values("d_model"), best[best["arch"] == arch]
        words = {"title": look(arch).label, "x_label": "peak learning rate", "y_label": "validation loss (nats/token)"}
        yield figures.curves(f"tuning-{place}", here, "lr", "val_loss", **words, log="x", lines="size", marks=marks)


def _winners(results: Results, frame: pd.DataFrame, best: pd.DataFrame, context: str, badges: tuple[str, ...]) -> Table:
    """One row an architecture: trials, the best rate of each size, their factor, and the setting that the presets use."""
    sizes, rows = list(dict.fromkeys(best.sort_values("d_model")["size"])), []
    for arch in in_order(frame["arch"]):
        here = best[best["arch"] == arch].set_index("size")
        found = [here["lr"].get(size) for size in sizes]
        swept = [rate for size, rate in zip(sizes, found, strict=True) if _swept(frame, arch, size)]
        factor = max(swept) / min(swept) if len(swept) > 1 else None
        row = [arch_cell(arch), number((frame["arch"] == arch).sum(), "d"), *(number(rate, ".3g") for rate in found)]
        within = "–" if factor is None else "yes" if factor <= TRANSFER * (1 + 1e-9) else "no"
        row += [number(factor, ".2f"), Cell(within, kind={"yes": "good", "no": "opposite"}.get(within, ""))]
        on_edge = [size for size in sizes if here["edge"].get(size)]
        row.append(Cell("on an edge at " + ", ".join(on_edge) if on_edge else "no", kind="opposite" if on_edge else ""))
        chosen = frame[(frame["arch"] == arch) & frame["chosen"]].sort_values("val_loss").head(1)
        for this in chosen.itertuples():
            row += [number(this.lr, ".3g"), number(this.weight_decay, ".3g"), number(this.value_lr_multiplier, ".3g")]
            row.append(Cell(this.init or "–"))
            row.append(number(this.val_loss, ".3f", results.href(this.run)))
        rows.append(row if len(chosen) else [*row, *[Cell("–")] * 5])
    header = ["architecture", "trials", *(f"best rate, {size}" for size in sizes), "factor", f"within {TRANSFER}", "edge"]
    words = "Trials and winner of each architecture. Factor: larger over smaller of the sizes' best rates"
    words += (
        f"; within {TRANSFER}, a rate tuned at one size can be used at the other. An optimum on the edge of what was tried "
    )
    words += "is no optimum. The last five columns are the setting that the presets use."
    header += ["rate used", "weight decay", "value multiplier", "initialisation", "validation loss"]
    return Table("tuning.csv", words, context, header, rows, badges)


def _swept(frame: pd.DataFrame, arch: str, size: str) -> bool:
    return frame.loc[(frame["arch"] == arch) & (frame["size"] == size), "lr"].nunique() > 1
