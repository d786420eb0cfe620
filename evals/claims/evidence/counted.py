"""What is counted or modelled: bytes of a decoding step, the papers' models and their published tables."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from evals.claims.evidence.results import Evidence, NotTested, Results, exact, metric

REFERENCE = Path(__file__).parents[1] / "reference"


@cache
def reference(name: str) -> pd.DataFrame:
    """A table of evals/claims/reference."""
    return pd.read_csv(REFERENCE / f"{name}.csv", dtype=str, keep_default_na=False)


@metric
def bytes_ratio(results: Results, of: str, against: str, batch: int = 64, part: str = "ffn", kv: str = "none") -> Evidence:
    """Bytes that a decoding step reads over another architecture's: counted if it was, else declared."""
    rows = results.table("access")
    rows = rows[rows.layer.isna() & (rows.batch == batch) & rows.routing.isin(["trained", "uniform"])]
    rows = rows[(rows.part == part) & (rows.kv == kv)]
    runs = [results.grid(arch, "largest").run for arch in (of, against)]
    for kind in ("counted", "declared-expected"):
        left, right = (rows[(rows.kind == kind) & rows.run.isin(mine)] for mine in runs)
        if len(left) and len(right):
            value = float(left.bytes.mean() / right.bytes.mean())
            return exact(value, "counted", f"{kind}, batch {batch}", (*left.run.unique(), *right.run.unique()))
    raise NotTested(f"access.csv has no bytes of {of} and {against} at batch {batch}")


@metric
def figure_1c_error(results: Results) -> Evidence:
    """Largest distance of the four counted ratios from the labels that P1 figure 1c prints."""
    from evals.access import declared as access

    table = reference("ultramem_inference")
    labels = table[table.metric == "bytes_ratio"].value.astype(float)
    ours = access.figure_1c()
    note = "ours " + ", ".join(f"{x:.2f}" for x in ours)
    return exact(max(abs(a - b) for a, b in zip(ours, labels, strict=True)), "counted", note, scale="P1 1.6B")


@metric
def figure_1c_ratio(results: Results, batch: int, routing: str = "uniform") -> Evidence:
    """MoE over UltraMem 1.6B in weights read at one batch, counted as figure 1c counts."""
    from evals.access import declared as access

    return exact(access.figure_1c((batch,), routing=routing)[0], "counted", f"{routing} routing", scale="P1 1.6B")


@metric
def rows_share(results: Results, size: str, batch: int) -> Evidence:
    """Share of the rows of an UltraMem of P1 that one step reads, expected under uniform routing."""
    from evals.access import declared as access

    cost = access.p1("ultramem", size).slots.only("table")
    share = sum(p.rows_read(batch) for p in cost.parts) / sum(p.rows for p in cost.parts)
    return exact(share, "counted", f"batch {batch}", scale=f"P1 {size}")


@metric
def modelled_ratio(
    results: Results,
    of: str,
    against: str,
    size: str = "1.6B",
    device: str = "A100",
    kv: str = "mha",
    batches: list[int] | None = None,
    pick: str = "max",
) -> Evidence:
    """Modelled decode time over another's at one of P1's sizes: the largest or smallest ratio over the batches."""
    from evals.access import declared as access
    from evals.decode import roofline

    devices, launches = roofline.load()
    ratios = {}
    for batch in batches or [2**i for i in range(11)]:
        left, right = (roofline.decode(access.p1(arch, size), devices[device], launches, batch, kv) for arch in (of, against))
        ratios[batch] = left.seconds / right.seconds
    batch = (max if pick == "max" else min)(ratios, key=ratios.__getitem__)
    return exact(ratios[batch], "modelled", f"cache {kv}, at batch {batch}", scale=f"{device} modelled, P1 {size}")


@metric
def modelled_bytes_share(results: Results, arch: str, batch: int, device: str = "A100", kv: str = "mha") -> Evidence:
    """Share of a modelled step's time in parts that bytes, not FLOPs, decide."""
    from evals.access import declared as access
    from evals.decode import roofline

    devices, launches = roofline.load()
    step = roofline.decode(access.p1(arch, "1.6B"), devices[device], launches, batch, kv)
    return exact(step.bytes_bound_share, "modelled", f"cache {kv}, batch {batch}", scale=f"{device} modelled, P1 1.6B")


@metric
def partition_crossover(results: Results, d_value: int, top_m: int, heads: int) -> Evidence:
    """GPUs, over the value width, beyond which values by number send less than by dimension, by P1's own volumes."""
    from evals.access.partition import crossover

    gpus = crossover(d_value, top_m, heads)
    return exact(gpus / d_value, "counted", f"{gpus:.0f} GPUs at a value width of {d_value}", scale="P1 1.6B")


@metric
def published_params_ratio(results: Results, of: str, against: str) -> Evidence:
    """Stored parameters of one row of P1's ablation table over another's."""
    table = reference("ultramem_ablation").set_index(["row", "metric"]).value.astype(float)
    stored = {row: table[(row, "active_params")] * 1e6 + table[(row, "sparse_params")] * 1e9 for row in (of, against)}
    return exact(stored[of] / stored[against], "counted", "from the published counts")


@metric
def stream_share(results: Results, n_layers: int, first_write: int) -> Evidence:
    """Share of blocks whose input holds a memory's output; the first writes after block `first_write` (from 1)."""
    return exact((n_layers - first_write) / n_layers, "counted", "from the published placement")
