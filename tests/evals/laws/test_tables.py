"""The tables of laws: rankings by every counting rule, gains as dense's compute and as time, and their command."""

import numpy as np
import pandas as pd
import pytest
from laws import SIZES, frames, joint, reference, run_row
from synthetic import row

from evals.laws import counting, equivalents, fits, law
from evals.laws.points import Points
from evals.records import schema


def path_law(n, d):
    """Loss by training FLOPs along the grid's path: exponent 0.3."""
    return 2.0 + 1.5 * (6 * n * d / 2e12) ** -0.3


def parts(archs, **more):
    """Rows of `counting`: two FLOPs a parameter in `ffn`, and other parts as functions of the size."""
    return pd.DataFrame(
        row("counting", size=size, arch=arch, part=part, flops=round(of(n)), active_params=round(of(n) / 2), params=1)
        for arch in archs
        for size, n in SIZES.items()
        for part, of in ({"ffn": lambda n: 2 * n} | more).items()
    )


def test_a_counting_rule_changes_the_exponent_as_it_does_by_hand():
    """C = 6 N D grows as N^2; with a head such that FLOPs per token grow as N^2, C grows as N^3, and 0.3 becomes 0.2."""
    runs, _ = reference(law=path_law, noise=0.0, sweep=())
    points, counts = Points(pd.DataFrame(runs), resamples=0), parts(["dense"], head=lambda n: 2e-5 * n**2 - 2 * n)
    for rule, exponent in (("none", 0.3), ("router", 0.3), ("head", 0.2), ("head + router", 0.2)):
        spent = counting.compute(points, points.grid("dense"), counting.counted(counts, counting.rules()[rule]))
        this = law.estimate(points.of(spent.index, {"C": spent}), power=True)
        assert this.params["alpha"] == pytest.approx(exponent, rel=1e-3), rule
        assert this.params["E"] == pytest.approx(2.0, rel=1e-3)


def test_the_rank_at_equal_flops_depends_on_what_is_counted():
    """`pkm` is lower by a hundredth at equal FLOPs by the papers' rule, and not once its dear head counts."""
    runs, _ = reference(("dense", "pkm"), law=path_law, noise=0.0, sweep=(), better=0.01)
    dear = parts(["pkm"], head=lambda n: 4 * n)
    counts = pd.concat([parts(["dense"]), dear])
    rows = pd.DataFrame(counting.ranking(Points(pd.DataFrame(runs), resamples=20), counts)).set_index(["rule", "size", "arch"])
    assert len(rows) == 17 * 4 * 2
    at = rows.loc["router", "d96", "pkm"]
    assert (at["rank"], at["gap_rank"]) == (1, 1)
    assert at["gap"] == pytest.approx(-0.01 * path_law(0.51e6, 5.1e6))
    assert at["gap_low"] == pytest.approx(at["gap_high"])
    at = rows.loc["head", "d64", "pkm"]
    ends = [(6 * n * 10 * n, path_law(n, 10 * n)) for n in (0.23e6, 0.51e6)]
    (x0, y0), (x1, y1) = ends
    base = y0 + (y1 - y0) * np.log(3) / np.log(x1 / x0)
    assert at["flops"] == 6 * 0.23e6
    assert at["gap"] == pytest.approx(0.99 * y0 - base)
    assert (at["rank"], at["gap_rank"]) == (1, 2)
    assert not at["beyond"]
    assert rows.loc["head", "d128", "pkm"]["beyond"]
    assert not rows.loc["router", "d128", "pkm"]["beyond"]


def test_every_choice_of_what_counts_is_a_rule():
    rules = counting.rules()
    assert len(rules) == 17
    assert next(iter(rules)) == counting.PAPERS == "router"
    assert "addressing" in rules["router"]
    assert rules["none"] == counting.ALWAYS
    assert set(rules[counting.EVERYTHING]) - set(rules["embedding + head + router + scores"]) == {"selection"}


def needed(loss):
    return 2e12 * ((loss - 2.0) / 1.5) ** (-1 / 0.3)


def test_a_gain_is_the_compute_that_dense_would_need_and_its_time():
    runs, _ = reference(law=path_law, noise=0.0005, sweep=())
    n, arms = SIZES["d64"], []
    flops = 6 * n * 10 * n
    for order, (label, times) in enumerate((("base", 1.0), ("better", 2.0), ("best", 200.0), ("floor", None))):
        loss = 2.0 + 1.5 * (times * flops / 2e12) ** -0.3 if times else 1.9
        for seed in range(3):
            name = f"chain.{label}-d64-s{seed}"
            runs.append(run_row(name, "pkm", "d64", n, 10 * n, seed, loss, core_seconds=3e-12 * n * 10 * n))
            arms.append(row("arms", chain="chain", kind="sweep", step=label, label=label, order=order, set="{}", run=name))
    points = Points(*frames(runs, arms), 60)
    rows = pd.DataFrame(equivalents.equivalents(points, points.runs["core_seconds"])).set_index("step")
    better, best, floor = (rows.loc[label] for label in ("better", "best", "floor"))
    assert better["ratio"] == pytest.approx(2.0, rel=0.03)
    assert 1.9 < better["ratio_low"] < better["ratio"] < better["ratio_high"] < 2.1
    assert better["step_ratio"] == pytest.approx(2.0, rel=0.03)
    assert np.isnan(rows.loc["base", "step_ratio"])
    assert not better["beyond"]
    assert better["dense_core_seconds"] == pytest.approx(better["dense_flops"] * 1e-12 / 6, rel=1e-3)
    assert better["speedup"] == pytest.approx(better["ratio"] / 3, rel=1e-3)
    assert better["statement"].startswith("dense would need ")
    assert "times slower than dense" in better["statement"]
    assert best["beyond"]
    assert "beyond the measured range" in best["statement"]
    assert floor["statement"].startswith("below dense's floor: beyond the measured range")
    assert np.isnan(floor["ratio"])
    assert np.isnan(floor["speedup_high"])
    own = rows[rows["chain"].isna()]
    assert own["ratio"].to_numpy() == pytest.approx(1.0, abs=0.02)
    assert set(own["arch"]) == {"dense"}


