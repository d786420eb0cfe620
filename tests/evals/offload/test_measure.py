"""The benchmark itself on tables of two megabytes: every cell of it, what its reads are, and what stops it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from offloaded_runs import RUNS, SETTINGS

from evals.offload import decode, measure, pages, phone, tables
from evals.records import schema
from evals.records.errors import UserError
from models.rows import PAGE


def settings(folder):
    return replace(SETTINGS, cache=str(folder / "cache"))


@pytest.fixture(scope="module")
def found(results, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("measured"), []
    found = measure.measure(results, list(RUNS), settings(folder), said.append, decode.measured)
    assert not list((folder / "cache").iterdir())
    return found, said


def test_every_cell_is_measured_and_fits_its_table(found, tmp_path):
    written, said = found
    for name, rows in written.items():
        schema.write(tmp_path / f"{name}.csv", name, rows)
    measured = [row for row in written["offload"] if row["kind"] == "measured"]
    keys = ("bits", "addresses", "state", "ahead")
    assert len({tuple(row[key] for key in keys) for row in measured}) == len(measured) == 3 * 2 * 2 * 2
    for row in measured:
        assert row["table_bytes"] == pytest.approx(2e6, rel=0.05)
        assert 0 < row["tokens_per_s"] <= 2e3 / row["p50_ms"] + 1e9
        assert row["p50_ms"] <= row["p99_ms"]
        assert row["rows_read"] <= 2 * 8  # two layers, two heads, four picks
        assert row["bytes_read"] == pytest.approx(row["rows_read"] * row["file_bytes"] / row["rows"])
        assert row["run"] == "ultramem-xs-s0"
        fits = row["file_bytes"] + 2 * PAGE <= row["limit_bytes"]
        assert row["limit"] == (pages.WHOLE if fits else pages.DROPPED)
        assert row["cached_bytes"] <= (row["file_bytes"] + 2 * PAGE if fits else row["limit_bytes"] + PAGE)
        assert row["resident_bytes"] > 1e7
    sizes = [next(row["file_bytes"] for row in measured if row["bits"] == bits) for bits in (16, 8, 4)]
    assert sizes[0] > 1.5 * sizes[1] > 1.4 * sizes[2]
    assert any("ultramem-xs-s0: " in words for words in said)


def test_modelled_rows_are_those_of_text_and_say_whence(found):
    rows = found[0]["offload"]
    modelled = [row for row in rows if row["kind"] == "modelled"]
    measured = [row for row in rows if row["kind"] == "measured" and row["addresses"] == "text"]
    known = [row for row in measured if row["bytes_disk"] is not None]
    assert len(modelled) == len(known)
    assert all("arXiv:2406.06282" in row["source"] and row["device"].startswith("phone") for row in modelled)


def test_a_phone_waits_for_the_slower_of_memory_and_storage_or_for_both():
    row = dict.fromkeys(("run", "arch", "table_bytes", "file_bytes", "rows", "bits", "addresses", "state"), 0)
    row |= dict.fromkeys(("limit_bytes", "limit", "rows_read", "bytes_read"), 0) | {"bytes_disk": 0.01 * phone.STORAGE}
    ahead, not_ahead = phone.rows([row | {"ahead": True}, row | {"ahead": False}], 0.004 * phone.MEMORY)
    assert (ahead["p50_ms"], not_ahead["p50_ms"]) == pytest.approx((10, 14))
    assert ahead["tokens_per_s"] == pytest.approx(100)
    assert not list(phone.rows([row | {"ahead": True, "bytes_disk": None}], 1.0))


def test_hit_rates_are_of_every_run_and_of_uniform_reads_beside(found):
    rows = found[0]["offload_hits"]
    assert {row["run"] for row in rows} == set(RUNS) - {"dense-xs-s0"}
    for run in {row["run"] for row in rows}:
        rates = {(row["addresses"], row["share"]): row["hit_rate"] for row in rows if row["run"] == run}
        assert all(rates[kind, 0.01] <= rates[kind, 0.05] <= rates[kind, 0.25] for kind in ("text", "uniform"))
        assert [rates["uniform", share] for share in (0.01, 0.05, 0.25)] == pytest.approx([0.01, 0.05, 0.25], abs=0.04)


def test_what_is_read_is_what_the_addresses_say(results, tmp_path, monkeypatch):
    """Cells decode with the scripted rows, in their order, ahead or not: the rows that reach the tables are those."""
    config, _ = measure.trained(results / "runs/ultramem-xs-s0")
    traced = decode.Trace("run", np.random.default_rng(0).integers(144, size=(50, 2, 8)), (0, 1), (144, 144))
    cfg = decode.sized(replace(config.model, seq_len=16), 1e6)
    path = tmp_path / "rows"
    tables.generate(decode.on_meta(cfg), path, 8)
    bench = decode.Bench(cfg, path, 8, 8, 10**5, pages.DROPPED)
    table = type(bench.model.memories[0].table)
    seen, read = [], table.read
    monkeypatch.setattr(table, "read", lambda one, name, row_TM: seen.append(row_TM[0].numpy()) or read(one, name, row_TM))
    cursor = decode.Cursor(decode.Addresses(traced, "text", cfg.arch.n_keys**2, 8))
    for ahead in (True, False):
        bench.time(cursor, 5, ahead)
    expected = [cursor.addresses(token, layer) for token in range(10) for layer in range(2)]
    assert all((a == b).all() for a, b in zip(seen, expected, strict=True))
    bench.cache.close()


def test_a_process_of_its_own_gives_the_same_rows(results, tmp_path):
    """But for times and memory; one size and width of bits."""
    config, _ = measure.trained(results / "runs/ultramem-xs-s0")
    traced = decode.Trace("run", np.random.default_rng(0).integers(144, size=(50, 2, 8)), (0, 1), (144, 144))
    small = replace(settings(tmp_path), tokens=10, fill_s=0.2)
    rows, speeds = measure.of_table(config.model, 0.001, 8, traced, small, "CPU: x", measure.in_scope)
    assert len([row for row in rows if row["kind"] == "measured"]) == 8
    assert {row["pattern"] for row in speeds} == {"random", "in order"}
    assert not list((tmp_path / "cache").iterdir())


def test_what_cannot_be_measured_is_refused(results, tmp_path):
    said = []
    with pytest.raises(UserError, match="no run with value tables has its weights here"):
        measure.of_runs([results / "runs/dense-xs-s0", tmp_path / "adopted"], settings(tmp_path), said.append)
    assert said == [f"{tmp_path / 'adopted'} is left out: it has no weights here (adopted, or not trained yet)"]
    with pytest.raises(UserError, match=r"measure.offload.arch 'pkm' is none of measure.latency.archs: ultramem"):
        measure.measure(results, list(RUNS), replace(settings(tmp_path), arch="pkm"), said.append, decode.measured)
    with pytest.raises(UserError, match=r"no run of ultramem, which is timed \(measure.offload.arch\), has its weights here"):
        measure.measure(results, ["v2-xs-s0"], settings(tmp_path), said.append, decode.measured)
    shutil.copy(results / "latency.yaml", tmp_path)
    with pytest.raises(UserError, match=r"grid.json asks for no measure.offload"):
        measure.settings_of(tmp_path)
    (tmp_path / "grid.json").write_text(json.dumps({"measure": {"offload": {"bits": [5]}}}))
    with pytest.raises(UserError, match=r"measure.offload"):
        measure.settings_of(tmp_path)


def test_a_process_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    (tmp_path / "rows").write_bytes(b"no table")
    traced = decode.Trace("run", np.zeros((2, 1, 1), np.int64), (0,), (1,))
    with pytest.raises(UserError, match="ended with code"):
        measure.in_scope({"model": {"arch": {"name": "x"}}, "path": str(tmp_path / "rows")}, traced)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
