"""Each verdict on made-up evidence, and each on made-up results from CSV to CSV."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from made_up_claims import LEDGER, claim, grid, judged, ledger_of, seeds
from synthetic import chain_runs, grid_run, row, write

from evals.claims import ledger as claims
from evals.claims.evidence import Evidence, Results
from evals.claims.ruling import rule
from evals.records import schema


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (seeds(-0.09, -0.11, -0.07), "reproduced", "lies below 0 and reaches -0.05"),
        (seeds(-0.03, -0.04, -0.02), "direction only", "falls short of -0.05"),
        (seeds(-0.051, -0.09, -0.01), "reproduced", "reaches"),
        (seeds(0.03, 0.01, 0.05), "not reproduced", "other side of 0"),
        (seeds(-0.01, -0.03, 0.01), "not reproduced", "excludes an effect of -0.05"),
        (seeds(-0.04, -0.1, 0.02), "inconclusive", "includes 0"),
    ],
)
def test_verdicts_on_an_effect(found, verdict, words):
    result = rule(claim(), found)
    assert result.verdict == verdict
    assert words in result.reason
    assert "3 seeds" in result.reason
    mirrored = seeds(-found.value, -found.high, -found.low)
    assert rule(claim(direction="above", published=0.1), mirrored).verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (seeds(1.0, 0.9, 1.1), "reproduced"),
        (seeds(1.0, 0.8, 1.2), "inconclusive"),
        (seeds(1.3, 1.2, 1.4), "not reproduced"),
        (seeds(0.5, 0.4, 0.6), "not reproduced"),
    ],
)
def test_verdicts_on_a_band(found, verdict):
    band = claim(direction="within", band=[0.85, 1.15], published=1, tolerance=None)
    assert rule(band, found).verdict == verdict


BAND = {"direction": "within", "band": [-0.003, 0.003], "tolerance": None}


@pytest.mark.parametrize("value", [-0.5, -0.2, 0.0, 0.2, 0.5])
@pytest.mark.parametrize("fields", [{}, {"direction": "above", "published": 0.1}, BAND, {"ours": True}])
@pytest.mark.parametrize("kind", ["seeds", "items", "points"])
def test_one_seed_rules_neither_way(value, fields, kind):
    bare = rule(claim(**fields), Evidence(value, n=1, seeds=1, kind=kind))
    assert (bare.verdict, bare.n_needed) == ("underpowered", None)
    assert "one seed rules neither way; no seed was repeated for it, so there is no interval" in bare.reason
    borrowed = Evidence(value, value - 0.01, value + 0.01, 1, kind, seeds=1, spread=0.02, freedom=8)
    known = rule(claim(**fields), borrowed)
    assert known.verdict == "underpowered"
    assert f"[{value - 0.01:.4g}, {value + 0.01:.4g}]" in known.reason
    assert f"{known.n_needed} seeds would show {claim(**fields).effect:.2g}" in known.reason


def test_too_few_seeds_are_told_from_seeds_that_decided_nothing():
    few, enough = (rule(claim(), seeds(-0.04, -0.1, 0.02, spread=spread)) for spread in (0.2, 0.02))
    assert (few.verdict, enough.verdict) == ("underpowered", "inconclusive")
    assert few.n_needed == 34  # (2.13 + 0.85 of t, 33 degrees of freedom) x 0.2 / 0.1, squared
    assert enough.n_needed <= 3
    assert "34 seeds would show 0.1 at this noise" in few.reason
    assert rule(claim(), seeds(0.03, 0.01, 0.05, spread=0.2)).verdict == "not reproduced"
    tiny = rule(claim(**BAND), seeds(0.001, -0.02, 0.022, spread=0.02))
    assert tiny.verdict == "underpowered"
    assert tiny.n_needed == 469  # two edges of 0.003, each missed in 10 % of cases
    assert claim(direction="within", band=[-0.05, 0.005], tolerance=None).effect == pytest.approx(0.005)
    assert math.isnan(claim(published=None, tolerance=None).effect)


def test_a_model_or_another_scale_is_capped():
    modelled = Evidence(-0.09, -0.09, -0.09, None, "modelled")
    result = rule(claim(best="direction only", why="not an A100"), modelled)
    assert result.verdict == "direction only"
    assert "modelled, not measured" in result.reason
    assert "not an A100" in result.reason


def test_a_model_refutes_no_measurement_and_our_threshold_no_paper():
    assert rule(claim(), Evidence(0.3, 0.3, 0.3, None, "modelled")).verdict == "modelled against"
    assert rule(claim(), Evidence(0.3, 0.3, 0.3, None, "counted")).verdict == "not reproduced"
    ours = rule(claim(ours=True), seeds(0.3, 0.2, 0.4))
    assert ours.verdict == "inconclusive"
    assert "the threshold is ours" in ours.reason
    assert rule(claim(ours=True), seeds(-0.3, -0.4, -0.2)).verdict == "reproduced"


def test_neutral_need_not_be_zero():
    ratio = claim(direction="above", neutral=2, published=6, tolerance=2)
    assert rule(ratio, seeds(1.09, 1.09, 1.09)).verdict == "not reproduced"
    assert rule(ratio, seeds(3.0, 2.5, 3.5)).verdict == "direction only"
    assert rule(ratio, seeds(5.0, 4.5, 5.5)).verdict == "reproduced"


@pytest.mark.parametrize(
    ("measured", "perfect", "verdict", "words"),
    [
        (9.0, 5.0, "reproduced", "holds even against a perfect MoE: a perfect MoE on this machine gives 5 [4.5, 5.5]"),
        (9.0, 2.0, "direction only", "holds even against a perfect MoE"),
        (9.0, 0.8, "direction only", "holds only against our MoE"),
        (9.0, 1.05, "direction only", "holds only against our MoE"),
        (9.0, math.nan, "direction only", "nothing says how fast a perfect MoE would be here"),
        (0.7, 0.5, "not reproduced", "a perfect MoE on this machine gives 0.5"),
        (2.0, 0.9, "direction only", "holds only against our MoE"),
        (1.0, 0.9, "not reproduced", "includes 1 and excludes an effect of 4; 9 timed steps"),
    ],
)
def test_a_latency_claim_holds_against_a_perfect_mixture_of_experts_or_says_against_whom(measured, perfect, verdict, words):
    def timings(x):
        return Evidence(x, 0.9 * x, 1.1 * x, 9, "timings")

    found = replace(timings(measured), conservative=timings(perfect))
    result = rule(claim(direction="above", neutral=1, published=6, tolerance=2), found)
    assert result.verdict == verdict
    assert words in result.reason


def test_a_verdict_from_csv_to_csv(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    claims.main(["--results", str(tmp_path), "--out", str(tmp_path / "claims.csv")])
    table = schema.read(tmp_path / "claims.csv", "claims").set_index("id")
    assert set(table.index) == {entry.id for entry in LEDGER.claims}
    assert (table.reason != "").all()
    assert set(table.verdict) <= set(claims.VERDICTS)
    assert table.loc["7a", "verdict"] == "reproduced"
    assert table.loc["B1", "verdict"] == "modelled against"
    assert set(table.loc[["B4", "B10"], "verdict"]) == {"ambiguous"}
    assert "read as what one token touches, not reproduced: 2.625e-05" in table.loc["B4", "reason"]
    assert "read as what a step at a batch of 191 touches, reproduced: 0.005" in table.loc["B4", "reason"]
    assert table.loc["5c", "verdict"] == "not tested"
    assert math.isnan(table.loc["5c", "value"])
    assert table.loc["12a", "reason"] == "no finished ultramem_v2 run in the grid"


def test_pairs_come_from_the_grid_by_seed(tmp_path):
    found = judged(grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12]), claim())
    assert found["verdict"] == "reproduced"
    assert found["n"] == 3
    assert found["value"] == pytest.approx(-0.0966667, abs=1e-6)
    assert found["ci_high"] < -0.08
    assert found["runs"] == "a-s-s0 a-s-s1 a-s-s2 b-s-s0 b-s-s1 b-s-s2"
    assert found["scale"].startswith("cpu: 0.1 M activated parameters, 1 M tokens, 3 seed(s), CPU: made up")


def test_a_small_scale_is_not_ruled_on(tmp_path):
    found = judged(grid(tmp_path, [3.9], [4.0]), claim(scale="p1"))
    assert found["verdict"] == "not tested"
    assert "needs 1.5e+08 activated parameters" in found["reason"]
    assert "value" not in found


def test_unfinished_runs_do_not_count(tmp_path):
    runs = [grid_run("a", val_loss=3.0, status="loss became nan"), grid_run("b", val_loss=4.0)]
    assert judged(write(tmp_path, runs=runs), claim())["reason"] == "no finished a run in the grid"


def test_rulings_read_the_test_loss(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    runs = schema.read(tmp_path / "runs.csv", "runs").assign(val_loss=4.0)
    schema.write(tmp_path / "runs.csv", "runs", runs)
    assert judged(tmp_path, claim())["value"] == pytest.approx(-0.0966667, abs=1e-6)


def test_a_chain_of_one_seed_borrows_the_noise_but_not_the_verdict(tmp_path):
    quiet = grid(tmp_path / "quiet", [4.0, 4.001, 3.999], [4.0, 4.001, 3.999])
    loud = grid(tmp_path / "loud", [4.0, 4.2, 3.8], [4.0, 3.8, 4.2])
    single = grid(tmp_path / "single", [4.0], [4.0])
    runs, arms = chain_runs("c", {"base": [4.0], "step": [3.9]})
    entry = claim(metric="contrast", args={"chain": "c", "weights": {"step": 1, "base": -1}})
    found = {}
    for folder in (quiet, loud, single):
        both = schema.read(folder / "runs.csv", "runs").astype(object).to_dict("records") + runs
        found[folder.name] = judged(write(folder, runs=both, arms=arms), entry)
        assert found[folder.name]["verdict"] == "underpowered"
    assert found["quiet"]["n_needed"] == 2
    assert found["loud"]["n_needed"] > 20
    assert found["quiet"]["ci_low"] < -0.1 < found["quiet"]["ci_high"] < -0.09
    assert found["single"]["n_needed"] is None
    assert "ci_low" not in found["single"]


def tuned(arch, lr, chosen):
    return row("tuning", arch=arch, lr=lr, run=f"t-{arch}-{lr}", chosen=chosen, init="x")


def test_a_recipe_on_the_edge_confounds_whichever_way_the_loss_falls(tmp_path):
    entry = claim(confounded=("rate of MoE-8",))
    for sign in (1, -1):
        losses = [4 - 0.1 * sign, 4.01 - 0.1 * sign, 4.02 - 0.1 * sign]
        grid(tmp_path, losses, [4.0, 4.01, 4.02])
        assert judged(tmp_path, entry)["verdict"] == ("reproduced" if sign == 1 else "not reproduced")
        write(tmp_path, tuning=[tuned("moe8", lr, lr == 0.006) for lr in (0.006, 0.012, 0.024)])
        found = judged(tmp_path, entry)
        assert found["verdict"] == "confounded"
        assert found["reason"].startswith("moe8 has the lowest of the rates tried (0.006); ")
        write(tmp_path, tuning=[tuned("moe8", lr, lr == 0.012) for lr in (0.006, 0.012, 0.024)])
        assert judged(tmp_path, entry)["verdict"] != "confounded"
        (tmp_path / "tuning.csv").unlink()


@pytest.mark.parametrize(
    ("base", "confounded"), [([4.0, 4.01, 4.02], False), ([4.003, 4.01, 4.02], False), ([4.1, 4.11, 4.12], True), ([4.1], True)]
)
def test_a_chain_whose_base_is_not_the_grids_model_is_confounded(tmp_path, base, confounded):
    seeded = len(base) > 1
    runs, arms = chain_runs("ultramem", {"PKM-151M-x10": base, "+a": [3.9, 3.905, 3.92][: len(base)]})
    runs += [grid_run("pkm", seed=s, val_loss=4 + 0.01 * s) for s in range(len(base))]
    args = {"chain": "ultramem", "weights": {"+a": 1, "PKM-151M-x10": -1}}
    entry = claim(metric="contrast", args=args, confounded=("base of V1",))
    found = judged(write(tmp_path, runs=runs, arms=arms), entry)
    assert (found["verdict"] == "confounded") == confounded
    if confounded:
        assert "the base of chain ultramem differs from the grid's pkm by 0.1 nats" in found["reason"]
        assert ("no seed was repeated" in found["reason"]) != seeded


def test_readings_that_agree_are_no_ambiguity(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    same = claim(readings={"one": {}, "another": {"size": "s"}})
    assert judged(tmp_path, same)["verdict"] == "reproduced"
    found = judged(tmp_path, claim(readings={"one": {}, "the reverse": {"of": "b", "against": "a"}}))
    assert found["verdict"] == "ambiguous"
    assert "read as one, reproduced: -0.09667" in found["reason"]
    assert "read as the reverse, not reproduced: 0.09667" in found["reason"]


def test_counts_tell_tests_from_claims_and_arithmetic_from_training(tmp_path):
    grid(tmp_path, [3.90, 3.95, 4.02], [4.00, 4.04, 4.12])
    entries = [claim(id="1"), claim(id="2", test="1"), claim(id="3"), claim(id="4", kind="arithmetic")]
    entries += [claim(id="5", kind="modelled", metric=None, why="w", direction=None, tolerance=None)]
    frame = pd.DataFrame(claims.judge(ledger_of(*entries), Results(tmp_path)))
    assert claims.counts(frame) == [
        ("arithmetic", "reproduced", 1, 1),
        ("trained", "reproduced", 3, 2),
        ("modelled", "not tested", 1, 1),
    ]
