"""The time of one decoding step: against batch and sparse ratio, over MoE's, beside its prediction, and as the papers state it.

A curve, a map and a ratio stay within one setting: one device, kind, size, part, cache, dtype and number of threads.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from evals.stats import OWN_ROOFLINE
from reports import figures
from reports.page import Cell, Facts, Missing, Picture, Results, Table, Text, arch_cell, kinds, number, span
from reports.style import WIDE, Panel, in_order, key, look, si

SETTING = ["kind", "device", "size", "part", "phase", "context", "kv", "dtype", "threads"]
PAIRS = (("moe2", "ultramem"), ("moe8", "ultramemv2"))
CSV = {"measured": "latency.csv", "modelled": "latency_modelled.csv"}
PARTS = {"model": "whole model", "ffn": "FFN and memory"}


def latency(results: Results) -> Iterator:
    """Measured first, then modelled, then what both say of the papers' statements."""
    if "latency" not in results:
        yield results.missing("latency")
    else:
        frame = timings(results)
        plain = frame[frame["variant"] == "plain"]
        for kind in ("measured", "modelled"):
            if (plain["kind"] == kind).any():
                yield from _one_kind(results, plain[plain["kind"] == kind], kind)
            else:
                target = {"measured": "latency", "modelled": "modelled"}[kind]
                yield Missing(f"Not {kind} in this run: {CSV[kind]} has no {kind} row (“snakemake {target}” writes it).")
        yield from _variants(frame)
    yield from _machine(results)
    yield from _statements(results)


def timings(results: Results) -> pd.DataFrame:
    """The rows of the latency table, runs without provenance unlinked."""
    return results.linked(results["latency"].astype({"threads": "float64"}))


def batch_panels(frame: pd.DataFrame, name: str, **shape) -> Iterator[Panel]:
    """One panel for each setting timed at several batches, each architecture at its most often timed sparse ratio."""
    for place, (title, here, common) in enumerate(_settings(frame)):
        widest = here.groupby(["arch", "sparse_ratio"], as_index=False)["batch"].nunique()
        widest = widest.sort_values(["batch", "sparse_ratio"]).drop_duplicates("arch", keep="last")
        at = here.merge(widest[["arch", "sparse_ratio"]])
        if at["batch"].nunique() > 1:
            labels = {"title": title, "x_label": "batch"}
            yield figures.curves(f"{name}-batch-{place}", at, "batch", "p50_ms", **labels, **common, **shape)


def speed_ups(frame: pd.DataFrame) -> pd.DataFrame:
    """Time of MoE over that of the memory layer, at equal setting and batch and the nearest sparse ratio.

    A column `distance` is the MoE's time over its own roofline. A measured ratio is withheld (`value` NaN) where that is
    above `OWN_ROOFLINE` or unknown: beating an MoE that is slower than its bytes and products need shows nothing.
    """
    frame, found = frame.assign(key=frame["arch"].map(key)), []
    for moe, memory in PAIRS:
        pairs = frame[frame["key"] == memory].merge(frame[frame["key"] == moe], on=[*SETTING, "batch"], suffixes=("", "_moe"))
        gap = np.log(pairs["sparse_ratio"] / pairs["sparse_ratio_moe"]).abs()
        pairs = pairs.assign(gap=gap)[gap < math.log(1.25)].sort_values("gap", kind="stable")
        found.append(pairs.drop_duplicates([*SETTING, "batch", "sparse_ratio"]).sort_index())
    pairs = pd.concat(found)
    distance = pairs["p50_ms_moe"] / pairs["predicted_ms_moe"]
    fair = (pairs["kind"] != "measured") | (distance <= OWN_ROOFLINE)
    return pairs.assign(distance=distance, value=(pairs["p50_ms_moe"] / pairs["p50_ms"]).where(fair))


def _settings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """(title, rows, options of a panel) for each setting, whole model before its part.

    A setting without a dense model or an MoE to compare with, or with nothing else, is left to the tables.
    """
    groups = sorted(frame.groupby(SETTING, dropna=False, sort=False), key=lambda item: (item[0][1], item[0][3] != "model"))
    for (kind, device, size, part, phase, context, kv, dtype, threads), here in groups:
        archs = set(here["arch"].map(key))
        if len(archs) < 2 or not archs & {"dense", "moe2", "moe8"}:
            continue
        cache = f"KV {kv} {context}" if context else "no KV cache"
        words = f"{kind}, {device.split(':')[0]}, {dtype}, {cache}" + (f", {threads:.0f} thr" if threads == threads else "")
        band = None if here[["p20_ms", "p80_ms"]].isna().any(axis=None) else ("p20_ms", "p80_ms")
        title = f"{phase.capitalize()} step, size {size}, {PARTS[part]}\n{words}"
        yield title, here, {"y_label": "ms a step", "log": "xy", "band": band, "height": 2.9}


