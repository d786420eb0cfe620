"""Tuned recipes against those beside them: by seed, against the architecture's own runs, and never by a step inside the tie."""

import json

import pytest
from synthetic import grid_run, row, write

from evals.stats.seeds import TIE
from reports import rates
from reports.page import Results, Table

LOSSES = {("pkm", "as tuned"): 4.40, ("pkm", "pkm, 0.4x decay"): 4.40 - 2 * TIE, ("moe8", "as tuned"): 4.30}
LOSSES |= {("moe8", "moe8, 0.006"): 4.30 - TIE / 2, ("dense", "dense, 0.009"): 4.0}


@pytest.fixture
def results(tmp_path):
    """PKM is better beside its tuned recipe, MoE-8 within the tie; of dense only another recipe was run."""
    runs, arms = [], []
    for (arch, label), loss in LOSSES.items():
        for seed in range(3 if label == "as tuned" else 2):
            run = f"rates.{len(arms)}-s{seed}"
            runs.append(grid_run(arch, seed=seed, run=run, val_loss=loss + 0.1 * seed, test_loss=9.0))
            given = {
                "step": label,
                "label": label,
                "set": "{}" if label == "as tuned" else json.dumps({"train.lr": 1}),
                "lr": 0.01,
            }
            arms.append(row("arms", chain="rates", kind="sweep", order=len(arms), run=run, **given))
    return Results(write(tmp_path, runs=runs, arms=arms))


def test_a_recipe_is_replaced_only_by_one_that_is_better_by_more_than_the_tie(results):
    found = {(one.arch, one.label): one for one in rates.tried(results)}
    assert {key for key in found if key[0] == "dense"} == set()
    assert [key for key, one in found.items() if one.better] == [("pkm", "pkm, 0.4x decay")]
    change = found["pkm", "pkm, 0.4x decay"].change
    assert (change.value, change.n) == (pytest.approx(-2 * TIE), 2)  # of the seeds that both have
    assert change.high - change.low < 1e-6  # paired: what a seed does to both cancels


def test_the_table_says_which_recipe_is_to_be_replaced(results):
    (table,) = rates.rates(results)
    assert isinstance(table, Table)
    assert "the recipe of PKM is to be replaced" in table.caption
    assert [line[-1].text for line in table.rows] == ["–", "no better", "–", "better"]


def test_without_the_chain_there_is_no_table(tmp_path):
    assert list(rates.rates(Results(write(tmp_path, runs=[grid_run("pkm")])))) == []
