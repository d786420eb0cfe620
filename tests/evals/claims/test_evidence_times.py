"""Times as evidence: which steps are compared, and what a perfect mixture of experts would take beside them."""

import math

import pytest
from synthetic import grid_run, row, write

from evals.claims.evidence import NotTested, Results, times
from evals.records import schema


def timing(arch, batch, p50, sparse_ratio=12.0, **values):
    times = {"p20_ms": 0.9 * p50, "p50_ms": p50, "p80_ms": 1.1 * p50, "n_iters": 20, "bytes_declared": 1e9}
    how = {"phase": "decode", "part": "model", "kind": "measured", "device": "CPU: made up", "kv": "mha", "size": "s"}
    same = {"arch": arch, "batch": batch, "sparse_ratio": sparse_ratio, "dtype": "fp32", "threads": 1, "run": ""}
    return row("latency", **(times | how | same | {"predicted_ms": 0.8 * p50} | values))


def test_latency_is_compared_on_one_device_at_one_batch(tmp_path):
    rows = [timing("moe2", b, p) for b, p in ((1, 1.0), (16, 5.0), (1024, 9.0))]
    rows += [timing("ultramem", b, p) for b, p in ((1, 1.0), (16, 1.0), (1024, 9.0))]
    rows = [timing("ultramem", 16, 0.1, variant="overlap"), timing("ultramem", 16, 0.1, variant="folded"), *rows]
    modelled = [timing("moe2", 16, 99.0, kind="modelled", device="CUDA: A100")]
    schema.write(tmp_path / "latency_modelled.csv", "latency", modelled)
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    assert len(results.table("latency")) == len(rows) + 1
    found = times.latency_ratio(results, "moe2", "ultramem")
    assert (found.value, found.low) == (pytest.approx(5), pytest.approx(5 * 0.9 / 1.1))
    assert "at 16" in found.note
    assert found.scale == "size s, whole model, fp32, 1 thread(s), CPU: made up"
    assert times.latency_ratio(results, "moe2", "ultramem", [1, 1]).value == pytest.approx(1)
    with pytest.raises(NotTested, match="no measured decode step of dense"):
        times.latency_ratio(results, "moe2", "dense")
    with pytest.raises(NotTested, match="not measured at a shared batch"):
        times.latency_ratio(results, "moe2", "ultramem", [64, 64])
    write(tmp_path, latency=[entry | {"bytes_declared": 2e6} for entry in rows])
    with pytest.raises(NotTested, match="read at most 2 MB a step, which a cache holds"):
        times.latency_ratio(Results(tmp_path), "moe2", "ultramem")


def test_latency_is_that_of_bf16_and_fp32_stands_beside(tmp_path):
    rows = [
        timing(a, 16, p, bytes_declared=2e9, predicted_ms=2.0) for a, p in (("moe2", 8.0), ("ultramem", 1.0), ("dense", 1.0))
    ]
    rows += [timing(a, 16, p, dtype="bf16", predicted_ms=1.5) for a, p in (("moe2", 3.0), ("ultramem", 1.0))]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    found = times.latency_ratio(results, "moe2", "ultramem")
    assert (found.value, found.conservative.value) == (pytest.approx(3), pytest.approx(1.5))
    assert "bf16" in found.scale
    assert found.note.endswith("fp32: 8 (conservative 2)")
    with pytest.raises(NotTested, match="no measured decode step of dense"):
        times.latency_ratio(results, "moe2", "dense")


def test_a_slow_mixture_of_experts_is_never_withheld_and_never_alone(tmp_path):
    steps = {1: (3.0, 2.9), 16: (50.0, 10.0), 64: (8.0, None)}
    rows = [timing("moe2", b, p, predicted_ms=predicted) for b, (p, predicted) in steps.items()]
    rows += [timing(arch, b, 1.0, predicted_ms=0.1) for arch in ("ultramem", "dense") for b in steps]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    for against in ("ultramem", "dense"):
        found = times.latency_ratio(results, "moe2", against)
        assert found.value == pytest.approx(50)
        assert "moe2 takes 5.00 times its own roofline" in found.note
        safe = found.conservative
        assert (safe.value, safe.low, safe.high) == (pytest.approx(10), pytest.approx(10 / 1.1), pytest.approx(10 / 0.9))
    assert times.latency_ratio(results, "ultramem", "dense").conservative is None
    unknown = times.latency_ratio(results, "moe2", "ultramem", [64, 64])
    assert math.isnan(unknown.conservative.value)
    assert "the roofline of moe2 is unknown" in unknown.note


def test_latency_growth_with_the_sparse_ratio(tmp_path):
    rows = [timing(arch, 256, p, r) for arch, p, r in (("moe2", 2, 4), ("moe2", 8, 64), ("ultramem", 1, 4))]
    rows[1]["predicted_ms"] = 3.2
    rows += [timing("ultramem", 256, 1.1, 64)]
    rows = [entry | {"part": "ffn", "kv": "none"} for entry in rows] + [timing("moe2", 256, 3.0)]
    results = Results(write(tmp_path, runs=[grid_run("a")], latency=rows))
    alone, beside = times.latency_growth(results, "moe2"), times.latency_growth(results, "moe2", against="ultramem")
    assert (alone.value, alone.conservative.value) == (pytest.approx(4), pytest.approx(2))
    assert (beside.value, beside.conservative.value) == (pytest.approx(4 / 1.1), pytest.approx(2 / 1.1))
    assert beside.conservative.low == pytest.approx(2 / 1.1 * 0.9 / 1.1)
    assert times.latency_growth(results, "ultramem").conservative is None


def test_speedups_hold_both_ratios_of_each_pair(tmp_path):
    rows = [timing("moe2", 16, 8.0, predicted_ms=2.0), timing("moe2", 64, 4.0, predicted_ms=None)]
    rows += [timing("ultramem", b, 1.0, 12.5) for b in (16, 64)] + [timing("ultramem", 16, 1.0, 30.0), timing("dense", 16, 1.0)]
    write(tmp_path, latency=rows)
    found = times.speedups(schema.read(tmp_path / "latency.csv", "latency")).set_index("batch")
    assert list(found.index) == [16, 64]
    assert found.loc[16, ["value", "low", "high"]].tolist() == pytest.approx([8, 7.2 / 1.1, 8.8 / 0.9])
    assert found.loc[16, ["conservative", "conservative_low", "conservative_high", "distance"]].tolist() == pytest.approx(
        [2, 2 / 1.1, 2 / 0.9, 4]
    )
    assert found.loc[64, "value"] == pytest.approx(4)
    assert math.isnan(found.loc[64, "conservative"])
    assert (found.arch_moe == "moe2").all()
