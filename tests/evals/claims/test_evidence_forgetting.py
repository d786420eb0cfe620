"""Forgetting at equal learning: against the better of two baselines, seed by seed, and only where all got there."""

import pytest
from made_up_claims import LEDGER, judged
from synthetic import grid_run, write
from synthetic_forgetting import WAYS, forgetting

from evals.claims.evidence import METRICS, NotTested, Results


def results(folder, **made):
    runs = [grid_run(arch, "d64", seed) for arch in ("dense", "ultramem", "ultramem_v2") for seed in range(3)]
    return Results(write(folder, runs=runs, forgetting=list(forgetting(("dense", "ultramem", "ultramem_v2"), **made))))


def found(results, what, arch="ultramem"):
    return METRICS["forgotten"](results, arch, what)


def test_it_is_what_slots_forget_minus_the_better_baseline(tmp_path):
    text, old = (found(results(tmp_path), what) for what in ("text", "old facts"))
    assert text.value == pytest.approx(0.05 - 0.2)
    assert old.value == pytest.approx(10 - 20)
    assert (text.n, text.seeds, text.kind) == (3, 3, "seeds")
    assert text.runs == tuple(f"ultramem-d64-s{seed}" for seed in range(3))
    assert "70% of the new facts" in text.note


def test_the_better_baseline_may_be_another_at_each_seed(tmp_path):
    rows = list(forgetting(("ultramem",)))
    for row in rows:
        if row["way"] == "full" and row["seed"] == 1:
            row["text_change"] = 0.1
    here = Results(write(tmp_path, runs=[grid_run("ultramem", "d64", seed) for seed in range(3)], forgetting=rows))
    assert found(here, "text").value == pytest.approx(((0.05 - 0.2) + (0.06 - 0.1) + (0.07 - 0.22)) / 3)


def test_a_seed_counts_only_where_every_way_got_there(tmp_path):
    here = found(results(tmp_path, short=[("ultramem", "lora", 2)]), "text")
    assert here.n == 2
    assert "without the seeds of lora of seed 2" in here.note
    assert here.runs == ("ultramem-d64-s0", "ultramem-d64-s1")
    never = results(tmp_path, short=[("ultramem", "slots", seed) for seed in range(3)])
    with pytest.raises(NotTested, match=r"slots of seed 0, .* never knew 70% of the new facts"):
        found(never, "text")


def test_without_a_memory_or_a_table_it_is_not_tested(tmp_path):
    with pytest.raises(NotTested, match="no dense taught by slots"):
        found(results(tmp_path), "text", "dense")
    (tmp_path / "forgetting.csv").unlink()
    with pytest.raises(NotTested, match=r"forgetting.csv was not made"):
        found(Results(tmp_path), "text")


@pytest.mark.parametrize(
    ("slots", "verdict"), [((0.05, 0.1), "direction only"), ((0.6, 0.5), "not reproduced")], ids=["less", "more"]
)
def test_the_claims_are_ruled_on_it(tmp_path, slots, verdict):
    results(tmp_path, ways=WAYS | {"slots": slots})
    for entry in LEDGER.claims:
        if entry.paper == "other":
            row = judged(tmp_path, entry)
            assert row["verdict"] == verdict, row
            assert row["reason"].count("read as UltraMem") == 2
