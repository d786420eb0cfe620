"""The report's answer in words: every branch of its sentences, on made-up tables."""

import re

import pytest
from synthetic import row, write
from synthetic_decision import SHIFTS, latency, losses, sparsity, timed

from evals.records import schema
from reports import answer, decision, speedups
from reports.page import Results


def said(folder, runs: list[dict], **tables) -> dict[str, str]:
    return dict(answer.answer(Results(write(folder, runs=runs, **tables))))


def without(runs: list[dict], arch: str, *seeds: int, sizes=("d256",)) -> list[dict]:
    return [run for run in runs if not (run["arch"] == arch and run["seed"] in seeds and run["size"] in sizes)]


def test_the_largest_size_with_two_seeds_of_each_is_ranked(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.1, "ultramem": -0.3}, {"d256": 1}))["Loss"]
    mean = 5.0 - 2 - 0.3 + sum(SHIFTS) / 3
    found = re.match(
        r"On loss a memory layer is ahead, at this scale: lowest test loss at d_model 128 \(1 M activated and 6 M stored "
        r"parameters, 10 M tokens\): UltraMem ([\d.]+), (0\.\d+) \[(0\.\d+), (0\.\d+)\] below MoE-8 and 0\.30\d "
        r"\[.*\] below dense \(three seeds, 95 % intervals\)\. ",
        told,
    )
    assert found, told
    assert float(found[1]) == pytest.approx(mean, abs=0.005)
    assert float(found[3]) < float(found[2]) < float(found[4])
    assert told.endswith("UltraMem has the lowest mean at all four sizes (one seed of some at d256): the sizes agree.")


def test_a_runner_up_of_its_own_stands_before_the_rivals(tmp_path):
    told = said(tmp_path, losses({"moe2": -0.05, "moe8": -0.1, "pkm": -0.2, "ultramem": -0.3}))["Loss"]
    assert re.search(
        r"UltraMem \S+, 0\.\d+ \[\S+ \S+\] below PKM, 0\.\d+ \[\S+ \S+\] below MoE-8 and 0\.\d+ \[.*below dense", told
    )


def test_experts_may_lead(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.3, "ultramem": -0.1}))["Loss"]
    assert told.startswith("On loss a mixture of experts is ahead, at this scale: lowest test loss at d_model 256")
    assert re.search(r"MoE-8 \S+, 0\.[12]\d\d \[\S+ \S+\] below UltraMem and 0\.\d+ \[\S+ \S+\] below dense", told)


def test_dense_may_lead(tmp_path):
    told = said(tmp_path, losses({"moe8": 0.2, "ultramem": 0.1}))["Loss"]
    assert re.search(
        r"at d_model 256 \(.*\): dense 2\.\d+, 0\.\d+ \[.*\] below UltraMem and 0\.\d+ \[.*\] below MoE-8 \(", told
    )


def test_an_interval_with_zero_in_it_tells_nobody_apart(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.2, "ultramem": -0.201}, jitter=0.05))["Loss"]
    assert told.startswith("Memory and experts are not told apart on loss: at d_model 256")
    assert re.search(r"the lowest two, \S+ \S+ and \S+ \S+, are not told apart \(0\.\d+ \[−0\.\d+, 0\.\d+\]\); \S+ is ", told)
    assert "lowest test loss at" not in told


def test_a_rival_that_is_not_told_apart_is_said_to_be(tmp_path):
    told = said(tmp_path, losses({"moe8": 0.01, "ultramem": 0.0}, jitter=0.05))["Loss"]
    assert "not told apart from" in told


def test_one_seed_ranks_nobody_and_says_so(tmp_path):
    runs = losses({"moe8": -0.1, "pkm": -0.2, "ultramem": -0.3}, 1)
    told = said(tmp_path, runs)
    assert told["Loss"].startswith("One seed ranks nobody: at d_model 256 ")
    assert re.search(
        r"UltraMem has the lowest test loss, \S+, 0\.\d+ below PKM, 0\.\d+ below MoE-8 and .* \(one seed\)\.", told["Loss"]
    )
    assert "[" not in told["Loss"]
    assert told["Confidence"].startswith("One seed of each layer ranked, none of four sizes with all repeated; ")
    assert "paired" not in told["Confidence"]
    assert said(tmp_path, [run for run in runs if run["arch"] in ("dense", "ultramem")]) == {}


def test_who_has_one_seed_there_has_no_rank_even_with_a_lower_loss(tmp_path):
    runs = without(losses({"moe8": -0.1, "pkm": -0.5, "ultramem": -0.3}), "pkm", 1, 2)
    told = said(tmp_path, runs)["Loss"]
    assert "PKM has one seed there and no rank, although the loss of PKM is lower." in told
    assert "UltraMem" in told.partition("below")[0]
    higher = without(losses({"moe2": -0.1, "moe8": -0.1, "pkm": -0.1, "ultramem": -0.3}), "pkm", 1, 2)
    told = said(tmp_path, without(higher, "moe2", 1, 2))["Loss"]
    assert "MoE-2 and PKM have one seed there and no rank." in told


