"""Counted reads against the formula (random and disjoint routing), against the layers themselves, and against themselves."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
import torch

import kernels
from evals.access import counted
from evals.records import schema
from evals.records.errors import UserError
from models import arch_config
from models.fold import fold
from models.memory import Memory
from models.moe import MoE
from models.overlap import Overlap
from models.transformer import ModelConfig

B = 64
MEMORY = {"d_ff": 16, "placement": ("0:1", "2:2"), "n_keys": 48, "d_key": 8, "n_mem_heads": 1, "top_m": 8}
EXPERTS = {"n_experts": 40, "top_k": 2, "d_expert": 12, "glu": False}
ARCHS = {
    "moe": EXPERTS,
    "hybrid": EXPERTS | {"d_key": 8, "memory": {"name": "ultramem", "placement": ("0:1", "2:2"), "n_mem_heads": 1, "top_m": 8}},
    "pkm": MEMORY | {"placement": ("1:1",), "n_mem_heads": 2},
    "peer": MEMORY,
    "memory_plus": MEMORY,
    "ultramem": MEMORY | {"d_value": 16},
    "ultramem_v2": MEMORY | {"placement": ("all",), "d_value": 8, "d_pre_value": 4, "share": "ring", "share_ratio": 0.5},
}


def build(name, **values):
    torch.manual_seed(0)
    arch = arch_config(name)(**(ARCHS.get(name, {"d_ff": 24}) | values))
    cfg = ModelConfig(arch=arch, vocab_size=97, d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, seq_len=16)
    return cfg.build().eval()


def tokens(rows, length=1):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def count(model, batch=B):
    """Distinct records, and bytes of all weights, that one step reads."""
    with counted.recorded(model) as reads:
        model.hidden(tokens(batch))
    _, unique, params = reads.counts()
    return unique, 4 * (model.cfg.cost().without("embedding", "table").params + params)


def distinct(rows, reads, T, generator):
    """Different records, each as likely: evenly spaced ones from a random start, at a random spacing."""
    start_T1, step_T1 = (torch.randint(low, high, (T, 1), generator=generator) for low, high in ((0, rows), (1, rows // reads)))
    return (start_T1 + step_T1 * torch.arange(reads)) % rows


@pytest.fixture
def routing(monkeypatch):
    """Replaces what the layers choose by `draw(records, reads, T)`, a (T, reads) tensor of records."""

    def use(draw):
        def select(memory, row_THnr, col_THnr):
            T, H, n, _ = row_THnr.shape
            index_THm = draw(n * n, H * memory.cfg.top_m, T).view(T, H, -1)
            return torch.rand(*index_THm.shape, memory.cfg.n_cores), index_THm

        def route(moe, x_TD):
            T, E, k = len(x_TD), moe.cfg.n_experts, moe.cfg.top_k
            return torch.zeros(T, E), torch.full((T, k), 1 / k), draw(E, k, T)

        monkeypatch.setattr(Memory, "select", select)
        monkeypatch.setattr(MoE, "route", route)

    return use


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_uniform_routing_costs_what_the_formula_expects(routing, name, batch):
    generator = torch.Generator().manual_seed(3)
    routing(lambda rows, reads, T: distinct(rows, reads, T, generator))
    model = build(name)
    found = [count(model, batch) for _ in range(4)]
    table = model.cfg.cost().only("table")
    expected = sum(part.rows_read(batch) for part in table.parts)
    bytes_expected = model.cfg.cost().without("embedding").bytes(batch, 4)
    assert np.mean(found, axis=0) == pytest.approx([expected, bytes_expected], rel=0.05)


@pytest.mark.parametrize("name", [name for name in ARCHS if name not in ("ultramem_v2", "memory_plus", "hybrid")])
def test_disjoint_routing_costs_the_worst_case_exactly(routing, name):
    routing(lambda rows, reads, T: (torch.arange(T)[:, None] * reads + torch.arange(reads)) % rows)
    model = build(name, **({} if name in ("moe", "peer") else {"expansion": 1}))
    cost = model.cfg.cost().without("embedding")
    for batch in (1, 4, 16):
        assert count(model, batch)[1] == cost.bytes(batch, 4, "worst")


@pytest.mark.parametrize("name", [name for name in ARCHS if name not in ("moe", "hybrid")])
def test_recorded_rows_are_those_that_the_layers_choose(name):
    model, chosen = build(name), []

    def note(memory, inputs, _):
        with torch.no_grad():
            _, index_THm = memory.select(*memory.scores(inputs[0]))
            chosen.append(memory.address(index_THm.flatten(1))[0])

    for memory in model.memories:
        memory.register_forward_hook(note)
    with counted.recorded(model) as reads:
        model.hidden(tokens(8, 4))
    assert [read.layer for read in reads] == [at for at, _ in model.placement]
    for read, row_TM in zip(reads, chosen, strict=True):
        assert torch.equal(read.index_TM, row_TM)
    tables = {id(memory.table) for memory in model.memories}
    assert len(reads.unique()) == len(tables)


def test_layers_that_share_a_table_read_a_row_once():
    model = build("memory_plus", placement=("0:0", "0:1"))
    model.memories[1].load_state_dict(model.memories[0].state_dict(), strict=False)
    with counted.recorded(model) as both:
        model.hidden(tokens(B))
    one = counted.Reads(both[:1])
    assert (both.counts() == one.counts() * [2, 1, 1]).all()


@pytest.mark.parametrize("name", ["dense", *ARCHS])
def test_layers_add_up_and_stay_below_the_worst_case(name):
    model, token_SW = build(name), tokens(256, 16)
    shared = name in ("memory_plus", "ultramem_v2")
    rows = list(counted.counted(model, token_SW, (1, 16, 256)))
    costs = {(v.part, v.kv): v for v in counted.views(model.cfg, "fp32")}
    for batch in (1, 16, 256):
        here = [row for row in rows if row["batch"] == batch]
        layers = [row for row in here if row["layer"] is not None]
        for row in (row for row in here if row["layer"] is None):
            view = costs[(row["part"], row["kv"])]
            worst = view.cost.bytes(batch, 4, "worst") + batch * view.cache
            dense = 4 * view.cost.without("table").params + batch * view.cache
            assert dense + (name != "dense") <= row["bytes"] <= worst
            assert row["rows_read"] == sum(p.reads for p in view.cost.only("table").parts) * batch
            assert row["context"] == (0 if row["kv"] == "none" else 16)
        ffn = next(row for row in here if row["part"] == "ffn" and row["layer"] is None)
        assert len(layers) == 4
        total = sum(row["bytes"] for row in layers)
        assert total > ffn["bytes"] if shared and batch > 1 else total == pytest.approx(ffn["bytes"])
    gqa = costs[("model", "gqa")]
    assert gqa.cache == 2 * 4 * 2 * 8 * 16 * 4


def test_steps_take_each_window_once_and_each_draw_another_position():
    read = counted.Read(0, [torch.zeros(5000, 2)], torch.arange(40 * counted.DRAWS).view(40, counted.DRAWS, 1))
    drawn = counted.steps(counted.Reads([read]), 40, 16)
    assert all(len(step[0].index_TM) == 16 == step.counts()[1] for step in drawn)
    assert torch.cat([step[0].index_TM for step in drawn]).unique().numel() == 16 * counted.DRAWS
    again = counted.steps(counted.Reads([read]), 40, 16)
    assert all(torch.equal(a[0].index_TM, b[0].index_TM) for a, b in zip(drawn, again, strict=True))


def test_windows_span_all_sources():
    text = {"a": np.arange(50, dtype="<u2"), "b": np.arange(50, 100, dtype="<u2")}
    window_SW = counted.windows(SimpleNamespace(shards=SimpleNamespace(validation=text)), 4, 10)
    assert window_SW[:, 0].tolist() == [0, 30, 60, 90]
    assert (window_SW.diff() == 1).all()


def test_a_layer_that_reads_past_the_kernels_is_refused(monkeypatch):
    model = build("pkm")
    lookup = kernels.weighted_lookup
    monkeypatch.setattr(Memory, "forward", lambda memory, x_BTD, cache=None: (x_BTD * memory.table.values_NC[0], 0.0))
    with pytest.raises(ValueError, match=r"pkm: .*read and of those declared: \{\} and"):
        count(model)
    assert kernels.weighted_lookup is lookup


def test_experts_other_than_the_routers_are_refused(monkeypatch):
    model = build("moe")
    forward = MoE.forward

    def elsewhere(moe, x_BTD, cache=None):
        route = type(moe).route

        def shifted(*arguments):
            logits_TE, prob_Tk, expert_Tk = route(*arguments)
            return logits_TE, prob_Tk, (expert_Tk + 1) % 40

        monkeypatch.setattr(moe, "route", lambda x_TD: shifted(moe, x_TD))
        return forward(moe, x_BTD, cache)

    monkeypatch.setattr(MoE, "forward", elsewhere)
    with pytest.raises(ValueError, match="block 0 multiplies other experts than its router chose"):
        count(model)
    assert MoE.route.__qualname__ == "MoE.route"


def test_an_overlapped_memory_keeps_its_block(monkeypatch):
    model, alone, select = build("ultramem"), build("ultramem"), Memory.select
    monkeypatch.setattr(Memory, "select", lambda *arguments: time.sleep(0.05) or select(*arguments))
    model.overlap = Overlap()
    found = []
    for one in (model, alone):
        with counted.recorded(one) as reads:
            one.hidden(tokens(B, 8))
        found.append(reads)
    assert [read.layer for read in found[0]] == [0, 2]
    assert all(torch.equal(a.index_TM, b.index_TM) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["ultramem", "ultramem_v2"])
def test_a_folded_layer_reads_a_vector_for_each_core(routing, name):
    generator = torch.Generator().manual_seed(3)
    routing(lambda rows, reads, T: distinct(rows, reads, T, generator))
    folded = fold(build(name))
    expected = folded.cfg.cost().without("embedding").bytes(B, 4)
    assert np.mean([count(folded)[1] for _ in range(4)]) == pytest.approx(expected, rel=0.05)


def test_the_command_writes_counted_and_declared_rows_of_each_run(tmp_path, monkeypatch):
    models = {name: build(name) for name in ("dense", "ultramem")}
    text = {"a": np.arange(3000, dtype="<u2") % 97, "b": np.arange(100, dtype="<u2") % 89}

    def config(folder):
        return SimpleNamespace(run=folder.name, arch=folder.name, size="s", model=models[folder.name].cfg)

    def opened(folder, device):
        return SimpleNamespace(model=models[folder.name], shards=SimpleNamespace(validation=text), corpus=Path("corpus"))

    monkeypatch.setattr(counted, "load_run", config)
    monkeypatch.setattr(counted, "open_run", opened)
    monkeypatch.setattr(counted, "identity", lambda *_: {"weights": str(next(made_by))})
    made_by = itertools.count()
    out = [tmp_path / f"{i}.csv" for i in range(2)]
    for path in out:
        counted.main(["--results", str(tmp_path), "--runs", "dense", "ultramem", "--out", str(path)])
    assert out[0].read_bytes() == out[1].read_bytes()
    table = schema.read(out[0], "access")
    ours = table[table.run == "ultramem"]
    assert set(ours.kind) == {"declared-worst", "declared-expected", "counted"}
    key = ["run", "part", "kv", "batch"]
    whole = ours[ours.layer.isna()].pivot_table("bytes", key, "kind", aggfunc="max")
    assert (whole["counted"] <= whole["declared-worst"]).all()
    assert not table.duplicated(["run", "size", "part", "kv", "layer", "batch", "routing", "kind"]).any()
    text.clear()
    text["a"] = np.zeros(3, dtype="<u2")
    with pytest.raises(UserError, match="corpus has 3 tokens of validation text, a window is 16"):
        counted.main(["--results", str(tmp_path), "--runs", "dense", "--out", str(out[0])])


def test_a_run_is_counted_once_and_an_adopted_one_never(tmp_path, monkeypatch):
    folders, out, made_by = tmp_path / "runs", tmp_path / "access.csv", {"weights": "w", "code": "c"}
    monkeypatch.setattr(counted, "identity", lambda *_: made_by)
    counts = []
    monkeypatch.setattr(counted, "rows", lambda folder, device: counts.append(folder.name) or [synthetic.row("access")] * 3)

    def command(*names):
        counted.main(["--results", str(tmp_path), "--runs", *names, "--out", str(out)])
        return len(schema.read(out, "access"))

    for name in ("a", "b"):
        (folders / name).mkdir(parents=True)
    assert [command("a"), command("a", "b"), command("a", "b")] == [3, 6, 6]
    assert counts == ["a", "b"]
    made_by["code"] = "d"
    assert command("a") == 3
    assert counts == ["a", "b", "a"]
    made_by["weights"] = ""  # adopted
    assert command("a", "b") == 3  # b's rows are of older code
    assert counts == ["a", "b", "a"]


def test_the_papers_sizes_are_declared_with_the_cache_they_had(tmp_path):
    schema.write(tmp_path / "access.csv", "access", counted.papers((16,)))
    table = schema.read(tmp_path / "access.csv", "access").set_index(["run", "part", "kv", "routing"]).sort_index()
    worst = [table.loc[(f"{arch} 1.6B", "ffn", "none", "worst")] for arch in ("moe2", "ultramem")]
    assert (worst[0].rows_unique, worst[1].rows_unique) == (32 * 32, 6 * 84 * 16)
    mha, none = (table.loc[("moe8 120B/2.5B", "model", kv, "worst")] for kv in ("mha", "none"))
    assert mha.bytes - none.bytes == 2 * 2 * 2048 * 2560 * 32 * 16
    assert (mha.context, none.context) == (2048, 0)
