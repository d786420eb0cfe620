"""Parts of a model add up to its cost, and what the papers' definition leaves out stands beside."""

import pytest

from workflows.counting import counting_rows, parts
from workflows.matched import match_size, matched_rows
from workflows.presets import load_preset

LEFT_OUT = ("embedding", "head", "attention scores", "selection")


@pytest.fixture(scope="module")
def smoke():
    preset = load_preset("smoke", {})
    return preset, {size: match_size(preset, size) for size in preset.grid.sizes}


def test_parts_add_up_to_the_counts_of_the_gate(smoke):
    preset, matched = smoke
    counts = counting_rows(preset, matched)
    for row in (row for row in matched_rows(preset, matched) if row["role"] == "matched"):
        here = {c["part"]: c for c in counts if (c["size"], c["arch"]) == (row["size"], row["arch"])}
        inside = [c for part, c in here.items() if part not in LEFT_OUT]
        assert sum(c["flops"] for c in inside) == row["flops_per_token"], row["arch"]
        assert sum(c["active_params"] for c in inside) == row["active_params"]
        assert sum(c["params"] for c in inside) == row["params"]
        assert here["head"]["flops"] == here["embedding"]["flops"] == row["head_flops"]
        assert here.get("selection", {"flops": 0})["flops"] == row["selection_flops"]


def test_a_memory_has_its_addressing_apart_and_scores_are_causal(smoke):
    _, matched = smoke
    models = next(iter(matched.values())).models
    memory, mixture = (parts(models[arch]) for arch in ("ultramem", "moe8"))
    assert {"addressing", "projection", "table"} <= set(memory)
    assert "router" not in memory
    assert "router" in mixture
    assert not {"addressing", "projection"} & set(mixture)
    model = models["dense"]
    pairs = sum(t + 1 for t in range(model.seq_len)) / model.seq_len  # positions that a token sees, on average
    assert parts(model)["attention scores"]["flops"] == 2 * 2 * pairs * model.d_model * model.n_layers
    assert parts(model)["head"]["params"] == 0
