"""What matched compute means here, row by row, and by other conventions of counting."""

from collections.abc import Iterator

import pandas as pd

from reports.page import Cell, Missing, Results, Table, Text, arch_cell, number
from reports.style import in_order, key, si


def matched(results: Results) -> Iterator:
    """What matched compute means here, row by row."""
    if "matched_compute" not in results:
        yield results.missing("matched_compute")
    else:
        yield from _matched(results)
    yield from _parts(results)


def _matched(results: Results) -> Iterator:
    """Every row of the gate's table, and its FLOPs by other conventions."""
    frame = results["matched_compute"]
    worst = frame.loc[frame["role"] == "matched", ["flops_mismatch", "params_mismatch"]].abs().max().fillna(0)
    yield Text(
        f"Within a size all architectures have equal FLOPs per token, twice the activated parameters without the "
        f"embedding (largest mismatch {worst['flops_mismatch']:.2%}), and the sparse ones equal total parameters "
        f"(largest mismatch {worst['params_mismatch']:.2%}). The comparator is the papers' narrower dense model, not "
        "held to the budget."
    )
    names = "size arch role params active_params sparse_params flops_per_token flops_mismatch params_mismatch memory_share "
    names += "bytes_b1 bytes_b64 d_ff d_expert n_experts top_k n_keys d_key d_value trained"
    yield Table(
        "matched_compute.csv",
        "Counts by closed form, embedding left out. memory_share: retrieval and projections in the FLOPs of "
        "feed-forward plus memory. Bytes: expected under uniform routing, for 1 and 64 tokens.",
        "",
        *results.listing("matched_compute", frame, names.split()),
        ("declared",),
    )
    yield from _conventions(frame)


def _parts(results: Results) -> Iterator:
    """FLOPs of every part of the models of the largest size."""
    if "counting" not in results:
        yield results.missing("counting")
        return
    frame = results["counting"]
    total = frame.groupby("size", sort=False)["flops"].max()
    sizes = [size for size in results.sizes if size in total.index] or [total.idxmax()]
    here = frame[frame["size"] == sizes[-1]]
    names, rows = list(dict.fromkeys(here["part"])), []
    for arch in in_order(here["arch"]):
        flops = here[here["arch"] == arch].set_index("part")["flops"]
        rows.append(
            [arch_cell(arch), *[Cell(si(flops.get(name, 0), 3), float(flops.get(name, 0)), number=True) for name in names]]
        )
    words = (
        f"Where the FLOPs of a token go at {sizes[-1]}. The papers’ definition leaves out embedding, head, attention scores "
    )
    words += "and selection; what each choice changes stands under “Loss against cost”."
    yield Table("counting.csv", words, "", ["architecture", *names], rows, ("declared",))


def _conventions(frame: pd.DataFrame) -> Iterator:
    """FLOPs per token with the head and with the selection counted in: what the papers' definition leaves out."""
    if not {"head_flops", "selection_flops"} <= set(frame) or frame["head_flops"].isna().all():
        yield Missing("Not counted in this run: matched_compute.csv has no FLOPs of the head and of the selection.")
        return
    frame = frame.assign(
        selected=frame["flops_per_token"] + frame["selection_flops"].fillna(0),
        headed=frame["flops_per_token"] + frame["head_flops"],
        whole=frame["flops_per_token"] + frame["selection_flops"].fillna(0) + frame["head_flops"],
    )
    dense = frame[(frame["role"] == "matched") & (frame["arch"].map(key) == "dense")].drop_duplicates("size").set_index("size")
    rows = []
    for row in frame.itertuples():
        counts = (row.flops_per_token, row.selection_flops, row.head_flops, row.selected, row.headed, row.whole)
        cells = [Cell(si(value, 4), None if pd.isna(value) else float(value), number=True) for value in counts]
        for column in ("flops_per_token", "selected", "headed", "whole"):
            base = dense[column].get(row.size, float("nan"))
            cells.append(number(getattr(row, column) / base - 1, "+.2%"))
        rows.append([Cell(row.size), arch_cell(row.arch), Cell(row.role), *cells])
    words = "FLOPs per token by other conventions of counting. Matched are those of the papers: no tied head, no selection "
    words += (
        "(filter, m × m cross and rescoring of a memory). The last four columns are against the dense model of the size, by "
    )
    words += "each convention: what the papers' definition leaves out is not equal between architectures."
    header = ["size", "architecture", "role", "FLOPs", "selection", "head", "with selection", "with head", "with both"]
    header += ["against dense", "with selection", "with head", "with both"]
    yield Table("matched_compute.csv", words, "", header, rows, ("declared",))
