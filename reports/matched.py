"""What matched compute means here, row by row, and by other conventions of counting."""

from collections.abc import Iterator

from reports.page import Results, Table, Text


def matched(results: Results) -> Iterator:
    """What matched compute means here, row by row."""
    if "matched_compute" not in results:
        yield results.missing("matched_compute")
        return
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
