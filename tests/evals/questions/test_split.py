"""The best share of memory: its interval, the parabola's minimum, and the ends, on made-up runs whose answer is known."""

import pytest
from synthetic import grid_run
from synthetic_questions import folder_of, split_chain

from evals.claims.evidence import Results
from evals.questions import split


def asked(path, loss, **how):
    rows = split.answers(Results(folder_of(path, split_chain(loss, **how))))
    return {row.quantity if row.at is None else (row.quantity, row.at): row for row in rows}


def test_a_minimum_inside_is_found_and_differs_from_both_ends(tmp_path):
    found = asked(tmp_path, lambda share: 4 + 0.3 * (share - 0.55) ** 2)
    best, parabola = found["best share"], found["minimum of a parabola"]
    assert (best.value, best.ci_low, best.ci_high, best.n, best.state) == (0.5, 0.5, 0.5, 3, "answered")
    assert parabola.ci_low < 0.55 < parabola.ci_high
    assert parabola.ci_high - parabola.ci_low < 0.2
    for share, name in ((0.0, "experts alone"), (1.0, "memory alone")):
        against = found[f"best against {name}", share]
        assert (against.state, against.n) == ("answered", 3)
        assert against.value == pytest.approx(0.3 * ((0.5 - 0.55) ** 2 - (share - 0.55) ** 2), abs=0.01)


def test_what_noise_hides_has_a_wide_interval(tmp_path):
    found = asked(tmp_path, lambda share: 4 + 0.01 * (share - 0.5) ** 2, noise=0.05)
    best = found["best share"]
    assert best.ci_high - best.ci_low >= 0.5
    against = [row for name, row in found.items() if name[0].startswith("best against")]
    assert against
    assert all(row.state == "underpowered" and row.n_needed > 3 for row in against)


def test_a_best_end_has_no_parabola_inside_and_is_held_against_the_other(tmp_path):
    found = asked(tmp_path, lambda share: 4 + 0.2 * share)
    assert found["best share"].value == 0.0
    assert not any("parabola" in str(name) for name in found)
    assert ("best against experts alone", 0.0) not in found
    assert found["best against memory alone", 1.0].state == "answered"


def test_the_ends_are_tested_at_a_level_that_allows_for_the_choice(tmp_path):
    found = asked(tmp_path, lambda share: 4 + 0.3 * (share - 0.5) ** 2, noise=0.02)
    plain = found["loss against the first", 0.5]
    chosen = found["best against experts alone", 0.0]
    assert chosen.value == pytest.approx(plain.value)
    assert (chosen.ci_high - chosen.ci_low) > 1.3 * (plain.ci_high - plain.ci_low)


def test_one_seed_and_no_runs(tmp_path):
    found = asked(tmp_path / "one", lambda share: 4 + share, seeds=1)
    assert (found["best share"].state, found["best share"].reason) == ("underpowered", "no seed was repeated")
    found = asked(tmp_path / "few", lambda share: 4 + share, shares=(0.0, 1.0))
    assert found["best share"].reason == "2 shares of chain split were run, an optimum needs 3: snakemake ablation_split"


def test_noise_of_other_runs_does_not_make_one_seed_an_answer(tmp_path):
    path = tmp_path / "one"
    repeated = [grid_run(arch, "s", seed, val_loss=4 + 0.001 * seed**2) for arch in ("dense", "moe8") for seed in range(3)]
    found = split.answers(Results(folder_of(path, split_chain(lambda share: 4 + share, seeds=1), (repeated, []))))
    ruled = [row for row in found if row.quantity.startswith(("loss", "best against"))]
    assert ruled[0].ci_low > 0
    assert {(row.state, row.reason) for row in ruled} == {("underpowered", "one seed rules neither way")}
