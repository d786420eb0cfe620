"""The time of one decoding step: against batch and sparse ratio, over MoE's, beside its prediction, and as the papers state it.

A curve, a map and a ratio stay within one setting: one device, kind, size, part, cache, dtype and number of threads.
"""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.page import Cell, Facts, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.speedups import speed_up_map
from reports.style import Panel, in_order, key, look, si
from reports.timings import CSV, PARTS, SETTING, batch_panels, context, settings, timings, typical


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


def _one_kind(results: Results, frame: pd.DataFrame, kind: str) -> Iterator:
    csv, badges = CSV[kind], (*kinds(frame["device"]), kind)
    for device, here in typical(frame).groupby("device"):
        ends = {"measured": "Median; shaded from the 20th to the 80th percentile.", "modelled": "By the roofline model."}
        panels = list(batch_panels(here, f"{kind}-{key(device)}"))
        if panels:
            words = f"Time of one step against batch, {kind}. {ends[kind]}"
            yield Picture(csv, words, context(here), panels, in_order(here["arch"]), (*kinds([device]), kind))
        panels = list(_ratio_panels(here, f"{kind}-{key(device)}"))
        if panels:
            words = f"Time of one step against sparse ratio at fixed activated parameters, {kind}; dense is the dashed line."
            yield Picture(csv, words, context(here), panels, in_order(here["arch"]), (*kinds([device]), kind))
    yield from speed_up_map(frame, kind, badges)
    if kind == "measured":
        yield from _predicted(frame, badges)
        names = (
            "arch size part batch sparse_ratio kv context dtype threads p20_ms p50_ms p80_ms n_iters predicted_ms bytes_counted"
        )
        listing = results.listing("latency", frame, [*names.split(), "device"])
        yield Table("latency.csv", "Every measured point.", context(frame), *listing, badges, searchable=True, tall=True)
    else:
        yield _modelled_table(frame, badges)


def _ratio_panels(frame: pd.DataFrame, name: str) -> Iterator[Panel]:
    for place, (title, here, common) in enumerate(settings(frame)):
        several = here.groupby(["arch", "batch"])["sparse_ratio"].transform("nunique") > 2
        for batch in sorted(here.loc[several, "batch"].unique()):
            at = here[here["batch"] == batch]
            labels = {"title": title, "x_label": f"sparse over activated parameters, batch {batch}"}
            dense = at[at["arch"].map(key) == "dense"].drop_duplicates("arch")
            varied = at[several.reindex(at.index)]
            yield figures.curves(
                f"{name}-ratio-{place}-{batch}", varied, "sparse_ratio", "p50_ms", levels=dense, **labels, **common
            )


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
    yield Table("latency.csv", words, context(known), [*header, "error", "device"], rows, badges)


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
    return Table(CSV["modelled"], words, context(frame), header, rows, badges, searchable=True, tall=True)


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
    yield Table("latency.csv", words, context(pairs), [*header, "kind", "device"], rows, badges, searchable=True, tall=True)


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
    if "statements" not in results:
        yield Missing("Not modelled in this run: statements.csv is absent (“snakemake modelled” writes it).")
        return
    frame = results["statements"]
    counts = frame["verdict"].value_counts()
    yield Text("The papers' latency statements, modelled: what bytes, products and launches allow at the papers' sizes.")
    yield Facts([(word, str(count)) for word, count in counts.items()])
    kind = {"modelled against": "not-reproduced", "holds": "reproduced"}
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
