"""The decode benchmark on tiny models: what is timed, counted, predicted and refused. No test looks at how long a step took."""

from dataclasses import replace

import pytest
import torch

import evals.decode.latency as latency
from evals.access.counted import recorded
from evals.access.declared import FEED_FORWARD
from evals.decode.latency import Plan, time_batch
from evals.decode.machine import Machine
from evals.decode.roofline import estimate
from evals.decode.settings import Latency
from evals.decode.steps import Entry, Step, asked, build, foldable, load, slots_only, step_of
from evals.decode.timers import timer
from evals.records import schema
from evals.records.errors import UserError
from models import arch_config
from models.transformer import ModelConfig
from workflows.resolve import write_grid

CPU = torch.device("cpu")
SETTINGS = Latency(size="decode", archs=("dense",), context=6, batches=(1, 3), rounds=4, budget_s=60.0, dtypes=("fp32",))
MACHINE = Machine(read=1e9, gather={64: 1e8, 32: 2e8}, matmul={1: 1e9, 16: 4e9}, launch_s=0.0)


def config(name, **fields):
    arch = arch_config(name)(**fields)
    return ModelConfig(arch=arch, vocab_size=64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, seq_len=7)


def dense():
    return config("dense", d_ff=40)


def moe():
    return config("moe", n_experts=6, top_k=2, d_expert=24, glu=False)


def ultramem(**fields):
    own = {"placement": ("0:1",), "n_keys": 12, "d_key": 8, "d_value": 16, "top_m": 4, "n_mem_heads": 1, "d_ff": 24}
    return config("ultramem", **(own | fields))


def slots_step(model, batch):
    step = step_of(model, batch, SETTINGS.context)
    return replace(step, model=slots_only(model))


def roofline(step, part, machine, itemsize):
    total = estimate(machine, asked(step, part, itemsize))
    return total.bytes, total.seconds


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_grid("smoke", {}, folder)
    return folder / "smoke"


@torch.no_grad()
def test_a_step_repeats_and_sees_its_context():
    step = step_of(build(dense(), torch.float32, CPU), 3, SETTINGS.context)
    step.tokens_B1.copy_(torch.tensor([[5], [5], [9]]))
    first = step().clone()
    assert torch.equal(step(), first)
    assert step.state.length == 7
    assert not torch.equal(first[0], first[1]), "two sequences with equal tokens and unequal pasts"
    bare = replace(step, model=slots_only(step.model))()
    assert torch.equal(bare[0], bare[1])
    assert not torch.equal(bare[0], first[0])


@torch.no_grad()
def test_slots_only_shares_weights_and_leaves_the_model_alone():
    model = build(ultramem(), torch.float32, CPU)
    bare = slots_only(model)
    assert bare.embedding is model.embedding
    assert bare.blocks[0].ffn is model.blocks[0].ffn
    assert isinstance(model.blocks[0].attention, type(build(dense(), torch.float32, CPU).blocks[0].attention))


@torch.no_grad()
def test_roofline_of_a_dense_model_is_its_bytes_or_its_products():
    model = build(dense(), torch.float32, CPU)
    ffn = 3 * model.cfg.arch.d_ff * 32 * 3
    one, many = (roofline(slots_step(model, batch), "ffn", MACHINE, 4) for batch in (1, 16))
    assert one == (4 * ffn, pytest.approx(4 * ffn / 1e9))
    assert many == (4 * ffn, pytest.approx(2 * ffn * 16 / 4e9))
    cost, cache = model.cfg.cost().without("embedding"), 2 * 3 * 2 * 8 * 6 * 4
    moved, seconds = roofline(step_of(model, 1, 6), "model", MACHINE, 4)
    assert moved == 4 * cost.params + cache
    assert seconds == pytest.approx(moved / 1e9)


@torch.no_grad()
def test_roofline_of_experts_counts_those_that_were_asked():
    """Each touched expert is read once; its products run at the rate of its own few rows, not of the whole batch."""
    model = build(moe(), torch.float32, CPU)
    step = slots_step(model, 16)
    step.tokens_B1.fill_(7)
    moved, seconds = roofline(step, "ffn", MACHINE, 4)
    router, expert = 6 * 32, 2 * 32 * 24
    assert moved == 4 * 3 * (router + 2 * expert), "sixteen equal tokens ask for the same two experts"
    assert seconds == pytest.approx(3 * (2 * router * 16 / 4e9 + 2 * expert * 32 / 4e9))
    step.tokens_B1.copy_(torch.arange(16)[:, None])
    spread, slower = roofline(step, "ffn", MACHINE, 4)
    assert spread > moved
    with recorded(step.model) as reads:
        step()
    each = [32 / unique for unique in reads.unique().values()]
    products = sum(2 * expert * 32 / MACHINE.rate(rows) for rows in each)
    assert slower == pytest.approx(3 * 2 * router * 16 / 4e9 + products)


