"""What the report says of fairness: its answer, the placebos, sensitivity, coordinates, anomalies, slopes, conventions."""

import html
import re

import pytest
import synthetic_fair
from scipy import stats as distributions
from synthetic import grid_run, row, write

from evals.records import schema
from reports import answer, build, placebos, scaling, sections, speedups, style
from reports.page import Results, Text


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return synthetic_fair.folder(tmp_path_factory.mktemp("three") / "synthetic", seeds=3)


@pytest.fixture
def drawn(monkeypatch):
    """One section of a page, as text with its tables' cells apart by bars, no picture laid out."""
    monkeypatch.setattr(style, "svg", lambda name, alt, figure: f'<svg aria-label="{html.escape(alt)}"></svg>')

    def draw(folder, name: str) -> str:
        monkeypatch.setattr(build, "SECTIONS", [one for one in sections.SECTIONS if one[0] == name])
        page = build.render(folder).split(f'<section id="{name}"')[1].split("</section>")[0]
        page = re.sub(r"</t[dh]>", "|", re.sub(r"</tr>", "\n", page.replace("\n", " ")))
        return html.unescape(re.sub("<[^>]*>", "", page))

    return draw


def runs(losses: dict[str, list[float]]) -> list[dict]:
    """Test losses by architecture, seed by seed; the validation loss would rank them the other way round."""
    return [
        grid_run(arch, seed=seed, val_loss=9 - loss, test_loss=loss, test_bpb=1.0)
        for arch, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]


def said(folder, losses: dict[str, list[float]], **tables) -> list[str]:
    return list(answer.answer(Results(write(folder, runs=runs(losses), **tables))))


def test_the_answer_is_the_paired_difference_with_its_interval(tmp_path):
    losses = {"dense": [4.5, 4.6, 4.4], "moe2": [4.3, 4.45, 4.2], "moe8": [4.4, 4.5, 4.3], "ultramem": [4.2, 4.33, 4.11]}
    (sentence,) = said(tmp_path, losses)
    gaps = [one - other for one, other in zip(losses["moe2"], losses["ultramem"], strict=True)]
    low, high = distributions.ttest_1samp(gaps, 0).confidence_interval()
    assert f"{sum(gaps) / 3:.3f} [{low:.3f}, {high:.3f}] nats below MoE-2, the best MoE here," in sentence
    assert sentence.startswith("Yes on loss, at this scale: at equal compute and stored parameters UltraMem has the lowest")
    assert "at d_model 64" in sentence
    assert sentence.endswith("(three seeds, 95 % interval).")


@pytest.mark.parametrize(
    ("memory", "words"),
    [([4.2, 4.5, 4.1], "Not told apart on loss"), ([4.5, 4.65, 4.41], "No on loss, at this scale")],
    ids=["level", "worse"],
)
def test_the_answer_may_be_no_or_undecided(tmp_path, memory, words):
    (sentence,) = said(tmp_path, {"dense": [4.9, 4.9, 4.9], "moe8": [4.3, 4.45, 4.2], "ultramem": memory})
    assert sentence.startswith(words)
    assert ("at none of one size compared" in sentence) == (words == "No on loss, at this scale")


def test_one_seed_gives_no_interval_and_says_so(tmp_path):
    (sentence,) = said(tmp_path, {"dense": [4.5], "moe8": [4.4], "pkm": [4.3], "ultramem": [4.2]})
    assert "0.200 nats below MoE-8" in sentence
    assert "the best of two memory layers" in sentence
    assert "(one seed, so no interval and no ranking)" in sentence
    assert said(tmp_path, {"dense": [4.5], "ultramem": [4.2]}) == []


def timed(arch: str, batch: int, ms: float, predicted: float | None) -> dict:
    made = {"arch": arch, "batch": batch, "p20_ms": 0.9 * ms, "p50_ms": ms, "p80_ms": 1.1 * ms, "predicted_ms": predicted}
    same = {"phase": "decode", "part": "model", "kind": "measured", "device": "CPU: made up", "sparse_ratio": 12.0}
    return row("latency", **(same | {"run": "", "bytes_counted": 1e6 * ms, "threads": 1} | made))


@pytest.mark.parametrize(
    ("moe", "roofline", "words"),
    [
        (8.0, 5.0, "UltraMem decodes faster than a mixture of experts with as many parameters"),
        (8.0, 1.0, "which shows nothing of a perfect one"),
        (8.0, None, "which shows nothing of a perfect one"),
        (1.5, 1.4, "UltraMem does not decode faster"),
    ],
)
def test_the_answer_holds_a_measured_and_a_conservative_ratio(tmp_path, moe, roofline, words):
    times = [timed("ultramem", batch, 2.0, 1.5) for batch in (1, 16)]
    times += [timed("moe2", 1, 2.2, 2.0), timed("moe2", 16, moe, roofline)]
    losses = {"dense": [4.5], "moe2": [4.4], "ultramem": [4.2]}
    _, sentence = said(tmp_path, losses, latency=times)
    assert words in sentence
    assert f"at batch 16 MoE-2 takes {moe / 2:.1f}x [{0.9 * moe / 2.2:.1f}, {1.1 * moe / 1.8:.1f}] as long" in sentence
    assert (f", {roofline / 2:.1f}x even if it ran at its roofline" if roofline else "and reads") in sentence
    assert f"and reads {moe / 2:.1f}x the bytes" in sentence


def test_what_holds_only_against_our_moe_is_said(tmp_path):
    frame = schema.read(
        write(tmp_path, latency=[timed("ultramem", 16, 2.0, 1.5), timed("moe2", 16, 8.0, 1.0)]) / "latency.csv", "latency"
    )
    (pair,) = speedups.speedups(frame).itertuples()
    assert (pair.value, pair.conservative) == (4.0, 0.5)
    assert speedups.reading(pair) == "holds against our MoE only"


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
    assert "the check holds" in drawn(write(tmp_path, coordinates=good, runs=runs({"dense": [4.5]})), "coordinates")
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
    alone, lent = build.render(part), build.render(part, reference=whole)
    assert alone.count("Not measured by this run: what follows is of the committed results (whole, ") == 0
    assert lent.count("Not measured by this run: what follows is of the committed results (whole, ") == 3
    assert "Learning-rate sensitivity" in lent
    assert "Learning-rate sensitivity" not in alone
    assert build.render(whole, reference=part) == build.render(whole)  # what is there needs no loan
    tuned = next(run for run in schema.read(whole / "tuning.csv", "tuning").run)
    assert f"#run-{tuned}" not in lent.partition("Learning-rate sensitivity")[2].partition("Coordinate check")[0]
