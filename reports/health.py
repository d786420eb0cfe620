"""What the sparse layers do while they train."""

from collections.abc import Iterator

from reports import figures
from reports.page import Cell, Missing, Picture, Results, Table, arch_cell, kinds
from reports.style import in_order

USED = "used_share"


def health(results: Results) -> Iterator:
    """What the sparse layers do while they train."""
    if "health" not in results:
        yield results.missing("health")
        return
    frame = results.joined("health")
    if frame.empty:
        yield Missing("Not measured in this run: health.csv describes none of the runs of the comparison.")
        return
    size = [size for size in results.sizes if (frame["size"] == size).any()][-1]
    here, of_size = frame[frame["size"] == size], results.grid[results.grid["size"] == size]
    layers = here.groupby(["metric", "arch", "step"], as_index=False).agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), run=("run", "first")
    )
    layers = layers.assign(line="", name=layers["metric"])
    capped = layers["metric"] == USED + "_cap"
    layers.loc[capped, ["line", "name"]] = ["cap", USED]
    words = {"x_label": "step", "band": ("low", "high"), "lines": "line"}
    cap = " A dashed line with open markers is the most that used_share could be: min(1, picks / rows)." * bool(capped.any())
    yield Picture(
        "health.csv",
        f"Health of the sparse layers at size {size}: mean over layers (and seeds), shaded from lowest to highest.{cap}",
        results.context(of_size),
        [
            figures.curves(f"health-{place}", of_metric, "step", "value", title=metric, y_label=metric, **words)
            for place, (metric, of_metric) in enumerate(layers.sort_values("line", kind="stable").groupby("name"))
        ],
        in_order(here["arch"]),
        kinds(of_size["device"]),
    )
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    last = last.groupby(["size", "arch", "run", "seed", "metric"], as_index=False).agg(value=("value", "mean"))
    metrics, rows = sorted(last["metric"].unique()), []
    for place, size in enumerate(results.sizes):
        for arch in in_order(last.loc[last["size"] == size, "arch"]):
            of_arch = last[(last["size"] == size) & (last["arch"] == arch)]
            cells = [results.mean(of_arch[of_arch["metric"] == metric], "value", "{:.3g}".format) for metric in metrics]
            rows.append([Cell(size, place), arch_cell(arch), *cells])
    done = results.grid[results.grid["run"].isin(last["run"])]
    words = "The same at the last step of every run, mean over layers."
    if USED in metrics:
        words += " used_share is the share of values picked at least once by the tokens it was counted over. "
        words += (
            "It cannot exceed used_share_cap, min(1, picks / rows): a large table counted over few tokens looks unused."
            if USED + "_cap" in metrics
            else "Its cap, min(1, picks / rows), is not recorded: a large table counted over few tokens looks unused."
        )
    header = ["size", "architecture", *metrics]
    yield Table("health.csv", words, results.context(done), header, rows, kinds(done["device"]))