def test_time_is_of_one_device_and_a_sweep_over_tokens_is_a_second_curve():
    runs, arms = reference(("dense", "moe8"), noise=0.0005, sweep=("dense", "moe8"), better=0.02)
    runs = [run | {"device": "another"} if run["arch"] == "moe8" else run for run in runs]
    points = Points(*frames(runs, arms), 20)
    rows = pd.DataFrame(equivalents.equivalents(points, points.runs["core_seconds"]))
    assert "core_seconds" not in rows or rows.loc[rows["arch"] == "moe8", "core_seconds"].isna().all()
    grid = rows[rows["chain"].isna()]
    assert set(zip(grid["size"], grid["curve"], strict=True)) == {*((size, "sizes") for size in SIZES), ("d64", "tokens")}
    tokens = grid[(grid["arch"] == "moe8") & (grid["curve"] == "tokens")].iloc[0]
    n, loss = SIZES["d64"], tokens["loss"]
    d = 3e6 * ((loss - joint(n, 1e30)) / 1.6) ** (-1 / 0.3)
    assert tokens["ratio"] == pytest.approx(d / (10 * n), rel=0.05)


def test_other_jobs_beside_a_run_do_not_make_an_architecture_slow():
    """MoE-8 takes twice dense's time a token; half of each run, and one seed of dense all along, had a neighbour."""
    runs, arms = reference(("dense", "moe8"), noise=0.0005, sweep=())
    steps = []
    for run in runs:
        pace = 1e4 / (1 + (run["arch"] == "moe8"))
        always = run["run"] == "dense-d64-s1"
        rates = [pace / (1 + (always or step < 50)) for step in range(100)]
        steps += [{"run": run["run"], "split": "train", "tokens_per_s": rate} for rate in rates]
        steps += [{"run": run["run"], "split": "validation", "tokens_per_s": 1e9}] * 5
        wall = run["tokens"] / 100 * sum(1 / rate for rate in rates)
        run |= {"wall_s": wall, "core_seconds": 2 * wall}
    points = Points(*frames(runs, arms), 20)
    times = equivalents.undisturbed(points.runs, pd.DataFrame(steps))
    assert times["moe8-d64-s0"] == pytest.approx(2 * points.runs.loc["moe8-d64-s0", "tokens"] / 5e3)
    rows = pd.DataFrame(equivalents.equivalents(points, times)).set_index(["arch", "size"])
    assert rows.loc["dense", "speedup"].to_numpy() == pytest.approx(1.0, abs=0.03)
    assert rows.loc["moe8", "speedup"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert equivalents.undisturbed(points.runs, None).isna().all()


def test_the_command_writes_tables_of_a_folder_whatever_it_holds(tmp_path, capsys):
    runs, arms = reference(("dense", "moe8"), sweep=("dense",), better=0.01)
    for order, ratio in enumerate((6, 12, 24, 36)):
        for seed in range(2):
            name, loss = f"sparsity.{order}-d64-s{seed}", 4.0 - 0.1 * np.log(ratio) + 0.003 * seed
            runs.append(run_row(name, "ultramem", "d64", 1e6, 1e7, seed, loss, sparse_params=ratio * 10**6))
            label = f"m/N fixed, {ratio}x"
            arms.append(row("arms", chain="sparsity", kind="sweep", step=label, label=label, order=order, set="{}", run=name))
    schema.write(tmp_path / "runs.csv", "runs", runs)
    schema.write(tmp_path / "arms.csv", "arms", arms)
    schema.write(tmp_path / "counting.csv", "counting", parts(["dense", "moe8"]))
    names = ("fits", "ranking", "equivalents")
    command = ["--results", str(tmp_path), "--resamples", "10", "--out", str(tmp_path / "fits.csv")]
    fits.main([*command, "--ranking", str(tmp_path / "ranking.csv"), "--equivalents", str(tmp_path / "equivalents.csv")])
    found = {name: schema.read(tmp_path / f"{name}.csv", name) for name in names}
    assert all(len(frame) for frame in found.values())
    table = found["fits"]
    assert set(table["fit"]) == {"joint", "compute", "sparse ratio", "table size"}
    assert set(table.loc[table["fit"] == "compute", "series"]) == set(counting.rules())
    stands = table[table["stands"]].groupby(["fit", "arch", "series"])["form"].nunique()
    assert (stands == 1).all()
    line = table[(table["fit"] == "table size") & (table["parameter"] == "b")].iloc[0]
    assert (line["series"], line["n_runs"], line["n_points"]) == ("m/N fixed", 8, 4)
    assert line["value"] == pytest.approx(0.1 * np.log(10), rel=0.02)
    assert "joint, dense: " in capsys.readouterr().out
    schema.write(tmp_path / "runs.csv", "runs", runs[:1])
    (tmp_path / "arms.csv").unlink()
    (tmp_path / "counting.csv").unlink()
    fits.main(command)
    alone = schema.read(tmp_path / "fits.csv", "fits")
    assert set(alone["statement"]) == {"not a law: 1 size, a law needs 4"}
