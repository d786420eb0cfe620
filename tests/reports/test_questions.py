"""The section of questions says each answer in a sentence, or why there is none."""

import html

import pandas as pd
import pytest
from pages import copy_of, rendered, rewrite, section, table
from synthetic_fair import folder

from evals.records import schema
from reports import questions
from reports.page import Results


@pytest.fixture(scope="module")
def frame(results) -> pd.DataFrame:
    return schema.read(results / "questions.csv", "questions")


def test_a_closing_gap_and_an_undecided_one(frame):
    assert questions.gap(frame, "ultramem") == (
        "UltraMem's gap to MoE-8 changes by −0.050 [−0.060, −0.040] nats for ten times the tokens (3 budgets from 1 M to 16 M "
        "tokens, 3 seeds; a straight line fits (p = 0.4)): it closes, and the line crosses zero at 40 M tokens "
        "[20 M, unbounded]."
    )
    assert questions.gap(frame, "ultramem_v2").endswith(
        "that is not told from zero, and 14 seeds or one more budget of 37 times the largest would tell."
    )


@pytest.mark.parametrize(
    ("reason", "slope", "end"),
    [
        ("already below", -0.05, "it closes, and UltraMem is below MoE-8 already at the largest budget."),
        ("none: the gap grows", 0.05, "it grows, and no crossing is ahead."),
    ],
    ids=["below", "grows"],
)
def test_a_gap_without_a_crossing(frame, reason, slope, end):
    here = frame.copy()
    crossing = here["quantity"] == "crossing"
    here.loc[crossing, "value"], here.loc[crossing, "reason"] = None, reason
    here.loc[(here["quantity"] == "slope") & (here["arch"] == "ultramem"), "value"] = slope
    assert questions.gap(here, "ultramem").endswith(end)


def test_the_best_share_and_its_ends(frame):
    assert questions.split(frame) == (
        "Of the shares that were run, the best for memory is 50% [25%, 75%] of the sparse parameters (3 seeds; no parabola has "
        "one inside): −0.100 [−0.130, −0.070] nats against experts alone (told apart) and −0.010 [−0.040, +0.020] nats against "
        "memory alone (not told apart, 9 seeds would)."
    )


def test_where_a_memory_helps(frame):
    said = questions.where(frame, "ultramem")
    assert said.startswith(
        "UltraMem gains over dense +0.300 nats on the fifth of test tokens whose rows training read most often and +0.100 on "
        "that of the rarest (difference +0.200 [+0.180, +0.220], answered; at equal frequency +0.050 [+0.030, +0.070])"
    )
    assert said.endswith("(difference −0.100 [−0.120, −0.080], answered).")


def test_the_section_has_sentences_pictures_and_numbers(undrawn, results):
    page = html.unescape(rendered(results, "questions"))
    here = section(page, "questions")
    for said in ("UltraMem's gap to MoE-8", "Of the shares that were run", "UltraMem gains over dense"):
        assert said in here
    assert "Whether each memory beats its own placebo is not tested: one seed and no spread over seeds." in here
    assert here.count('<svg aria-label="') == 2 + 3
    assert len(table(page, "Every number behind the sentences")) == 1 + len(schema.read(results / "questions.csv", "questions"))


def test_placebos_are_told_in_one_sentence(tmp_path):
    assert questions.placebo(Results(folder(tmp_path / "three", seeds=3))) == (
        "Of its own placebos, shuffled addresses aside, each memory beats: PKM 1 of 2 (not frozen); UltraMem 2 of 2; "
        "UltraMemV2 2 of 2 (section Placebos)."
    )


def test_what_was_not_run_says_so(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    none = {"value": None, "ci_low": None, "ci_high": None, "state": "not tested", "reason": "no runs", "runs": ""}
    rewrite(path / "questions.csv", "questions", lambda frame: frame[frame["quantity"] == "slope"].assign(**none))
    (path / "where.csv").unlink()
    rewrite(path / "arms.csv", "arms", lambda frame: frame[frame["chain"] != "placebos"])
    here = html.unescape(section(rendered(path, "questions"), "questions"))
    assert "Whether UltraMemV2 closes its gap to MoE-8 with tokens is not tested: no runs." in here
    assert "What share of the sparse parameters should be memory is not tested." in here
    assert "Where a memory helps is not tested" in here
    assert "Whether each memory beats its own placebo is not tested" in here
    assert questions.placebo(Results(path)).startswith("Whether each memory")