def test_sizes_that_do_not_agree_are_named_and_whether_their_lead_is_told(tmp_path):
    gaps = {"moe8": -0.1, "ultramem": -0.3}
    told = said(tmp_path, losses(gaps, d32={"moe8": -0.5}, d64={"moe8": -0.32}, jitter=0.02))["Loss"]
    assert (
        "UltraMem has the lowest mean at two of four sizes, d128 and d256, MoE-8 at d32 and d64: the sizes do not agree" in told
    )
    assert told.endswith("the sizes do not agree, and at d32 it is told apart.")
    told = said(tmp_path, losses(gaps, {"d32": 1}, d32={"moe8": -0.5}))["Loss"]
    assert told.endswith(
        "MoE-8 at d32 (one seed of some at d32): the sizes do not agree, but no other lead is told apart from it."
    )


def test_one_size_is_said_to_be_the_only_one(tmp_path):
    runs = [run for run in losses({"moe8": -0.1, "ultramem": -0.3}) if run["size"] == "d64"]
    told = said(tmp_path, runs)
    assert told["Loss"].endswith("No other size was compared.")
    assert "one of one size with all repeated" in told["Confidence"]


def test_what_the_report_does_not_know_is_not_ranked(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.1, "hybrid": -0.9, "ultramem": -0.3}))
    assert "hybrid" not in " ".join(told.values())


def chosen(folder, gaps: dict, paces: dict, **more) -> str:
    return said(folder, losses(gaps), latency=latency(paces, **more))["Decoding"]


def test_the_batch_at_which_the_best_layer_changes_is_said(tmp_path):
    told = chosen(tmp_path, {"moe8": -0.3, "ultramem": -0.1}, {"moe8": (3.0, 3.0, 1.0), "ultramem": 1.0})
    assert told.startswith(
        "At equal decode time (CPU, bf16) and 6 times as many parameters stored as activated the best layer changes with the "
        "batch: UltraMem at batch 1 to 16 and MoE-8 at batch 256; with every MoE at its roofline, the rest as measured, "
    )
    assert told.endswith("; with every layer at its roofline, UltraMem at batch 1 to 16 and MoE-8 at batch 256.")


def test_a_best_layer_that_is_the_same_everywhere_is_said(tmp_path):
    told = chosen(tmp_path, {"moe8": -0.1, "ultramem": -0.3}, {"moe8": 1.0, "ultramem": 1.0}, predicted_ms=None)
    assert "the best layer is the same at every batch that tells one apart: UltraMem at batch 1 to 256." in told
    assert "roofline" not in told


def test_batches_that_tell_nobody_apart_say_so(tmp_path):
    level = {"moe2": -0.3, "moe8": -0.301, "ultramem": -0.302}
    told = chosen(tmp_path, level, {"moe2": 1.0, "moe8": 1.0, "ultramem": (1.0, 1.0, 3.0)})
    assert "no batch tells a best layer apart: none told apart (" in told
    assert "lowest) at batch 1 to 16 and experts (MoE-2 or MoE-8) at batch 256" in told


@pytest.mark.parametrize("broken", ["three sizes", "rising", "no times"])
def test_without_a_slope_or_times_there_is_no_sentence_on_equal_time(tmp_path, broken):
    runs = losses({"moe8": -0.1, "ultramem": -0.3})
    if broken == "three sizes":
        runs = [run for run in runs if run["size"] != "d32"]
    if broken == "rising":
        runs = [run | {"test_loss": 9 - run["test_loss"]} for run in runs]
    rows = latency({"moe8": 2.0, "ultramem": 1.0}, ratio=60.0 if broken == "no times" else 6.0)
    assert "Decoding" not in said(tmp_path, runs, latency=rows)
    (missing,) = decision.chart(Results(tmp_path))
    words = {"three sizes": "dense has none", "rising": "it does not fall", "no times": "no measured decode time belongs"}
    assert missing.text.startswith("No decision chart from this run: ")
    assert words[broken] in missing.text


@pytest.mark.parametrize(
    ("few", "many", "words"),
    [
        (0.3, 0.2, "UltraMem stays ahead of MoE-8 with the tokens"),
        (-0.3, -0.2, "MoE-8 stays ahead of UltraMem with the tokens"),
        (0.3, 0.0005, "UltraMem is ahead of MoE-8 or not told apart from it, by the tokens"),
        (-0.3, 0.0005, "MoE-8 is ahead of UltraMem or not told apart from it, by the tokens"),
        (0.3, -0.3, "Which of UltraMem and MoE-8 is ahead changes with the tokens"),
        (0.0005, 0.0005, "UltraMem and MoE-8 are not told apart with the tokens"),
    ],
)
def test_budgets_of_tokens_are_compared_at_one_size(tmp_path, few, many, words):
    runs = losses({"moe8": -0.1, "ultramem": -0.3}, jitter=0.02)
    chain, arms = [], []
    for tokens, gap in ((5 * 10**6, few), (4 * 10**7, many)):
        for arch, loss in (("moe8", 3.5), ("ultramem", 3.5 - gap)):
            like = [run for run in runs if run["arch"] == arch and run["size"] == "d128"]
            for run in like:
                name = f"scaling_tokens.{arch}-{tokens}-d128-s{run['seed']}"
                chain.append(run | {"run": name, "tokens": tokens, "test_loss": loss + SHIFTS[run["seed"]]})
                arm = {"chain": "scaling_tokens", "kind": "sweep", "step": f"{arch}-{tokens}", "order": len(arms)}
                arms.append(row("arms", **arm, label=arch, set="{}", run=name))
    told = said(tmp_path, runs + chain, arms=arms)["Tokens"]
    assert told.startswith(words), told
    assert re.search(rf"at d_model 128 UltraMem is .?{abs(few):.3f} \[.*\] at 5 M and .*\] at 40 M below MoE-8\.$", told)