@torch.no_grad()
def test_roofline_of_a_memory_layer_gathers_its_rows():
    model = build(ultramem(), torch.float32, CPU)
    step = slots_step(model, 1)
    moved, seconds = roofline(step, "ffn", MACHINE, 4)
    parts = model.cfg.cost().only(*FEED_FORWARD).without("table").params
    assert moved == 4 * parts + 4 * 64, "four rows of sixteen float32"
    assert seconds == pytest.approx(4 * parts / 1e9 + 4 * 64 / 1e8)


def test_rates_lie_between_those_measured():
    assert MACHINE.rate(1) == pytest.approx(1e9)
    assert MACHINE.rate(4) == pytest.approx(2e9)
    assert MACHINE.rate(99) == pytest.approx(4e9)


@torch.no_grad()
def test_rounds_are_interleaved_and_see_the_same_new_tokens(monkeypatch):
    entries = [Entry(arch, 4.0, cfg) for arch, cfg in (("dense", dense()), ("moe2", moe()))]
    plans = [Plan(e, build(e.cfg, torch.float32, CPU), "ffn", "plain", 1) for e in entries]
    seen = []
    original = Step.__call__

    def watched(step):
        seen.append((step.model.cfg.arch.name, step.tokens_B1.clone()))
        return original(step)

    monkeypatch.setattr(Step, "__call__", watched)
    cells = time_batch(plans, timer("cpu"), 3, SETTINGS)
    timed = seen[2:]
    assert [name for name, _ in timed] == ["dense", "moe", "moe", "dense"] * 2
    assert [len(c.seconds) for c in cells] == [4, 4]
    rounds = [{tuple(tokens.flatten().tolist()) for _, tokens in timed[i : i + 2]} for i in range(0, 8, 2)]
    assert all(len(tokens) == 1 for tokens in rounds)
    assert len(set.union(*rounds)) == 4
    assert len(time_batch(plans, timer("cpu"), 1, replace(SETTINGS, budget_s=0.0))[0].seconds) == latency.FEWEST_ROUNDS


@torch.no_grad()
def test_overlap_has_a_plain_twin_on_as_many_threads():
    entry = Entry("ultramem", 4.0, ultramem())
    model = build(entry.cfg, torch.float32, CPU)
    assert [(p.variant, p.threads) for p in latency.overlapping(entry, model, 1)] == [("plain", 2), ("overlap", 2)]
    assert [(p.variant, p.threads) for p in latency.overlapping(entry, model, None)] == [("overlap", None)]
    assert latency.overlapping(entry, build(ultramem(placement=("0:0",)), torch.float32, CPU), 1) == []
    with Plan(entry, model, "ffn", "overlap", 4).threaded():
        assert torch.get_num_threads() == 2


def test_the_whole_benchmark_writes_its_tables(results, tmp_path, capsys):
    latency.main(["--results", str(results), "--out", str(tmp_path / "l.csv"), "--machine", str(tmp_path / "m.csv")])
    rows, machine = schema.read(tmp_path / "l.csv", "latency"), schema.read(tmp_path / "m.csv", "machine")
    plain = rows[(rows.variant == "plain") & (rows.threads == 1)]
    assert set(plain.arch) == {"dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2"}
    assert set(plain.part) == {
        "model",
        "ffn",
    }
    assert not plain.duplicated(["arch", "part", "batch", "dtype", "sparse_ratio"]).any()
    assert set(rows[rows.variant != "plain"].groupby("variant").arch.unique().overlap) == {"ultramem"}
    assert "ultramem" in set(rows[rows.variant == "folded"].arch)
    assert set(rows.kind) == {"measured"}
    assert rows.device.str.startswith("CPU: ").all()
    assert (rows.predicted_ms > 0).all()
    dense_rows = rows[rows.arch == "dense"]
    assert (dense_rows.bytes_declared == dense_rows.bytes_counted).all()
    assert (dense_rows.sparse_ratio == 0).all()
    assert set(machine.quantity) == {"read", "gather", "matmul", "launch"}
    assert (machine.value > 0).all()
    assert "batch 16" in capsys.readouterr().out


def test_users_mistakes_are_one_sentence(results, tmp_path):
    with pytest.raises(UserError, match=r"latency\.yaml does not exist"):
        load(tmp_path)
    for arguments, message in (
        (["gru", "4", "fp32"], "architecture 'gru' is not one of dense"),
        (["dense", "4", "fp8"], "dtype 'fp8' is not one of fp32, bf16"),
        (["dense", "four", "fp32"], "batch 'four'"),
    ):
        with pytest.raises(UserError, match=message):
            latency.main(["--results", str(results), "--device", "cpu", "--one-step", *arguments])


def test_models_that_do_not_fit_are_left_out_and_said_so(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    latency.main(["--results", str(results), "--device", "cpu", "--out", str(tmp_path / "l.csv")])
    assert schema.read(tmp_path / "l.csv", "latency").empty
    assert "GB of free memory and are not timed: make measure.latency's size" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["moe2", "pkm", "ultramem"])
def test_one_step_runs(results, arch):
    latency.main(["--results", str(results), "--device", "cpu", "--one-step", arch, "4", "bf16"])


def test_only_projected_and_expanded_layers_are_folded():
    assert foldable(ultramem())
    assert not foldable(ultramem(expansion=1))
    assert not foldable(moe())
