"""What of a mapped file is in memory, and holding it below a limit."""

import pytest
import torch

from evals.offload import disk, pages, tables
from evals.records.errors import UserError
from models.rows import PAGE, RowFile, write_rows

PAGES = 64


@pytest.fixture
def file(tmp_path):
    """A mapped file of `PAGES` pages of records behind its header, none of them in memory."""
    bytes_NB = torch.arange(PAGES * PAGE, dtype=torch.int64).to(torch.uint8).view(-1, 256)
    write_rows(tmp_path / "rows", 8, {"t": tuple(bytes_NB.shape)}, {"t": [bytes_NB]})
    file = RowFile(tmp_path / "rows")
    cache = pages.Cache(file, 10 * PAGE, dropped=True)
    cache.empty()
    if pages.resident(file):
        pytest.skip("this file system keeps its pages in memory")
    yield file, cache
    cache.close()


def touch(file, page):
    return int(file.bytes_X[page * PAGE])


def test_a_page_that_is_read_is_resident_alone(file):
    file, cache = file
    for n, page in enumerate((5, 40, 41), 1):
        touch(file, page)
        assert pages.resident(file) == n * PAGE
    cache.empty()
    assert pages.resident(file) == 0


def test_pages_asked_for_come_without_being_read(file):
    file, _ = file
    file.ask([PAGE, 9 * PAGE - 1], 2)
    while pages.resident(file) < 3 * PAGE:
        pass
    assert pages.resident(file) == 3 * PAGE  # of the second record the last byte lies on the next page


def test_the_least_recently_read_pages_are_dropped_at_the_limit(file):
    file, cache = file
    for page in [*range(12), 3, *range(20, 24)]:
        touch(file, page)
        cache.read([page])
        assert pages.resident(file) <= 10 * PAGE
    assert list(cache.pages) == [7, 8, 9, 10, 11, 3, 20, 21, 22, 23]
    assert cache.full
    assert pages.resident(file) == 10 * PAGE


def test_a_scope_of_ones_own_is_limited_and_no_other(tmp_path):
    def told(name):
        (tmp_path / "told").write_text(f"5:memory:/x\n0::/user.slice/{name}\n")
        folder = tmp_path / "user.slice" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text("max")
        (folder / "memory.current").write_text("1000\n")
        return folder, pages.own_cgroup(tmp_path, str(tmp_path / "told"))

    folder, own = told("ultramem-offload-12.scope")
    assert own == folder
    assert pages.limit(500, own) == pages.CGROUP
    assert (folder / "memory.max").read_text() == "1500"
    folder, own = told("session-1.scope")
    assert own is None
    assert pages.limit(500, own) == pages.DROPPED
    assert (folder / "memory.max").read_text() == "max"
    assert pages.own_cgroup(tmp_path, str(tmp_path / "nothing")) is None


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has .* GB free and a table of 1000000.0 GB and 1 GB to spare are needed"):
        tables.check_disk(tmp_path / "new", 10**15)
    tables.check_disk(tmp_path / "new", 10)


def test_the_disk_is_read_once_for_each_place(file):
    file, _ = file
    rows = list(disk.rows(file.path, (1, 8), "CPU: x", budget_s=0.5))
    assert [(row["pattern"], row["depth"]) for row in rows] == [("random", 1), ("random", 8), ("in order", 1)]
    for row in rows:
        assert row["bytes_per_s"] > 0
        assert row["n_reads"] == (PAGES + 1 if row["bytes_each"] == PAGE else 1)
