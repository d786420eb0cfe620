"""The papers' sizes on many GPUs: the first fit of each model, by the partition that moves least, and labelled as modelled."""

from synthetic import row

from evals.records import schema
from reports.page import Results
from reports.scale import HEADER, scale


def first(folder):
    """The cells of the first table's only row, by column."""
    words, table, every = scale(Results(folder))
    assert words.text.startswith("Modelled, nothing of this was measured")
    assert table.badges == every.badges == ("modelled",)
    (cells,) = table.rows
    return dict(zip(HEADER, (cell.text for cell in cells), strict=True))


def test_the_fewest_gpus_that_hold_a_model_are_shown(results):
    cells = first(results)
    assert (cells["GPUs"], cells["tables"], cells["state"], cells["memory GB"]) == ("16", "by dimension", "fits", "50")
    assert cells["device"] == "X"


def test_what_fits_nowhere_is_said_of_the_most_gpus(tmp_path):
    rows = [
        row("scale", model="M", arch="moe", gpus=gpus, partition="experts", cheaper=True, fits="does not fit", device="CUDA: X")
        for gpus in (8, 512)
    ]
    schema.write(tmp_path / "scale.csv", "scale", rows)
    cells = first(tmp_path)
    assert (cells["GPUs"], cells["state"]) == ("512", "does not fit")
