"""What the report says of fairness: the placebos, sensitivity, coordinates, anomalies, slopes, conventions."""

import html
import re

import pytest
import synthetic_fair
from pages import rendered, section
from scipy import stats as distributions
from synthetic import grid_run, row, write

from evals.records import schema
from reports import build, placebos, scaling, sections, style
from reports.page import Results, Text


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return synthetic_fair.folder(tmp_path_factory.mktemp("three") / "synthetic", seeds=3)


@pytest.fixture
def drawn(monkeypatch):
    """One section of a page, as text with its tables' cells apart by bars, no picture laid out."""
    monkeypatch.setattr(style, "svg", lambda name, alt, figure: f'<svg aria-label="{html.escape(alt)}"></svg>')

    def draw(folder, name: str) -> str:
        page = section(rendered(folder, name), name)
        page = re.sub(r"</t[dh]>", "|", re.sub(r"</tr>", "\n", page.replace("\n", " ")))
        return html.unescape(re.sub("<[^>]*>", "", page))

    return draw


def test_a_memory_that_does_not_beat_its_placebo_is_said_so(three, drawn):
    shown = drawn(three, "placebos")
    for words in (shown, drawn(three, "claims")):
        assert re.search(
            r"PKM does not beat its placebos frozen \(.*\), shuffled \(.*\): its loss is no evidence of memory", words
        )
        assert re.search(r"UltraMem does not beat its placebo shuffled \([^)]*\): where a row lies does not matter", words)
        assert "one-row" not in re.search(r"PKM does not beat.*?memory\.", words)[0]
    assert re.search(r"PKM\|one-row\|.*\|3\|paired t\|beats it\|", shown)
    assert re.search(r"PKM\|frozen\|.*\|3\|paired t\|does not beat it\|", shown)
    rules, *texts = [text.text for text in sections.claims(Results(three)) if isinstance(text, Text)]
    assert rules.startswith("The rules ")
    assert texts == placebos.sentences(Results(three))


def test_one_seed_of_a_placebo_is_held_against_the_pooled_noise(three, tmp_path):
    """Without any repeated seed nothing is decided; with the comparison's spread over seeds there is an interval."""
    arms = schema.read(three / "arms.csv", "arms").query("chain == 'placebos'")
    kept = schema.read(three / "runs.csv", "runs")
    single = arms[arms["run"].str.endswith("-s0")]
    schema.write(tmp_path / "arms.csv", "arms", single)
    schema.write(tmp_path / "runs.csv", "runs", kept[~kept["run"].isin(set(arms["run"]) - set(single["run"]))])
    assert all(change.bounded and change.n == 1 for *_, change in placebos.compared(Results(tmp_path)))
    schema.write(tmp_path / "runs.csv", "runs", kept[kept["seed"] == 0])
    assert not any(change.bounded for *_, change in placebos.compared(Results(tmp_path)))
    assert placebos.sentences(Results(tmp_path)) == [
        "Placebos of PKM, UltraMem, UltraMemV2: one seed and no spread over seeds, so nothing is decided."
    ]


def test_optima_of_two_sizes_are_compared_and_edges_flagged(three, drawn):
    shown = drawn(three, "tuning")
    assert "Learning-rate sensitivity" in shown
    assert "was tried with 10 settings. The number is the same for all" in shown
    assert "Dense|10|0.006|0.009|1.50|yes|no|0.006|" in shown
    assert "PKM|10|0.0045|0.012|2.67|no|on an edge at d128|0.0045|" in shown
    assert "UltraMem|10|0.003|0.003|1.00|yes|on an edge at d64, d128|0.003|" in shown


def test_the_coordinate_check_names_what_grows_with_the_width(three, drawn, tmp_path):
    shown = drawn(three, "coordinates")
    assert "1 of 45 slopes of log activation against log width is not within ±0.25 of 0 after 10 steps" in shown
    assert "the largest is +0.50, PKM, logits" in shown
    lines = [re.split(r"\|", line) for line in shown.split("\n")]
    flat = [line for line in lines if len(line) > 3 and line[1].startswith("flat") and line[2] == "10"]
    assert len(flat) == 6
    assert {cell for line in flat for cell in line[3:-1]} == {"+0.80", "–"}
    good = [line | {"value": 1.0} for line in synthetic_fair.coordinates()]
    assert "the check holds" in drawn(write(tmp_path, coordinates=good, runs=[grid_run("dense")]), "coordinates")
    write(tmp_path, coordinates=good[:1])
    assert "coordinates.csv has one width" in drawn(tmp_path, "coordinates")


