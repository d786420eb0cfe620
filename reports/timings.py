"""Rows of the latency tables, and their curves against batch. A curve stays within one setting."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.evidence.times import SETTING
from reports import figures
from reports.page import Results, span
from reports.style import Panel, key

CSV = {"measured": "latency.csv", "modelled": "latency_modelled.csv"}
PARTS = {"model": "whole model", "ffn": "FFN and memory"}


def timings(results: Results) -> pd.DataFrame:
    """The rows of the latency table, runs without provenance unlinked."""
    return results.linked(results["latency"].astype({"threads": "float64"}))


def typical(frame: pd.DataFrame) -> pd.DataFrame:
    """What is drawn of one kind: all that was measured; of the modelled, whole models with full cache on the first device."""
    if (frame["kind"] == "measured").all():
        return frame
    return frame[(frame["part"] == "model") & (frame["kv"] == "mha") & (frame["device"] == frame["device"].min())]


def batch_panels(frame: pd.DataFrame, name: str, **shape) -> Iterator[Panel]:
    """One panel for each setting timed at several batches, each architecture at its most often timed sparse ratio."""
    for place, (title, here, common) in enumerate(settings(frame)):
        widest = here.groupby(["arch", "sparse_ratio"], as_index=False)["batch"].nunique()
        widest = widest.sort_values(["batch", "sparse_ratio"]).drop_duplicates("arch", keep="last")
        at = here.merge(widest[["arch", "sparse_ratio"]])
        if at["batch"].nunique() > 1:
            labels = {"title": title, "x_label": "batch"}
            yield figures.curves(f"{name}-batch-{place}", at, "batch", "p50_ms", **labels, **common, **shape)


def settings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """(title, rows, options of a panel) for each setting, whole model before its part.

    A setting without a dense model or an MoE to compare with, or with nothing else, is left to the tables.
    """
    groups = sorted(
        frame.groupby(list(SETTING), dropna=False, sort=False), key=lambda item: (item[0][1], item[0][3] != "model")
    )
    for (kind, device, size, part, phase, context, kv, dtype, threads), here in groups:
        archs = set(here["arch"].map(key))
        if len(archs) < 2 or not archs & {"dense", "moe2", "moe8"}:
            continue
        cache = f"KV {kv} {context}" if context else "no KV cache"
        words = f"{kind}, {device.split(':')[0]}, {dtype}, {cache}" + (f", {threads:.0f} thr" if threads == threads else "")
        band = None if here[["p20_ms", "p80_ms"]].isna().any(axis=None) else ("p20_ms", "p80_ms")
        title = f"{phase.capitalize()} step, size {size}, {PARTS[part]}\n{words}"
        yield title, here, {"y_label": "ms a step", "log": "xy", "band": band, "height": 2.9}


def context(frame: pd.DataFrame) -> str:
    parts = [*sorted(frame["device"].unique()), "size " + ", ".join(dict.fromkeys(frame["size"]))]
    if (frame["kind"] == "measured").all():
        many = "s" * bool(frame["threads"].max() > 1)
        parts += [
            f"{span(frame['threads'], '{:.0f}'.format)} thread{many}",
            f"{span(frame['n_iters'], str)} timed steps a point",
        ]
        parts += ["untrained weights, one seed" if (frame["run"] == "").all() else "trained weights"]
    return " · ".join(parts)