def _context(frame: pd.DataFrame) -> str:
    parts = [*sorted(frame["device"].unique()), "size " + ", ".join(dict.fromkeys(frame["size"]))]
    if (frame["kind"] == "measured").all():
        many = "s" * bool(frame["threads"].max() > 1)
        parts += [
            f"{span(frame['threads'], '{:.0f}'.format)} thread{many}",
            f"{span(frame['n_iters'], str)} timed steps a point",
        ]
        parts += ["untrained weights, one seed" if (frame["run"] == "").all() else "trained weights"]
    return " · ".join(parts)


def _one_kind(results: Results, frame: pd.DataFrame, kind: str) -> Iterator:
    csv, badges = CSV[kind], (*kinds(frame["device"]), kind)
    for device, here in typical(frame).groupby("device"):
        ends = {"measured": "Median; shaded from the 20th to the 80th percentile.", "modelled": "By the roofline model."}
        panels = list(batch_panels(here, f"{kind}-{key(device)}"))
        if panels:
            words = f"Time of one step against batch, {kind}. {ends[kind]}"
            yield Picture(csv, words, _context(here), panels, in_order(here["arch"]), (*kinds([device]), kind))
        panels = list(_ratio_panels(here, f"{kind}-{key(device)}"))
        if panels:
            words = f"Time of one step against sparse ratio at fixed activated parameters, {kind}; dense is the dashed line."
            yield Picture(csv, words, _context(here), panels, in_order(here["arch"]), (*kinds([device]), kind))
    yield from _speed_up_map(frame, kind, badges)
    if kind == "measured":
        yield from _predicted(frame, badges)
        names = (
            "arch size part batch sparse_ratio kv context dtype threads p20_ms p50_ms p80_ms n_iters predicted_ms bytes_counted"
        )
        listing = results.listing("latency", frame, [*names.split(), "device"])
        yield Table("latency.csv", "Every measured point.", _context(frame), *listing, badges, searchable=True, tall=True)
    else:
        yield _modelled_table(frame, badges)


def typical(frame: pd.DataFrame) -> pd.DataFrame:
    """What is drawn of one kind: all that was measured; of the modelled, whole models with full cache on the first device."""
    if (frame["kind"] == "measured").all():
        return frame
    return frame[(frame["part"] == "model") & (frame["kv"] == "mha") & (frame["device"] == frame["device"].min())]


def _ratio_panels(frame: pd.DataFrame, name: str) -> Iterator[Panel]:
    for place, (title, here, common) in enumerate(_settings(frame)):
        several = here.groupby(["arch", "batch"])["sparse_ratio"].transform("nunique") > 2
        for batch in sorted(here.loc[several, "batch"].unique()):
            at = here[here["batch"] == batch]
            labels = {"title": title, "x_label": f"sparse over activated parameters, batch {batch}"}
            dense = at[at["arch"].map(key) == "dense"].drop_duplicates("arch")
            varied = at[several.reindex(at.index)]
            yield figures.curves(
                f"{name}-ratio-{place}-{batch}", varied, "sparse_ratio", "p50_ms", levels=dense, **labels, **common
            )


