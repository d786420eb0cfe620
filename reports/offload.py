"""Value tables larger than memory: decoding from a file, what a cache would hold, and what quantised rows cost in loss."""

from collections.abc import Callable, Iterator

import pandas as pd

from reports import figures
from reports.page import Cell, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import in_order, look, si

TABLES = ("offload_loss", "offload", "offload_disk", "offload_hits")


def offload(results: Results) -> Iterator:
    """Loss of quantised tables, times under a memory limit beside the disk's own, and hit rates of a cache."""
    yield from (results.missing(table) for table in TABLES if table not in results)
    if "offload_loss" in results:
        yield from _losses(results, results["offload_loss"])
    if "offload" in results:
        yield from _times(results, results["offload"])
    if "offload_disk" in results:
        yield _disk(results["offload_disk"])
    if "offload_hits" in results:
        yield from _hits(results, results["offload_hits"])


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _losses(results: Results, frame: pd.DataFrame) -> Iterator:
    """Per run, and in a sentence the mean over runs with the largest of any."""
    changed = frame[frame["delta"].notna()]
    parts = []
    for bits in sorted(changed["bits"].unique(), reverse=True):
        here = changed[changed["bits"] == bits]
        worst = here.loc[here["delta"].idxmax()]
        said = f"at {bits} bits {_signed(here['delta'].mean())} nats over {len(here)} run{'s' * (len(here) > 1)}"
        parts.append(f"{said} (at most {_signed(worst['delta'])}, {worst['run']})")
    if parts:
        yield Text(f"Value tables with fewer bits change the test loss, beside 32 bits, by: {'; '.join(parts)}.")
    bits = sorted(frame["bits"].unique(), reverse=True)
    rows = []
    for run, here in frame.groupby("run", sort=False):
        by_bits = here.set_index("bits")
        first = here.iloc[0]
        cells = [Cell(run, href=results.href(run)), arch_cell(first["arch"]), Cell(first["size"]), number(first["seed"], "d")]
        cells.append(number(by_bits["loss"].get(32), ".3f"))
        for each in (each for each in bits if each != 32):
            row = by_bits.loc[each] if each in by_bits.index else None
            text = "–" if row is None else _signed(row["delta"])
            if row is not None and pd.notna(row["stderr"]):
                text += f" ± {row['stderr']:.4f}"
            cells.append(Cell(text, None if row is None else float(row["delta"]), number=True))
        stored = [by_bits["table_bytes"].get(each) for each in bits]
        cells.append(Cell(" / ".join("–" if pd.isna(value) else si(value) for value in stored)))
        rows.append([*cells, number(first["n_windows"], "d")])
    words = "Test loss with value tables as trained, and its change with fewer bits (one scale a row at 8 and 4), paired over "
    words += "windows of text, ± one standard error over windows. Everything else of a model stays as it is."
    header = ["run", "architecture", "size", "seed", "loss, 32 bits", *(f"{each} bits" for each in bits if each != 32)]
    header += [f"table bytes at {' / '.join(map(str, bits))}", "windows"]
    yield Table("offload_loss.csv", words, "nats per token", header, rows, searchable=True, tall=True)


