"""What is drawn and picked: curves of one device, nearest pairs, lines through laws only, published points, clear winners."""

import pandas as pd
from matplotlib.figure import Figure
from synthetic_folder import ARCHS, SIZES

from reports import evaluations, figures, fits, published, speedups, timings
from reports import page as parts


def test_one_curve_is_of_one_device(results):
    """Two devices in one setting would give each line two points a batch."""
    frame = timings.timings(parts.Results(results))
    other = frame[frame["kind"] == "measured"].assign(device="CPU: Another", p50_ms=lambda rows: 9 * rows["p50_ms"])
    both = timings.batch_panels(pd.concat([frame[frame["kind"] == "measured"], other]), "x")
    assert len(list(both)) == 2 * len(list(timings.batch_panels(other, "x")))


def test_sparse_ratios_pair_with_the_nearest(results):
    frame = timings.timings(parts.Results(results))
    pairs = speedups.speedups(frame[(frame["kind"] == "measured") & (frame["variant"] == "plain")])
    assert (pairs["sparse_ratio"] / pairs["sparse_ratio_moe"]).between(0.9, 1.11).all()
    lone = frame[~(frame["arch"].isin(["moe2", "moe8"]) & (frame["sparse_ratio"] < 5))]
    assert (speedups.speedups(lone[lone["kind"] == "measured"])["sparse_ratio"] > 5).all()
    assert (
        pairs[(pairs["batch"] == 64) & (pairs["dtype"] == "fp32") & (pairs["part"] == "model")]["sparse_ratio"].nunique() == 6
    )


def test_a_line_is_drawn_through_a_law_only(results):
    points = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 2.0], "run": ["", ""]})
    rows = parts.Results(results)["fits"].query("fit == 'sparse ratio' and stands")
    law = fits.Along(rows[rows["series"] == rows["series"].iloc[0]], ("S",))
    for laws, lines in (([None], 0), ([law], 1), ([law, None], 1)):
        axes = Figure().add_subplot()
        series = [figures.Series("ultramem", "", points, each) for each in laws]
        figures.laws.__wrapped__(axes, series, title="", x_label="", y_label="")
        assert len(axes.lines) == lines


def test_the_papers_points_are_those_of_the_reference():
    frame = published.losses()
    dense = frame[frame["model"] == "Dense-1.6B"].iloc[0]
    assert (dense["arch"], dense["active_params"], dense["params"], dense["loss"]) == ("dense", 1.605e9, 1.61e9, 2.49)
    v2 = frame[frame["model"] == "V2-2.5B/120B-top256"]
    assert v2[["arch", "active_params", "params", "tokens", "loss"]].to_numpy().tolist() == [
        ["ultramem_v2", 2.5e9, 1.2e11, 1.6e12, 1.835]
    ]


def test_bold_is_for_clear_winners():
    def scores(values, stderr, better=True):
        rows = [{"arch": arch, "value": v, "stderr": stderr, "higher_is_better": better} for arch, v in values.items()]
        return pd.DataFrame(rows)

    near, far = {"dense": 0.4, "pkm": 0.5, "moe2": 0.45}, {"dense": 0.4, "pkm": 0.9, "moe2": 0.45}
    assert evaluations.clear_winner(scores(near, 0.1)) is None
    assert evaluations.clear_winner(scores(far, 0.1)) == "pkm"
    assert evaluations.clear_winner(scores(far, 0.01, better=False)) == "dense"
    assert evaluations.clear_winner(scores(far, 0.0)) is None
    assert evaluations.clear_winner(scores(far, float("nan"))) is None


def test_ablation_and_tuning_runs_stay_out_of_the_comparison(results):
    grid = parts.Results(results).grid
    assert sorted(grid["run"]) == sorted(f"{arch}-{size}-s0" for arch in ARCHS for size in SIZES)