def _speed_up_map(frame: pd.DataFrame, kind: str, badges: tuple[str, ...]) -> Iterator:
    """Maps of MoE over memory by batch and sparse ratio, and the same as a table with the reasons for what is withheld."""
    pairs = speed_ups(frame)
    if pairs.empty:
        return
    panels = []
    groups = pairs.groupby(["device", "dtype", "threads", "key_moe", "key"], dropna=False, sort=False)
    for (device, dtype, threads, moe, memory), here in groups:
        if here["value"].isna().all():
            continue
        what = ("KV " + here["kv"]).where(here["part"] == "model", "FFN")
        here = here.assign(
            row=here["size"] + ", " + what + ", " + here["sparse_ratio"].map("{:.0f}×".format),
            text=here["value"].map(lambda value: "–" if pd.isna(value) else f"{value:.2g}"),
        ).drop_duplicates(["row", "batch"])
        order = {"index": list(dict.fromkeys(here["row"])), "columns": sorted(here["batch"].unique())}
        cells, words = (here.pivot(index="row", columns="batch", values=name).reindex(**order) for name in ("value", "text"))
        where = f"{device.partition(': ')[2]}, {dtype}" + (f", {threads:.0f} thr" if threads == threads else "")
        title = f"{look(moe).label} over {look(memory).label}\n{kind}, {where}"
        shape = {"title": title, "x_label": "batch", "width": WIDE, "height": 1.0 + 0.27 * len(cells)}
        panels.append(figures.heat(f"map-{kind}-{len(panels)}", cells, words.fillna(""), **shape))
    if panels:
        words = (
            f"Speed-up, {kind}: time of MoE over time of the memory layer by batch and sparse ratio (row: size, cache, ratio). "
        )
        words += "Above 1 (blue) the memory layer is faster." + " A dash is withheld, see the table." * (kind == "measured")
        yield Picture(CSV[kind], words, _context(pairs), panels, badges=badges)
    if kind != "measured":
        return
    dense = frame[frame["arch"].map(key) == "dense"].drop_duplicates([*SETTING, "batch"])[[*SETTING, "batch", "p50_ms"]]
    pairs = pairs.merge(dense, on=[*SETTING, "batch"], how="left", suffixes=("", "_dense"))
    rows = []
    order = ["part", "dtype", "key_moe", "sparse_ratio", "batch"]
    for row in pairs.sort_values(order, key=lambda values: values != "model" if values.name == "part" else values).itertuples():
        about = [arch_cell(row.arch_moe), arch_cell(row.arch), Cell(row.dtype), Cell(PARTS[row.part])]
        about += [number(row.batch, "d"), number(row.sparse_ratio, ".3g"), number(row.distance, ".2f")]
        low, high = (row.p20_ms_moe / row.p80_ms, row.p80_ms_moe / row.p20_ms)
        shown = [number(row.value, ".2f"), Cell(f"{low:.2f} … {high:.2f}")]
        if pd.isna(row.value):
            reason = f"MoE is {row.distance:.2f} x its own roofline" if row.distance == row.distance else "MoE has no roofline"
            shown = [Cell(f"withheld: {reason}", number=True, kind="not-tested"), Cell("–")]
        rows.append([*about, *shown, number(row.p50_ms / row.p50_ms_dense, ".2f"), Cell(row.device)])
    header = [
        "MoE",
        "memory",
        "dtype",
        "part",
        "batch",
        "sparse ratio",
        "MoE / roofline",
        "MoE / memory",
        "spread",
        "memory / dense",
        "device",
    ]
    words = f"Speed-up over MoE, printed only where MoE itself is within {OWN_ROOFLINE} x of what its bytes and products take; "
    words += "the spread is from p20 over p80 to p80 over p20. Memory over dense: 1 is as fast as dense."
    yield Table("latency.csv", words, _context(frame), header, rows, badges, searchable=True, tall=True)


def _predicted(frame: pd.DataFrame, badges: tuple[str, ...]) -> Iterator:
    """Measured over predicted by architecture and batch."""
    known = frame[frame["predicted_ms"].notna()]
    if known.empty:
        yield Missing("Not predicted in this run: no measured row has a predicted_ms.")
        return
    known = known.assign(ratio=known["p50_ms"] / known["predicted_ms"])
    batches, rows = sorted(known["batch"].unique()), []
    groups = known.groupby(["device", "dtype", "part", "size", "threads", "arch", "sparse_ratio"], sort=False, dropna=False)
    for (device, dtype, part, size, threads, arch, ratio), here in groups:
        cells = [number(here.loc[here["batch"] == batch, "ratio"].mean(), ".2f") for batch in batches]
        about = [arch_cell(arch), Cell(size), number(ratio, ".3g"), Cell(PARTS[part]), Cell(dtype), number(threads, "d")]
        rows.append([*about, *cells, number((here["ratio"] - 1).abs().median(), ".0%"), Cell(device)])
    header = ["architecture", "size", "sparse ratio", "part", "dtype", "threads", *(f"batch {batch}" for batch in batches)]
    words = "Measured over predicted: the time of a step over the roofline of its counted bytes and products at this machine's "
    words += "measured bandwidth and products. The error is the median of |measured / predicted − 1|."
    yield Table("latency.csv", words, _context(known), [*header, "error", "device"], rows, badges)


def _modelled_table(frame: pd.DataFrame, badges: tuple[str, ...]) -> Table:
    """Milliseconds side by side, one row for each device, size, part, cache and batch."""
    archs, rows = in_order(frame["arch"]), []
    for (device, size, part, kv, batch), here in frame.groupby(["device", "size", "part", "kv", "batch"], sort=False):
        times = here.drop_duplicates("arch").set_index("arch")["p50_ms"]
        cells = [number(times.get(arch, float("nan")), ".3g") for arch in archs]
        rows.append(
            [Cell(device.partition(": ")[2] or device), Cell(size), Cell(PARTS[part]), Cell(kv), number(batch, "d"), *cells]
        )
    header = ["device", "size", "part", "KV", "batch", *(f"{look(arch).label}, ms" for arch in archs)]
    words = "Modelled milliseconds of one step at the papers' sizes, bf16, 2048 cached tokens where there is a cache."
    return Table(CSV["modelled"], words, _context(frame), header, rows, badges, searchable=True, tall=True)


