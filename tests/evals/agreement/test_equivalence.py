"""Losses and scores of another machine: equivalence over seeds and runs, undecided where there are too few."""

import pytest
from pairs import counted, differing, folder, seeds, statuses, timing
from synthetic import grid_run, row, write

from evals import compare
from evals.agreement.told import sentence
from evals.records.errors import UserError


def test_another_machine_is_compared_over_seeds(tmp_path):
    here = folder(tmp_path / "here")
    near = folder(tmp_path / "near", hardware="CUDA: other", shift=0.01)
    findings = compare.compare(here, near)
    assert compare.reproduced(findings)
    assert sentence(findings).startswith("reproduced: all 4 losses agree (equivalence within 0.05 nats/token")
    far = folder(tmp_path / "far", hardware="CUDA: other", shift=0.2)
    assert differing(here, far) == {("runs", "val_loss"), ("runs", "test_loss")}
    rules = {f.rule for f in compare.compare(here, far) if f.status == "differ"}
    assert any("2 pairs" in rule for rule in rules)
    assert any("1 pairs" in rule for rule in rules)
    slow = [timing("dense", 1.0, device="CUDA: other"), timing("ultramem", 9.0, device="CUDA: other")]
    noted = compare.compare(here, folder(tmp_path / "slow", hardware="CUDA: other", latency=slow))
    assert {(f.table, f.status) for f in noted if f.table == "latency" and f.status != "agree"} == {("latency", "note")}


def test_two_seeds_far_apart_do_not_agree(tmp_path, capsys):
    """The interval of two seeds holds 0 when it is wide enough; it lies inside no margin then."""
    a = seeds(tmp_path / "a", dense=[4.0, 4.1])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.3, 4.15])
    assert statuses(a, b) == {"dense-s": "undecided"}
    assert compare.main([str(a), str(b)]) == 1
    n = counted(a, b)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"not reproduced: 0 of {n} comparisons differ; 0 of 1 losses agree; 1 of them cannot be told to agree or to differ; "
        f"{n - 2} comparisons agree"  # the two that do not: its losses on validation and on test
    )
    assert statuses(a, seeds(tmp_path / "c", "CPU: two", dense=[4.3, 4.4])) == {"dense-s": "differ"}


def test_the_interval_lies_inside_the_margin(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0, 4.1, 4.2], moe2=[4.0, 4.1, 4.2])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.01, 4.09, 4.21], moe2=[4.03, 4.13, 4.23])
    assert statuses(a, b) == {"dense-s": "agree", "moe2-s": "agree"}
    assert statuses(a, b, margin=0.02) == {"dense-s": "agree", "moe2-s": "undecided"}
    assert statuses(a, b, margin=0.01) == {"dense-s": "undecided", "moe2-s": "differ"}
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--margin"):
            compare.compare(a, b, margin)


def test_one_seed_takes_its_noise_from_the_other_models(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0], moe2=[4.0], moe8=[4.0], pkm=[4.0])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.005], moe2=[3.995], moe8=[4.006], pkm=[4.3])
    assert statuses(a, b) == {"dense-s": "undecided", "moe2-s": "undecided", "moe8-s": "undecided", "pkm-s": "differ"}
    b = seeds(tmp_path / "c", "CPU: two", dense=[4.005], moe2=[3.995], moe8=[4.006], pkm=[4.002])
    assert set(statuses(a, b).values()) == {"agree"}
    a, b, c = (seeds(tmp_path / f"lone{x}", f"CPU: {x}", dense=[x]) for x in (4.0, 4.02, 4.2))
    assert statuses(a, b) == {"dense-s": "undecided"}
    assert statuses(a, c) == {"dense-s": "differ"}


def test_a_run_that_ended_on_one_machine_only_differs(tmp_path):
    a = seeds(tmp_path / "a", dense=[4.0, 4.1])
    b = seeds(tmp_path / "b", "CPU: two", dense=[4.0, None])
    assert statuses(a, b) == {"dense-s-s1": "differ", "dense-s": "agree"}


def scored(path, values, device="CPU: one", metric="acc", n=400, stderr=0.025):
    names = [f"m{i}-s-s0" for i in range(len(values))]
    scores = [
        row("evals", run=name, task="t", metric=metric, n=n, value=x, stderr=stderr)
        for name, x in zip(names, values, strict=True)
    ]
    return write(path, runs=[grid_run("dense", run=name, device=device) for name in names], evals=scores)


@pytest.mark.parametrize(
    ("metric", "here", "there", "status"),
    [
        ("acc", [0.50, 0.50, 0.50], [0.51, 0.49, 0.50], {"t acc 1": "agree"}),
        ("acc", [0.50, 0.50, 0.50], [0.58, 0.59, 0.58], {"t acc 1": "differ"}),
        # 0.06 apart is 1.7 independent standard errors: once let through.
        ("acc", [0.50, 0.50, 0.50], [0.58, 0.42, 0.56], {"t acc 1": "undecided"}),
        ("acc", [0.50], [0.56], {"t acc 1": "undecided"}),
        ("acc", [0.50], [0.80], {"t acc 1": "differ", "m0-s-s0 t acc 1": "differ"}),
        ("acc", [0.50] * 20, [0.50] * 19 + [0.80], {"t acc 1": "agree", "m19-s-s0 t acc 1": "differ"}),
        ("acc", [0.50], [0.50], {"t acc 1": "agree"}),
        ("loss", [2.0, 3.0, 4.0], [2.01, 2.99, 4.01], {"t loss 1": "agree"}),
        (
            "loss",
            [2.0, 3.0, 4.0],
            [2.2, 3.2, 4.2],
            {"t loss 1": "differ", **{f"m{i}-s-s0 t loss 1": "differ" for i in range(3)}},
        ),
        ("loss", [2.0, 3.0], [float("inf"), 3.0], {"t loss 1": "differ"}),
    ],
)
def test_scores_of_another_machine_are_paired_over_runs(tmp_path, metric, here, there, status):
    a = scored(tmp_path / "a", here, metric=metric)
    b = scored(tmp_path / "b", there, "CPU: two", metric=metric)
    assert statuses(a, b, "evals") == status
    assert statuses(b, a, "evals") == status
    decided = "differ" not in status.values()
    assert compare.reproduced(compare.compare(a, b)) == decided
    assert ("scores have too few runs or items to decide" in sentence(compare.compare(a, b))) == (
        "undecided" in status.values()
    )


def test_none_right_of_a_few_items_is_not_a_certain_score(tmp_path):
    a = scored(tmp_path / "a", [0.0, 0.5, 0.5, 0.5], n=6, stderr=0.0)
    b = scored(tmp_path / "b", [0.5, 0.5, 0.5, 0.5], "CPU: two", n=6, stderr=0.0)
    assert statuses(a, b, "evals") == {"t acc 1": "undecided"}