def test_one_budget_of_tokens_is_said_to_be_one(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.1, "ultramem": -0.3}))["Tokens"]
    assert told == "One budget of tokens was compared at each size (10 a parameter), whether more change the order is open."


def test_one_memory_size_is_said_to_be_one(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.1, "ultramem": -0.3}))["Memory size"]
    assert told.startswith("One memory size was compared (60 M parameters, 6 times the activated ones)")


@pytest.mark.parametrize(
    ("at_3", "at_18", "words"),
    [
        ({"ultramem": 3.7, "moe2": 3.9}, {"ultramem": 3.5, "moe2": 3.8}, "the best layer by loss does not change where one is"),
        ({"ultramem": 3.9, "moe2": 3.7}, {"ultramem": 3.5, "moe2": 3.8}, "the best layer by loss changes with the parameters"),
    ],
)  # fmt: skip
def test_memory_sizes_are_compared_by_loss(tmp_path, at_3, at_18, words):
    chain, arms = sparsity({3.0: at_3, 18.0: at_18})
    runs = losses({"moe2": -0.1, "moe8": -0.1, "ultramem": -0.3}) + chain
    told = said(tmp_path, runs, arms=arms)["Memory size"]
    first = "UltraMem" if at_3["ultramem"] < at_3["moe2"] else "MoE-2"
    assert told.lower().startswith(words)
    assert told.endswith(f": {first} at 3 times the activated parameters, UltraMem at 6 times the activated parameters and "
                         "UltraMem at 18 times the activated parameters.")  # fmt: skip


def test_memory_sizes_that_tell_nobody_apart_say_so(tmp_path):
    chain, arms = sparsity({3.0: {"ultramem": 3.7, "moe2": 3.7005}, 18.0: {"ultramem": 3.5, "moe2": 3.5005}})
    level = losses({"moe2": -0.3, "ultramem": -0.3005}, jitter=0.02)
    told = said(tmp_path, level + chain, arms=arms)["Memory size"]
    assert told.startswith("No memory size tells a best layer by loss apart: none (")


def test_confidence_names_seeds_sizes_device_and_distance_to_the_papers(tmp_path):
    told = said(tmp_path, losses({"moe8": -0.1, "ultramem": -0.3}, {"dense": 2}))["Confidence"]
    assert told.startswith(
        "Two to three seeds of each layer ranked, four of four sizes with all repeated; 10 k–10 M activated "
    )
    assert "parameters, 10 training tokens for each, on CPU: made up. Intervals are paired by seed and not corrected" in told
    assert re.search(r"The papers' smallest model is 1[45] times larger: this says what happens here, not there\.$", told)
    large = [run | {"active_params": 10**4 * run["active_params"]} for run in losses({"moe8": -0.1, "ultramem": -0.3})]
    assert "papers" not in said(tmp_path, large)["Confidence"]


def stepped(arch: str, batch: int, ms: float, predicted: float | None) -> dict:
    return timed(arch, batch, ms, p20_ms=0.9 * ms, p80_ms=1.1 * ms, predicted_ms=predicted)


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
    times = [stepped("ultramem", batch, 2.0, 1.5) for batch in (1, 16)]
    times += [stepped("moe2", 1, 2.2, 2.0), stepped("moe2", 16, moe, roofline)]
    sentence = said(tmp_path, losses({"moe2": -0.1, "ultramem": -0.3}, 1), latency=times)["Time of a step"]
    assert words in sentence
    assert f"at batch 16 MoE-2 takes {moe / 2:.1f}x [{0.9 * moe / 2.2:.1f}, {1.1 * moe / 1.8:.1f}] as long" in sentence
    assert (f", {roofline / 2:.1f}x even if it ran at its roofline" if roofline else "and reads") in sentence
    assert f"and reads {moe / 2:.1f}x the bytes" in sentence


def test_what_holds_only_against_our_moe_is_said(tmp_path):
    frame = schema.read(
        write(tmp_path, latency=[stepped("ultramem", 16, 2.0, 1.5), stepped("moe2", 16, 8.0, 1.0)]) / "latency.csv", "latency"
    )
    (pair,) = speedups.speedups(frame).itertuples()
    assert (pair.value, pair.conservative) == (4.0, 0.5)
    assert speedups.reading(pair) == "holds against our MoE only"