def test_an_anomaly_stands_with_its_reading_or_as_open(three, drawn):
    shown = drawn(three, "diagnosis")
    assert "2 anomalies of the first reference results, each asked by an experiment: 1 finding, 1 open." in shown
    assert "Why does the softmax cost? It costs 0.1 with three seeds." in shown
    assert "Use. Nobody has read these arms yet: open." in shown
    assert re.search(r"softmax\|without softmax\|3\|[\d.]+\|\+0\.\d{3}\|\+0\.\d{3} … \+0\.\d{3}\|finding\|", shown)
    assert "diagnosis_softmax" not in drawn(three, "ablations")
    assert "placebos (sweep)" not in drawn(three, "ablations")


def test_a_size_at_which_loss_rises_is_named(three, tmp_path):
    def texts(folder):
        return [block.text for block in scaling._slopes(Results(folder)) if isinstance(block, Text)]

    assert texts(three) == ["Test loss falls at every step of size for every architecture (12 steps)."]
    rows = [
        grid_run("dense", size, test_loss=loss, active_params=10**place)
        for place, (size, loss) in enumerate({"s": 4.5, "m": 4.6}.items(), 5)
    ]
    assert texts(write(tmp_path, runs=rows)) == [
        "Test loss does not fall at every step of size: it rises for Dense at m (+0.100)."
    ]


def test_other_conventions_of_counting_stand_beside_the_papers(three, drawn):
    shown = drawn(three, "matched")
    counts = schema.read(three / "matched_compute.csv", "matched_compute").query("size == 'd64' and arch == 'ultramem'").iloc[0]
    flops, head = counts["flops_per_token"], 5e5
    line = next(line for line in shown.split("\n") if "d64|UltraMem|matched|" in line and f"|{style.si(head, 4)}|" in line)
    assert line.split("|")[6:9] == [style.si(value, 4) for value in (1.036 * flops, flops + head, 1.036 * flops + head)]
    assert line.split("|")[9:13] == ["+0.00%", "+3.60%", "+0.00%", f"{0.036 * flops / (flops + head):+.2%}"]


def test_primary_scores_lead_and_a_lower_one_is_better(three, drawn):
    shown = drawn(three, "evaluations")
    first, second = (shown.index(words) for words in ("Primary scores", "Public tasks"))
    assert first < second
    assert "arc_easy|gold_bpb|" in shown[first:second]
    assert "|acc|" not in shown[first:second]


def test_the_cap_of_used_share_and_the_value_optimizer_are_said(three, drawn):
    assert "It cannot exceed used_share_cap, min(1, picks / rows)" in drawn(three, "health")
    losses = drawn(three, "losses")
    assert re.search(r"d64\|UltraMem\|.*\|rows\|", losses)
    assert re.search(r"d64\|Dense\|.*\|–\|", losses)


def test_a_step_of_several_seeds_is_one_row_with_an_interval(tmp_path, drawn):
    made, arms = [], []
    for order, by_seed in enumerate(([4.5, 4.7, 4.6], [4.4, 4.63, 4.5])):
        for seed, loss in enumerate(by_seed):
            run = f"chain.{order}-s-s{seed}"
            made.append(grid_run("ultramem", seed=seed, run=run, test_loss=loss, val_loss=1.0))
            arms.append(
                row("arms", chain="c", kind="sweep", step=f"{order}", order=order, label=f"arm {order}", set="{}", run=run)
            )
    low, high = distributions.ttest_1samp([-0.1, -0.07, -0.1], 0).confidence_interval()
    shown = drawn(write(tmp_path, runs=made, arms=arms), "ablations")
    assert re.search(rf"1\|arm 1\|–\|4.510\|−0.090\|{low:+.3f} … {high:+.3f}\|3".replace("+", r"\+").replace("-", "−"), shown)
    assert shown.count("arm 1|") == 1


def test_what_was_not_measured_is_lent_by_the_reference_and_said_to_be(tmp_path, monkeypatch):
    whole = synthetic_fair.folder(tmp_path / "whole", 3)
    part = synthetic_fair.folder(tmp_path / "part", 3)
    for table in ("tuning", "coordinates", "diagnosis"):
        (part / f"{table}.csv").unlink()
    monkeypatch.setattr(style, "svg", lambda name, alt, figure: "<svg></svg>")
    alone, lent = rendered(part, *build.BORROWED), rendered(part, *build.BORROWED, reference=whole)
    assert alone.count("Not measured by this run: what follows is of the committed results (whole, ") == 0
    assert lent.count("Not measured by this run: what follows is of the committed results (whole, ") == 3
    assert "Learning-rate sensitivity" in lent
    assert "Learning-rate sensitivity" not in alone
    assert rendered(whole, *build.BORROWED, reference=part) == rendered(whole, *build.BORROWED)  # what is there needs no loan
    tuned = next(run for run in schema.read(whole / "tuning.csv", "tuning").run)
    assert f"#run-{tuned}" not in lent.partition("Learning-rate sensitivity")[2].partition("Coordinate check")[0]
