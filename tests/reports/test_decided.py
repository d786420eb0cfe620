"""What the report says of the time at which the rules were written down."""

import datetime
from dataclasses import replace

import pytest
from synthetic import grid_run, write

from evals.claims.decided import Change, Decided, Rules
from reports import decided
from reports.page import Results

RULES = Rules(thresholds="half", contrasts="paired", exclusions="none", seeds="three", design="the grid")
WHEN = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
DECIDED = Decided(commit="0123456789abcdef", date=WHEN, preset="reference", rules=RULES)
LATER = Change(date=WHEN.replace(day=3), commit="fedcba9876543210", what="C7 has a band.", why="its sign was wrong.")


def said(folder, rules=DECIDED, started=("2026-03-01T13:00:00+00:00",), preset="reference"):
    rows = [grid_run("dense", seed=seed, started=when, preset=preset) for seed, when in enumerate(started)]
    return decided.sentence(Results(write(folder, runs=rows)), rules)


def test_rules_before_the_first_run_are_said_with_commit_and_dates(tmp_path):
    assert said(tmp_path, started=("2026-03-01T14:00:00+00:00", "2026-03-01T13:00:00+00:00")) == (
        "The rules were committed as 0123456789 on 2026-03-01 12:00 UTC, before the first run of the preset reference started "
        "on 2026-03-01 13:00 UTC; since then nothing of them has changed."
    )
    assert said(tmp_path, replace(DECIDED, changes=(LATER,))).endswith(
        "since then 1 change of them. 2026-03-03 (fedcba9876): C7 has a band. Reason: its sign was wrong."
    )


def test_rules_after_the_first_run_are_said_plainly(tmp_path):
    told = said(tmp_path, started=("2026-03-01T13:30:00+02:00", "2026-03-02T00:00:00+00:00"))
    assert "AFTER the first run of the preset reference started on 2026-03-01 11:30 UTC" in told
    assert "1 of 2 runs are older than the rules that judge them" in told
    assert "before the first run" not in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rules": replace(DECIDED, commit=None, date=None)}, "not decided yet: evals/claims/decided.yaml names no commit"),
        ({"preset": "cpu"}, "this folder holds no run of the preset reference"),
        ({"started": ("x",)}, "no run of the preset reference says when it started"),
    ],
)
def test_what_cannot_be_known_is_said(tmp_path, change, words):
    assert words in said(tmp_path, **change)


def test_rules_and_changes_stand_in_a_table(tmp_path):
    results = Results(write(tmp_path, runs=[grid_run("dense")]))
    _, table = decided.decided(results, replace(DECIDED, changes=(LATER,)))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["2026-03-01", "0123456789", "thresholds: half", "the rule"]
    assert rows[-1] == ["2026-03-03", "fedcba9876", LATER.what, LATER.why]
    assert len(rows) == 6
