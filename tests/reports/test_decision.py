"""The decision chart on the page: its cells in words, its caption and its table."""

import html
import re

import pytest
from synthetic import write
from synthetic_decision import latency, losses

from reports import decision
from reports.page import Results


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    gaps, paces = {"moe8": -0.3, "pkm": 0.3, "ultramem": -0.1}, {"moe8": (3.0, 1.58489, 1.0), "pkm": 1.0, "ultramem": 1.0}
    runs, times = losses(gaps), latency(paces, ratio=12.0)
    return list(decision.chart(Results(write(tmp_path_factory.mktemp("chart"), runs=runs, latency=times))))


def test_every_cell_names_its_best_layers(blocks):
    picture, _ = blocks
    measured, experts, every = (html.unescape(re.search(r'aria-label="([^"]*)"', panel.svg)[1]) for panel in picture.panels)
    assert measured.startswith("Best layer at equal decode time, as measured: batch 1, 6 times stored: UltraMem† by 0.10")
    assert re.search(r"batch 16, .*: (UltraMem† or MoE-8|MoE-8† or UltraMem); batch 256, .*: MoE-8† by 0\.20", measured)
    assert experts.count("MoE-8† by") == 3
    assert every.partition(": ")[2] == measured.partition(": ")[2]
    assert all(panel.broad for panel in picture.panels)
    assert "<pattern" in picture.panels[0].svg  # hatched
    assert "<pattern" not in picture.panels[1].svg


def test_the_caption_says_what_equal_decode_time_means(blocks):
    picture, _ = blocks
    slope = re.search(r"b log₁₀ t: .* \(b = (1\.\d\d) \[([\d.]+), ([\d.]+)\] nats for ten times", picture.caption)
    assert float(slope[2]) < float(slope[1]) < float(slope[3])
    assert "† Timed at another sparse ratio than trained" in picture.caption
    assert "d_model 256, 10 M activated parameters · times of size decode, whole model, bf16, 1 thread" in picture.context


def test_the_table_has_the_numbers_of_each_cell(blocks):
    _, table = blocks
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    assert len(rows) == 9
    first = rows[0]
    assert [first[name] for name in ("times", "batch", "stored / activated", "timed at", "best")] == [
        "measured", "1", "6", "12", "UltraMem",
    ]  # fmt: skip
    assert first["not told apart from it"] == "none"
    assert first["MoE-8"].endswith("(3.00)")
    low, high = (float(end) for end in first["95 % interval"].split(" … "))
    assert 0 < low < float(first["runner-up − best"]) < high
    level = rows[1]
    assert {level["best"], level["not told apart from it"]} == {"UltraMem", "MoE-8"}
