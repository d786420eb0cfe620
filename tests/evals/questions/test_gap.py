"""The gap to MoE-8 as tokens grow: slope, crossing and what would make sure, on made-up runs whose answer is known."""

import math

import pytest
from synthetic_questions import BUDGETS, folder_of, token_chain

from evals.claims.evidence import Results, laws
from evals.questions import gap


def asked(path, law, arch="ultramem", **how):
    rows = gap.answers(Results(folder_of(path, token_chain(law, **how))))
    return {answer.quantity: answer for answer in rows if answer.arch == arch and answer.quantity != "gap"}, rows


def line(start, slope):
    """A gap of `start` at 10**6 tokens."""
    return lambda arch, tokens: start + slope * math.log10(tokens / 1e6)


def test_a_closing_gap_has_its_slope_and_its_crossing(tmp_path):
    found, rows = asked(tmp_path, line(0.1, -0.1))
    slope, crossing = found["slope"], found["crossing"]
    assert slope.value == pytest.approx(-0.1, abs=0.01)
    assert slope.ci_low < -0.1 < slope.ci_high < 0
    assert (slope.state, slope.n, slope.n_needed) == ("answered", 3, None)
    assert "a straight line fits" in slope.reason
    assert crossing.ci_low < 10**7 < crossing.ci_high
    assert crossing.value == pytest.approx(10**7, rel=0.3)
    assert "factor of tokens" not in found
    at = [answer for answer in rows if answer.quantity == "gap" and answer.arch == "ultramem"]
    assert [answer.at for answer in at] == list(BUDGETS)
    assert at[-1].value == pytest.approx(0.1 - 0.1 * math.log10(4), abs=0.02)


def test_the_slope_is_the_ledgers(tmp_path):
    found, _ = asked(tmp_path, line(0.1, -0.03), noise=0.02)
    ruled = laws.law_slope_gap(Results(tmp_path), "scaling_tokens", "ultramem", "moe8", "tokens")
    slope = found["slope"]
    assert (slope.value, slope.ci_low, slope.ci_high) == (
        pytest.approx(-ruled.value),
        pytest.approx(-ruled.high),
        pytest.approx(-ruled.low),
    )


@pytest.mark.parametrize(
    ("start", "slope", "reason"), [(-0.2, -0.1, "already below"), (0.1, 0.1, "none: the gap grows")], ids=["below", "grows"]
)
def test_no_crossing_says_why(tmp_path, start, slope, reason):
    found, _ = asked(tmp_path, line(start, slope))
    crossing = found["crossing"]
    assert (crossing.value, crossing.state, crossing.reason) == (None, "answered", reason)


def test_an_undecided_slope_says_what_would_decide(tmp_path):
    found, _ = asked(tmp_path, line(0.1, 0.0), noise=0.05)
    slope, crossing, factor = (found[name] for name in ("slope", "crossing", "factor of tokens"))
    assert slope.ci_low < 0 < slope.ci_high
    assert (slope.state, crossing.state) == ("underpowered", "underpowered")
    assert slope.n_needed > 3
    # With one more budget at that factor the interval would just leave zero out.
    tokens = [*BUDGETS, factor.value * BUDGETS[-1]]
    x = [math.log10(t) for t in tokens]
    mean = sum(x) / len(x)
    old = [math.log10(t) for t in BUDGETS]
    before = sum((v - sum(old) / len(old)) ** 2 for v in old)
    after = sum((v - mean) ** 2 for v in x)
    half = (slope.ci_high - slope.ci_low) / 2
    assert half * math.sqrt(before / after) == pytest.approx(abs(slope.value))


def test_a_bent_gap_is_said_to_be(tmp_path):
    found, _ = asked(tmp_path, lambda arch, tokens: 0.1 + 0.2 * math.log10(tokens / 1e6) ** 2 - 0.05 * math.log10(tokens))
    assert "a straight line does not fit" in found["slope"].reason


def test_one_seed_rules_neither_way(tmp_path):
    found, _ = asked(tmp_path, line(0.1, -0.1), seeds=1)
    assert {answer.state for answer in found.values()} == {"underpowered"}
    assert found["slope"].reason == "no seed was repeated"
    assert found["crossing"].value is None


def test_missing_runs_are_not_tested(tmp_path):
    found, rows = asked(tmp_path, line(0.1, -0.1), budgets=BUDGETS[2:4])
    assert {row.state for row in rows} == {"not tested"}
    assert "2 budgets of tokens have ultramem and moe8, a slope needs 3" in found["slope"].reason