def _variants(frame: pd.DataFrame) -> Iterator:
    """The papers' two inference tricks beside the plain step."""
    plain = frame[frame["variant"] == "plain"]
    pairs = frame[frame["variant"] != "plain"].merge(plain, on=[*SETTING, "arch", "batch"], suffixes=("", "_plain"))
    gap = (pairs["sparse_ratio"] - pairs["sparse_ratio_plain"]).abs()
    pairs = pairs.assign(gap=gap).sort_values("gap").drop_duplicates([*SETTING, "arch", "batch", "variant"])
    if pairs.empty:
        yield Missing("Not measured in this run: no row of the variants overlap and folded.")
        return
    rows = []
    for row in pairs.sort_values(["kind", "device", "variant", "size", "part", "kv", "dtype", "batch"]).itertuples():
        moved = [row.bytes_counted, row.bytes_counted_plain]
        moved = [row.bytes_declared, row.bytes_declared_plain] if any(map(pd.isna, moved)) else moved
        about = [Cell(row.variant), arch_cell(row.arch), Cell(row.size), Cell(PARTS[row.part]), Cell(row.kv), Cell(row.dtype)]
        times = [number(row.p50_ms_plain, ".3g"), number(row.p50_ms, ".3g"), number(row.p50_ms / row.p50_ms_plain, ".2f")]
        rows.append(
            [*about, number(row.batch, "d"), *times, number(moved[0] / moved[1], ".2f"), Cell(row.kind), Cell(row.device)]
        )
    header = [
        "variant",
        "architecture",
        "size",
        "part",
        "KV",
        "dtype",
        "batch",
        "plain ms",
        "ms",
        "time / plain",
        "bytes / plain",
    ]
    words = "The papers' inference tricks, with against without. Overlap: a skipping memory runs beside the blocks "
    words += "it skips. Folded: the expansion's projections multiplied into larger tables "
    words += "in advance. Below 1 the trick is faster, or reads less."
    badges = (*kinds(pairs["device"]), *sorted(pairs["kind"].unique()))
    yield Table("latency.csv", words, _context(pairs), [*header, "kind", "device"], rows, badges, searchable=True, tall=True)


def _machine(results: Results) -> Iterator:
    if "machine" not in results:
        yield results.missing("machine")
        return
    frame = results["machine"]
    rows = []
    for row in frame.itertuples():
        value = Cell(
            f"{si(row.value, 4)}{row.unit}" if row.value >= 1 else f"{row.value:.3g} {row.unit}", row.value, number=True
        )
        rows.append(
            [Cell(row.quantity), Cell(row.dtype), number(row.rows, "d"), number(row.threads, "d"), value, Cell(row.device)]
        )
    header = ["quantity", "dtype", "rows, or bytes of a row", "threads", "value", "device"]
    words = "What the machine reaches: the inputs of the prediction."
    yield Table("machine.csv", words, "", header, rows, (*kinds(frame["device"]), "measured"), tall=True)


def _statements(results: Results) -> Iterator:
    """What the papers and their summaries state of latency, beside the model."""
    frame = results.statements
    if frame is None:
        yield Missing("Not modelled in this run: statements.csv is absent (“snakemake modelled” writes it).")
        return
    counts = frame["verdict"].value_counts()
    yield Text("The papers' latency statements, modelled: what bytes, products and launches allow at the papers' sizes.")
    yield Facts([(word, str(count)) for word, count in counts.items()])
    kind = {"contradicted": "not-reproduced", "not testable": "not-tested", "holds": "reproduced"}
    rows = [
        [
            Cell(row.id),
            Cell(row.verdict, row.verdict, kind=kind.get(row.verdict, "")),
            Cell(row.statement, kind="prose"),
            Cell(row.published, kind="brief"),
            Cell(row.modelled, kind="prose"),
            Cell(row.device),
        ]
        for row in frame.itertuples()
    ]
    header = ["id", "verdict", "statement", "published", "modelled", "device"]
    words = "Each statement beside the model's answer. A model of hardware is no measurement."
    yield Table("statements.csv", words, "", header, rows, ("modelled",), filters=tuple(counts.index), tall=True, cards=True)
