"""Bytes of weights (and cache) that one decoding step reads: declared by formula, counted from indices, or by the GPU."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.evidence.times import PAIRS
from reports import figures, published
from reports.page import Cell, Picture, Results, Table, arch_cell, kinds, number
from reports.style import Panel, anchor, in_order, key, look
from reports.timings import PARTS

KINDS = {"declared-worst": "worst case", "declared-expected": "expected", "counted": "counted", "hardware": "GPU counter"}
SETTING = ["size", "part", "kv", "context", "dtype"]


def access(results: Results) -> Iterator:
    """Bytes against batch, MoE's bytes over the memory layers', and how far the formula is from the counted."""
    if "access" not in results:
        yield results.missing("access")
        return
    frame = results.linked(results["access"])
    whole = frame[frame["layer"].isna()]
    badges = tuple(sorted({kind.partition("-")[0] for kind in frame["kind"]}))
    context = f"size {', '.join(dict.fromkeys(whole['size']))} · {', '.join(sorted(whole['dtype'].unique()))}"
    drawn = list(_panels(whole))
    if drawn:
        yield Picture(
            "access.csv",
            "Bytes that one step reads against the tokens in it: by the cost formula (worst case; expected under uniform or "
            "Zipf routing), and counted from the indices that trained models chose on validation text. First the feed-forward "
            "and memory layers alone, then whole models with their cache.",
            context,
            drawn,
            in_order(whole["arch"]),
            badges,
        )
    yield from _ratios(whole, context, badges)
    yield from _agreement(whole, context)
    names = "run arch size part kv context dtype batch routing kind rows_read rows_unique bytes"
    listing = results.listing("access", whole, names.split())
    words = "Every point of the whole model; access.csv holds the single layers too."
    yield Table("access.csv", words, context, *listing, badges, searchable=True, tall=True)


def _panels(whole: pd.DataFrame) -> Iterator[Panel]:
    """Sizes with counts first: the layers alone under every kind, then whole models as counted. Others: the expected bytes."""
    counted, order = set(whole.loc[whole["kind"] == "counted", "size"]), list(KINDS)
    groups = whole.groupby([*SETTING, "kind", "routing"], sort=False)
    groups = sorted(groups, key=lambda item: (item[0][0] not in counted, item[0][1] != "ffn", order.index(item[0][5])))
    for place, ((size, part, kv, context, dtype, kind, routing), here) in enumerate(groups):
        wanted = (part == "ffn" or kind == "counted") if size in counted else (part, routing) == ("ffn", "uniform")
        if not wanted or here["batch"].nunique() < 2 or here["arch"].nunique() < 2:
            continue
        cache = "" if part == "ffn" else f", KV {kv} {context}" if context else ", no cache"
        title = f"{size}, {PARTS[part]}{cache}\n{_how(kind, routing)}, {dtype}"
        labels = {"title": title, "x_label": "tokens in the step", "y_label": "bytes a step"}
        yield figures.curves(f"access-{place}", here, "batch", "bytes", **labels, log="xy", by=("arch", "run"))


def _how(kind: str, routing: str) -> str:
    return KINDS[kind] if routing == "worst" else f"{KINDS[kind]}, {routing} routing"


def ratios(whole: pd.DataFrame) -> pd.DataFrame:
    """Bytes of an MoE over those of the memory layer it is held against, at equal setting, kind, routing and batch."""
    keys = [*SETTING, "kind", "routing", "batch"]
    means = whole.assign(key=whole["arch"].map(key)).groupby([*keys, "key"], as_index=False, sort=False)["bytes"].mean()
    pairs = []
    for moe, memory in PAIRS:
        both = means[means["key"] == key(moe)].merge(means[means["key"] == key(memory)], on=keys, suffixes=("", "_memory"))
        pairs.append(both.assign(arch=moe, memory=memory, ratio=both["bytes"] / both["bytes_memory"]))
    return pd.concat(pairs)


def _ratios(whole: pd.DataFrame, context: str, badges: tuple[str, ...]) -> Iterator:
    """Own sizes under every routing; sizes that only have formulas as P1 counts, in the worst case."""
    counted = whole["size"].isin(whole.loc[whole["kind"] == "counted", "size"])
    pairs = ratios(whole[(whole["part"] == "ffn") & (counted | (whole["routing"] == "worst"))])
    paper = published.table("ultramem_inference")
    paper = paper[paper["metric"] == "bytes_ratio"].assign(arch="moe2")
    batch, ratio = paper["condition"].str.extract(r"(\d+)")[0].astype(int), paper["value"].astype(float)
    paper, panels = paper.assign(batch=batch, ratio=ratio), []
    for (size, kind, routing), here in pairs.groupby(["size", "kind", "routing"], sort=False):
        if here["batch"].nunique() > 1:
            labels = {"x_label": "tokens in the step", "y_label": "bytes of MoE / memory"}
            title = f"{size}, {_how(kind, routing)}"
            beside = paper[paper["arch"].isin(here["arch"])]
            drawn = figures.curves(
                f"bytes-{len(panels)}", here, "batch", "ratio", title=title, published=beside, **labels, log="x"
            )
            panels.append(drawn)
    words = " and ".join(f"{look(moe).label} over {look(memory).label}" for moe, memory in PAIRS)
    if panels:
        yield Picture(
            "access.csv + evals/claims/reference",
            f"How many times the bytes of the memory layer an MoE's layers read: {words}. Hollow squares: the labels printed "
            "in P1 figure 1c for its 1.6B models, in the worst case and without keys and projections, on the same axes.",
            context,
            panels,
            in_order(pairs["arch"]),
            (*badges, "published"),
        )


def _agreement(whole: pd.DataFrame, context: str) -> Iterator:
    """Counted over expected under uniform routing."""
    keys = [*SETTING, "arch", "run", "batch"]
    expected = whole[(whole["kind"] == "declared-expected") & (whole["routing"] == "uniform")][[*keys, "bytes"]]
    seen = whole[whole["kind"].isin(["counted", "hardware"])]
    both = seen.merge(expected, on=keys, suffixes=("", "_expected"))
    if both.empty:
        return
    both = both.assign(ratio=both["bytes"] / both["bytes_expected"])
    batches, rows = sorted(both["batch"].unique()), []
    for (kind, size, part, kv, arch, run), here in both.groupby(["kind", "size", "part", "kv", "arch", "run"], sort=False):
        href = f"#{anchor(run)}" if run else None
        cells = [number(here.loc[here["batch"] == batch, "ratio"].mean(), ".3f", href) for batch in batches]
        rows.append([arch_cell(arch), Cell(size), Cell(PARTS[part]), Cell(kv), Cell(KINDS[kind]), *cells])
    header = ["architecture", "size", "part", "KV", "how", *(f"{batch} tokens" for batch in batches)]
    words = (
        "Bytes counted over bytes expected under uniform routing: 1 where the formula is right, below 1 where trained routing "
    )
    words += "comes back to the same experts and rows."
    yield Table(
        "access.csv", words, context, header, rows, (*kinds(filter(None, seen["device"])), "counted", "declared"), tall=True
    )