def _gb(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def _size(value: float, show: Callable[[float], str] = _gb) -> Cell:
    return Cell("–", number=True) if pd.isna(value) else Cell(show(value), float(value), number=True)


def _times(results: Results, frame: pd.DataFrame) -> Iterator:
    """Tokens per second against the table's size, and every cell."""
    measured = frame[frame["kind"] == "measured"]
    device = ", ".join(sorted(measured["device"].unique()))
    context = f"{device} · bf16, batch 1, one thread · addresses of {', '.join(sorted(set(frame['run'])))}"
    panels = []
    for place, (state, ahead) in enumerate((state, ahead) for state in ("cold", "warm") for ahead in (True, False)):
        here = measured[(measured["state"] == state) & (measured["ahead"] == ahead) & (measured["addresses"] == "text")]
        if len(here):
            here = here.assign(gb=here["table_bytes"] / 1e9, line=here["bits"].astype(str), run="")
            here = here.sort_values("bits", ascending=False)
            shape = {"x_label": "table at 16 bits (GB)", "y_label": "tokens/s", "log": "xy", "lines": "line"}
            shape["title"] = f"{state}, {'asked ahead' if ahead else 'each waits'}"
            panels.append(figures.curves(f"offload-{place}", here, "gb", "tokens_per_s", **shape))
    if panels:
        words = "Decoding with value tables in a file, under a memory limit below the table's size, at the addresses of real "
        words += "text: solid, dashed and dotted are 16, 8 and 4 bits a value."
        yield Picture("offload.csv", words, context, panels, in_order(measured["arch"]), kinds(measured["device"]))
    rows = []
    for row in frame.to_dict("records"):
        about = [_size(row["table_bytes"]), _size(row["file_bytes"])]
        about += [number(row["bits"], "d"), Cell(row["addresses"]), Cell(row["state"]), Cell("yes" if row["ahead"] else "no")]
        about.append(Cell(f"{_gb(row['limit_bytes'])}, {row['limit']}", row["limit_bytes"]))
        times = [number(row[name], ".3g") for name in ("tokens_per_s", "p50_ms", "p99_ms")]
        held = [_size(row[name]) for name in ("resident_bytes", "cached_bytes")]
        reads = [number(row["rows_read"], ".1f"), _size(row["bytes_read"], si), _size(row["bytes_disk"], si)]
        end = [number(row["disk_ms"], ".3g"), Cell(row["kind"], title=row["source"]), Cell(row["device"])]
        rows.append([*about, *times, *held, *reads, *end])
    header = ["table", "file", "bits", "addresses", "start", "ahead", "limit", "tokens/s", "median ms", "p99 ms"]
    header += ["process", "cached", "rows/token", "bytes/token", "from disk/token", "disk alone, ms", "kind", "device"]
    words = "Every cell. “Disk alone”: what the bytes that came from the disk take at its own random rate, measured beside; of "
    words += "a modelled row at the published one: "
    words += "; ".join(sorted(set(frame["source"]) - {""})) or "none here"
    yield Table("offload.csv", words + ".", context, header, rows, kinds(frame["device"]), searchable=True, tall=True)


def _disk(frame: pd.DataFrame) -> Table:
    rows = [
        [
            *(_size(row["file_bytes"]), Cell(row["pattern"]), number(row["bytes_each"], "d")),
            *(number(row["depth"], "d"), Cell(row["how"]), number(row["bytes_per_s"] / 1e6, ".4g")),
            *(number(row["bytes_per_s"] / row["bytes_each"], ".4g"), number(row["n_reads"], "d")),
        ]
        for row in frame.to_dict("records")
    ]
    header = ["file", "pattern", "bytes a read", "at a time", "past memory by", "MB/s", "reads/s", "reads"]
    words = "What the disk gives when nothing comes from memory, measured on each file after its cells."
    context = ", ".join(sorted(frame["device"].unique()))
    return Table("offload_disk.csv", words, context, header, rows, kinds(frame["device"]), tall=True)


def _hits(results: Results, frame: pd.DataFrame) -> Iterator:
    """What caches of the least recently used rows would hold, text beside uniform addresses."""
    shares = sorted(frame["share"].unique())
    parts = []
    for arch in in_order(frame["arch"]):
        here = frame[(frame["arch"] == arch) & (frame["share"] == shares[0])].groupby("addresses")["hit_rate"].mean()
        if {"text", "uniform"} <= set(here.index):
            parts.append(f"{look(arch).label} {here['text']:.0%} against {here['uniform']:.0%}")
    if parts:
        words = f"A cache of {shares[0]:.0%} of the rows holds, of real text's reads against uniform ones: "
        yield Text(f"{words}{'; '.join(parts)}.")
    rows = []
    for run, here in frame.groupby("run", sort=False):
        first, wide = here.iloc[0], here.pivot(index="addresses", columns="share", values="hit_rate")
        cells = [Cell(run, href=results.href(run)), arch_cell(first["arch"]), Cell(first["size"]), number(first["rows"], "d")]
        for share in shares:
            cells += [number(wide[share].get(kind), ".1%") for kind in ("text", "uniform")]
        rows.append([*cells, number(first["n_reads"], "d")])
    header = ["run", "architecture", "size", "rows"]
    header += [f"{share:.0%}, {kind}" for share in shares for kind in ("text", "uniform")] + ["reads"]
    words = "Hit rate of a cache of the least recently used rows that holds a share of all, exact by stack distances: reads of "
    words += "a trained run on its test text, and as many uniform ones. The first half of the reads fills the cache."
    runs = results.runs[results.runs["run"].isin(frame["run"])]
    yield Table("offload_hits.csv", words, results.context(runs), header, rows, searchable=True, tall=True)
