"""The papers' sizes on GPUs that nobody here has: memory, traffic and time of a step, all of it modelled."""

from collections.abc import Iterator

import pandas as pd

from reports.page import Cell, Results, Table, Text, arch_cell, number
from reports.style import si

KINDS = ("parameters", "gradients", "moments", "activations", "buffers")
HEADER = ["model", "architecture", "device", "GPUs", "tables", "state", *(f"{kind} GB" for kind in KINDS)]
HEADER += ["memory GB", "sent GB a step", "step s"]
WAYS = {
    "number": "by number, rows come back",
    "pooled": "by number, sums come back",
    "dimension": "by dimension",
    "experts": "experts",
    "none": "no tables",
}


def scale(results: Results) -> Iterator:
    """Where each model first fits, and every point."""
    if "scale" not in results:
        yield results.missing("scale")
        return
    frame = results["scale"]
    yield Text(
        "Modelled, nothing of this was measured: parameters and buffers are counted on models built without memory, traffic "
        "follows from formulas, times from assumed shares of the vendors' peaks. Dense parts are sharded, tables and experts "
        "lie in parts; weights, gradients and both moments are float32."
    )
    yield Table(
        "scale.csv",
        "The fewest GPUs that hold each model in training, and what moves least there. GB per GPU by kind, of a step traffic "
        "sent by one GPU and time; “does not fit” is said of the most GPUs that were looked at.",
        "",
        HEADER,
        [_first(here) for _, here in frame.groupby(["model", "device"], sort=False)],
        ("modelled",),
    )
    yield Table("scale.csv", "Every point.", "", *results.listing("scale", frame), ("modelled",), searchable=True, tall=True)


def _first(here: pd.DataFrame) -> list[Cell]:
    """The row of a model's first fit, by the partition that moves least; of the most GPUs where none is."""
    least = here[here["cheaper"]]
    fitting = least[least["fits"] == "fits"]
    row = (fitting if len(fitting) else least.iloc[::-1]).iloc[0]
    name = Cell(f"{row['model']} ({si(float(row['params']))})", row["model"])
    sent = row["dense_traffic_gb"] + row["sparse_traffic_gb"]
    numbers = [number(row[f"{kind}_gb"], ".3g") for kind in KINDS]
    state = [number(row["gpus"], "d"), Cell(WAYS[row["partition"]]), Cell(row["fits"])]
    where = Cell(str(row["device"]).removeprefix("CUDA: "))
    rest = [number(row["memory_gb"], ".3g"), number(sent, ".3g"), number(row["step_s"], ".3g")]
    return [name, arch_cell(row["arch"]), where, *state, *numbers, *rest]
