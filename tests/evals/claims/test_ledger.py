"""The ledger against its sources: every claim, what each names, which share a measurement, what is refused."""

import re
from fnmatch import fnmatch

import numpy as np
import pytest
from made_up_claims import LEDGER, claim

from evals.claims import ledger as claims
from evals.records.errors import UserError
from evals.scores import harness
from workflows import health
from workflows.chains import load_chains
from workflows.matched import match_size
from workflows.presets import load_preset


def test_shared_tests_share_their_measurement():
    by_id = {entry.id: entry for entry in LEDGER.claims}
    shared = {entry.id: entry.test for entry in LEDGER.claims if entry.test}
    assert {"B13a": "12a", "26c": "12b", "B11a": "16a", "B11b": "16b", "B11c": "16c", "B2": "6c"}.items() <= shared.items()
    for name, test in shared.items():
        one, other = by_id[name], by_id[test]
        assert (one.metric, one.kind) == (other.metric, other.kind)
        if "weights" in one.args:  # perhaps of the other sign
            assert one.args["weights"].keys() == other.args["weights"].keys()
        else:
            assert one.args == other.args
    measured = [(e.metric, str(e.args)) for e in LEDGER.claims if e.metric and not e.test]
    assert len(set(measured)) == len(measured)


def test_no_interval_is_assumed():
    assert "floor" not in claims.CLAIMS.read_text()
    assert {e.id for e in LEDGER.claims if e.kind == "arithmetic"} >= {"7a", "7b", "B6", "B13b"}
    latency = [e for e in LEDGER.claims if e.metric in ("latency_ratio", "latency_growth")]
    assert {e.kind for e in latency} == {"measured"}
    assert {e.kind for e in LEDGER.claims if str(e.metric).startswith("modelled")} == {"modelled"}


def test_the_ledger_holds_every_claim_of_the_spec():
    numbers = {re.match(r"[BO]?\d+", entry.id).group() for entry in LEDGER.claims}
    assert numbers == {str(i) for i in range(1, 27)} | {f"B{i}" for i in range(1, 14)} | {"O1"}
    letters = {"B": {"blog"}, "O": {"other"}}
    assert all(entry.paper in letters.get(entry.id[0], {"P1", "P2"}) for entry in LEDGER.claims)


def arms_of(args):
    return [*args.get("weights", ()), *args.get("arms", ()), *(args[key] for key in ("arm", "of", "against") if key in args)]


def test_every_arm_that_a_claim_names_is_in_its_chain():
    chains = load_chains()
    for entry in LEDGER.claims:
        if "chain" not in entry.args:
            continue
        chain = chains[entry.args["chain"]]
        steps = [chain.base, *chain.steps]
        if entry.metric.startswith("law"):  # names architectures
            known = {step.arch or chain.base.arch for step in steps}
            names = [entry.args[key] for key in ("arch", "of", "against") if key in entry.args]
        else:
            known = {name for step in steps for name in (step.id, step.label)}
            names = [LEDGER.aliases.get(entry.args["chain"], {}).get(name, name) for name in arms_of(entry.args)]
        assert names, entry.id
        assert set(names) <= known, entry.id


def test_every_health_metric_that_a_claim_names_is_written():
    preset = load_preset("smoke")
    models = match_size(preset, "xs").models
    for entry in LEDGER.claims:
        if entry.metric in ("health", "health_growth"):
            model = models[entry.args.get("arch", "ultramem")].build()
            model.refresh()
            rows = health.measure(model, np.zeros(256, dtype=np.uint16), 256, "cpu")
            assert entry.args["name"] in {found["metric"] for found in rows}, entry.id


def test_every_architecture_and_task_that_a_claim_names_exists():
    archs = {*load_preset("cpu").archs, "memory_plus"}  # the last is in no grid, which its claim then says
    tasks = [name for suite in harness.SUITES.values() for name in suite]
    for entry in LEDGER.claims:
        if "chain" not in entry.args and entry.metric != "published_params_ratio":
            assert {entry.args[key] for key in ("arch", "of", "against") if key in entry.args} <= archs, entry.id
        for task in entry.args.get("tasks", ()):
            assert any(fnmatch(name, task) for name in tasks), (entry.id, task)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "no_such"}, "names metric 'no_such'"),
        ({"args": {"off": "a", "against": "b"}}, "does not fit its metric"),
        ({"direction": "up"}, "has direction 'up'"),
        ({"direction": "within"}, "needs a band"),
        ({"metric": None}, "neither a metric nor a reason"),
        ({"kind": "guessed"}, "has kind 'guessed'"),
        ({"readings": {"as if": {"off": "a"}}}, "does not fit its metric"),
    ],
)
def test_a_wrong_claim_is_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        claim(**fields)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  tolerance: 0.042", "  tolerence: 0.042", "claim 1 has tolerence; allowed"),
        ('id: "2a"', 'id: "1"', "claim 1 more than once"),
        ('test: "12a"', 'test: "99"', "claim B13a names '99', which is not one of 1, 2a"),
        ('test: "12a"', 'test: "6a"', "claim B13a cannot share the test of 6a, which has another metric"),
    ],
)
def test_a_misspelt_field_a_repeated_id_or_a_stray_test_is_refused(tmp_path, old, new, words):
    (tmp_path / "claims.yaml").write_text(claims.CLAIMS.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        claims.load(tmp_path / "claims.yaml")
