"""The access counter against P1 figure 1c and Monte Carlo; the roofline against a table worked out independently."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from repository import ROOT

from evals.access import declared as access
from evals.decode import modelled, roofline, statements
from evals.records import schema
from evals.records.errors import UserError
from models.cost import Cost, Part, dense

DEVICES, LAUNCHES = roofline.load()
P1 = access.p1("ultramem", "1.6B")

GOLDEN_A100 = {
    "mha": {1: 1.09, 4: 2.03, 16: 2.80, 64: 1.99, 256: 1.25, 1024: 1.03, 4096: 1.00, 65536: 1.00},
    "gqa": {1: 1.10, 4: 2.58, 16: 5.56, 64: 5.55, 256: 2.42, 1024: 1.20, 4096: 1.01, 65536: 1.02},
    "none": {1: 1.10, 4: 2.51, 16: 6.15, 64: 9.28, 256: 4.86, 1024: 1.58, 4096: 1.03, 65536: 1.05},
}
GOLDEN_TO_DENSE = {1: 1.06, 4: 1.06, 16: 1.07, 64: 1.08, 256: 1.08, 1024: 1.07, 4096: 1.06, 65536: 1.05}
GOLDEN_BATCH_1_MS = {"A100": (2.81, 3.22, 2.97), "H100": (1.96, 2.31, 2.10)}


def ms(arch, batch, kv="mha", gpu="A100", **how):
    return 1e3 * roofline.decode(access.p1(arch, "1.6B"), DEVICES[gpu], LAUNCHES, batch, kv, **how).seconds


def test_figure_1c_comes_out_of_the_configs(capsys):
    access.main(["--figure-1c"])
    assert capsys.readouterr().out == "18.1 18.8 17.3 13.0\n"


def test_figure_1c_has_no_second_reading():
    for routing, size in (("uniform", "1.6B"), ("worst", "680M"), ("worst", "151M")):
        assert access.figure_1c(size=size, routing=routing) != pytest.approx([18.1, 18.8, 17.3, 13.0], abs=0.06)
    assert access.figure_1c((1, 4, 16, 64), routing="uniform") == pytest.approx([1.14, 4.2, 11.95, 18.4], abs=0.05)


def test_bytes_meet_at_131072_only_if_repeats_are_read_once():
    assert access.figure_1c((131_072,), routing="uniform")[0] == pytest.approx(1.035, abs=5e-3)
    meeting = next(b for b in range(16, 200_000, 16) if access.figure_1c((b,))[0] < 1.01)
    assert 37_000 < meeting < 39_000


def test_published_sizes_close():
    published = {
        ("dense", "151M"): (0.15, 0.30),
        ("dense", "680M"): (0.68, 1.36),
        ("dense", "1.6B"): (1.61, 3.21),
        ("dense", "6.5B"): (6.44, 12.88),
        ("moe2", "151M"): (2.04, 0.35),
        ("moe2", "680M"): (8.95, 1.51),
        ("moe2", "1.6B"): (21.36, 3.52),
    }
    for (arch, size), (params, flops) in published.items():
        cost = access.p1(arch, size).cost()
        assert (cost.params / 1e9, cost.flops / 1e9) == (
            pytest.approx(params, abs=6e-3),
            pytest.approx(flops, abs=0.02),
        )
    for size, params in (("151M", 2.03), ("680M", 8.93), ("1.6B", 21.41)):
        assert access.p1("ultramem", size).cost().params / 1e9 == pytest.approx(params, rel=0.01)
    for arch in ("moe8", "ultramem_v2"):
        cost = access.v2(arch).cost()
        assert (cost.params, cost.active_params) == (pytest.approx(120e9, rel=1e-3), pytest.approx(2.5e9, rel=1e-3))


@pytest.mark.parametrize("exponent", [0.25, 1.0])
def test_zipf_routing_agrees_with_drawing(exponent):
    rng = np.random.default_rng(0)
    weight = np.arange(1, 35.0) ** -exponent
    hit = np.minimum(1, 2 * weight / weight.sum())
    drawn = (rng.random((4000, 16, 34)) < hit).any(axis=1).sum(axis=1).mean()
    assert access.touched_zipf(34, 2, 16, exponent) == pytest.approx(drawn, rel=0.01)


def test_zipf_with_no_skew_is_uniform():
    part = Part("values", "table", 1000, 8, 20)
    assert access.touched_zipf(1000, 20, 64, 0.0) == pytest.approx(part.rows_read(64))
    assert access.rows_read(dense("w", "ffn", 5), 9, "zipf") == 1


def test_declared_rows_fit_the_schema_and_the_formula(tmp_path):
    cost = Cost((dense("ffn", "ffn", 100), Part("values", "table", 50, 10, 4)))
    view = access.View("model", cost, "mha", 7, cache=20.0)
    rows = list(access.declared("ultramem-tiny-s0", "ultramem", "tiny", view, (1, 100), "fp32"))
    schema.write(tmp_path / "access.csv", "access", rows)
    table = schema.read(tmp_path / "access.csv", "access").set_index(["batch", "routing"])
    assert table.loc[(1, "worst"), "bytes"] == 4 * (100 + 40) + 20
    assert table.loc[(100, "worst"), "bytes"] == 4 * (100 + 500) + 2000
    assert table.loc[(100, "zipf"), "rows_unique"] < 50
    assert table.loc[(100, "zipf"), "rows_read"] == 400
    assert set(table.kv) == {"mha"}
    assert set(table.context) == {7}


def test_views_of_a_published_model_add_attention_and_cache():
    views = access.p1("dense", "1.6B").views(context=10)
    weights = {(v.part, v.kv): v.cost.params for v in views}
    assert weights[("model", "mha")] - weights[("ffn", "none")] == 32 * 4 * 2048**2
    assert weights[("model", "mha")] - weights[("model", "gqa")] == pytest.approx(32 * 2 * 7 / 8 * 2048**2)
    assert [(v.context, v.cache) for v in views] == [(0, 0), (0, 0), (10, 2 * 2 * 10 * 2048 * 32), (10, 2 * 2 * 10 * 256 * 32)]


@pytest.mark.parametrize("kv", ["mha", "gqa", "none"])
def test_golden_ratio_to_moe(kv):
    ours = {batch: ms("moe2", batch, kv) / ms("ultramem", batch, kv) for batch in GOLDEN_A100[kv]}
    assert ours == pytest.approx(GOLDEN_A100[kv], abs=6e-3)


def test_golden_ratio_to_dense_and_batch_1():
    ours = {b: ms("ultramem", b, "none") / ms("dense", b, "none") for b in GOLDEN_TO_DENSE}
    assert ours == pytest.approx(GOLDEN_TO_DENSE, abs=6e-3)
    for gpu, golden in GOLDEN_BATCH_1_MS.items():
        assert [ms(a, 1, gpu=gpu) for a in ("dense", "moe2", "ultramem")] == pytest.approx(golden, abs=6e-3)


def test_golden_batch_1_of_a_badly_run_moe():
    moe, slow = access.p1("moe2", "1.6B"), replace(DEVICES["A100"], launch_s=1e-5)
    loop = roofline.decode(moe, slow, LAUNCHES, 1, experts="loop").seconds
    assert (1e3 * loop, ms("moe2", 1, experts="all")) == (pytest.approx(7.8, abs=0.1), pytest.approx(25.8, abs=0.2))


def test_a_step_is_the_slower_of_bytes_and_flops():
    device = roofline.Device(name="ours", bandwidth=1e9, flops=1e10, memory=1e9, launch_s=0.5)
    parts = [Part("values", "table", 1000, 10, 5)] * 2
    few, many = (roofline.step(parts, device, {"values": 1}, batch, itemsize=4) for batch in (1, 10_000))
    assert few.seconds == pytest.approx(2 * (4 * 50 / 1e9 + 0.5))
    assert few.bytes_bound_s == pytest.approx(4e-7)
    assert many.seconds == pytest.approx(2 * (2 * 50 * 10_000 / 1e10 + 0.5))
    assert many.bytes_bound_share == 0
    assert many.bytes == pytest.approx(2 * 4 * 10_000)


def test_h100_is_faster_and_h200_faster_still():
    assert ms("moe2", 64) > ms("moe2", 64, gpu="H100") > ms("moe2", 64, gpu="H200")


def test_rows_are_labelled_modelled_and_fit_the_schema(tmp_path):
    schema.write(tmp_path / "latency.csv", "latency", modelled.rows(DEVICES, LAUNCHES, (1, 64)))
    table = schema.read(tmp_path / "latency.csv", "latency")
    assert set(table.kind) == {"modelled"}
    assert (table.run == "").all()
    assert table.n_iters.isna().all()
    one = table[(table.arch == "moe2") & (table["size"] == "1.6B") & (table.batch == 64) & (table.kv == "mha")]
    assert one[one.device.str.contains("A100")].p50_ms.item() == pytest.approx(ms("moe2", 64))


def test_a_folded_record_is_a_vector_of_d_model_per_core():
    plain, folded = (m.slots.only("table").parts[0] for m in (P1, access.folded(P1)))
    assert (folded.rows, folded.width, folded.reads) == (4 * plain.rows, 2 * 2048, plain.reads)
    assert access.folded(P1).cost().params - P1.cost().params == 6 * (16 * plain.params - plain.params - 1024 * 2048)


def test_folding_loses_once_values_outweigh_the_projections():
    whole = access.p1("ultramem", "1.6B", expansion=4)
    few, many = (
        [roofline.VARIANTS[v](whole, DEVICES["A100"], LAUNCHES, b).seconds for v in ("folded", "plain")] for b in (1, 256)
    )
    assert few[0] < few[1]
    assert many[0] > many[1]


@pytest.mark.parametrize("part", ["model", "ffn"])
def test_overlap_hides_launches_but_moves_every_byte(part):
    device = replace(DEVICES["A100"], launch_s=0.0)
    for batch in (1, 64, 4096):
        plain, beside = (roofline.VARIANTS[v](P1, device, LAUNCHES, batch, part=part) for v in ("plain", "overlap"))
        assert beside.bytes == plain.bytes
        assert beside.seconds <= plain.seconds
        if plain.bytes_bound_share == 1:
            assert beside.seconds == pytest.approx(plain.seconds)
    slow = replace(DEVICES["A100"], launch_s=1.0)
    plain, beside = (roofline.VARIANTS[v](P1, slow, LAUNCHES, 1, part=part) for v in ("plain", "overlap"))
    assert plain.seconds - beside.seconds == pytest.approx(6 * (3 + 1 + 3), rel=1e-3)


def test_rows_hold_both_tricks_of_ultramem_and_of_nothing_else(tmp_path):
    schema.write(tmp_path / "latency.csv", "latency", modelled.rows(DEVICES, LAUNCHES, (16,)))
    table = schema.read(tmp_path / "latency.csv", "latency")
    assert set(table[table.variant != "plain"].arch) == {"ultramem"}
    one = table[
        (table["size"] == "151M") & (table.arch == "ultramem") & (table.kv == "gqa") & table.device.str.contains("H100")
    ]
    assert sorted(one.variant) == ["folded", "overlap", "plain"]
    assert one.sparse_ratio.nunique() == 1
    assert one.p50_ms.nunique() == 3


VERDICTS = {
    "B1": "modelled against",
    "B2, claim 6": "holds only with small KV traffic",
    "B3": "holds",
    "claim 8, B9": "holds",
    "S4": "modelled against",
}


def test_statements_are_ruled_on_by_cache(tmp_path, capsys):
    rows = statements.statements(DEVICES["A100"], LAUNCHES)
    assert {row["id"]: row["verdict"] for row in rows if row["id"] in VERDICTS} == VERDICTS
    assert "1.09x" in next(row for row in rows if row["id"] == "B1")["modelled"]
    small = replace(DEVICES["A100"], memory=1e15, bandwidth=2e11)
    changed = {row["id"]: row["verdict"] for row in statements.statements(small, LAUNCHES)}
    assert changed["P1 figure 1b"] == "holds"
    modelled.main(["--statements", str(tmp_path / "deep" / "statements.csv")])
    written = schema.read(tmp_path / "deep" / "statements.csv", "statements")
    assert len(written) == 3 * len(rows)
    text = capsys.readouterr().out
    for words in ("2.039 TB/s x 0.85", "launch 2.5 us", "moe2 1.6B: 32 x 2048, 21.36 B", "B1: ", "B2, ", "1.09x"):
        assert words in text


def test_a_broken_device_file_is_one_sentence(tmp_path):
    (tmp_path / "gpus.yaml").write_text("devices: {X: {bandwith: 3}}")
    with pytest.raises(UserError, match=r"gpus\.yaml is not a table of devices"):
        roofline.load(tmp_path / "gpus.yaml")


def test_modelled_rows_do_not_depend_on_the_order_of_hashes():
    """Sums of floats in the order of a set would differ from run to run in the last bit."""
    code = "from evals.decode import modelled, roofline; d, l = roofline.load(); print(list(modelled.rows(d, l, (1, 4))))"
    seen = set()
    for seed in ("1", "2", "3"):
        how = {"cwd": ROOT, "env": os.environ | {"PYTHONHASHSEED": seed}, "capture_output": True, "check": True}
        seen.add(subprocess.run([sys.executable, "-c", code], **how).stdout)
    assert len(seen) == 1
