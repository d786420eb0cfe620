"""How layers grow: what cannot be measured is refused before anything is installed."""

import pytest

from evals import growth
from evals.records.errors import UserError


def test_tables_too_small_for_the_picks_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["growth", "--out", str(tmp_path / "growth.csv"), "--rows", "4096", "256"])
    monkeypatch.setattr(growth.peers, "install", lambda folder: pytest.fail("installed"))
    with pytest.raises(UserError, match=r"--rows 256: a table here has 4096 rows or more"):
        growth.main()
