"""The section of tables larger than memory: sentences and tables say what the CSVs hold."""

from pages import copy_of, rendered, section, table

from evals.records import schema


def test_losses_times_and_hits_are_those_of_the_tables(undrawn, results):
    page = rendered(results, "offload")
    text = section(page, "offload")
    assert "at 16 bits +0.0000 nats over 3 runs" in text
    assert "at 4 bits +0.0150 nats over 3 runs (at most +0.0200, pkm-d64-s0)" in text
    assert "PKM 30% against 1%" in text
    header, *rows = table(page, "Test loss with value tables as trained")
    losses = schema.read(results / "offload_loss.csv", "offload_loss")
    assert [row[0] for row in rows] == list(dict.fromkeys(losses["run"]))
    assert rows[0][header.index("4 bits")] == "+0.0200 ± 0.0020"
    header, *rows = table(page, "Every cell. “Disk alone”")
    times = schema.read(results / "offload.csv", "offload")
    assert len(rows) == len(times)
    assert [row[header.index("kind")] for row in rows] == list(times["kind"])
    assert "a made-up data sheet" in text
    header, *rows = table(page, "Hit rate of a cache")
    assert rows[1][header.index("5%, text")] == "55.0%"
    header, *rows = table(page, "What the disk gives")
    assert rows[1][header.index("reads/s")] == "9.766e+04"


def test_a_folder_without_one_table_says_so_and_shows_the_others(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    (path / "offload.csv").unlink()
    text = section(rendered(path, "offload"), "offload")
    assert "offload.csv is absent" in text
    assert "Every cell" not in text
    assert "Hit rate of a cache" in text
