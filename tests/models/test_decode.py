"""Decoding: the state in place, a step that a CUDA graph can hold, memories beside the blocks, folded tables."""

import gc
import threading
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from memory_layers import built, tokens
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from models import overlap
from models.overlap import Overlap
from models.transformer import ModelConfig, Transformer
from models.ultramem import UltraMemConfig
from workflows.presets import load_preset

ARCHS = tuple(load_preset("smoke").archs)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_repeats_exactly_after_a_rewind_and_at_the_same_addresses(models, arch):
    model, x = built(models[arch]), tokens(3, 12)
    cache = model.decode_state(3, 16)
    model.hidden(x[:, :7], cache)
    addresses = [past.data_ptr() for past in cache.past.values()]
    first = model.logits(x[:, 7:8], cache)
    model.hidden(x[:, 8:], cache)
    cache.length = 7
    assert torch.equal(model.logits(x[:, 7:8], cache), first)
    assert [past.data_ptr() for past in cache.past.values()] == addresses


@pytest.mark.parametrize("n_kv_heads", [None, 1])
def test_a_step_allocates_no_more_than_the_scores_of_a_longer_context(models, n_kv_heads):
    def allocated(context: int) -> int:
        cache = model.decode_state(4, 128)
        cache.pretend(context)
        with torch.profiler.profile(profile_memory=True) as profile:
            model.hidden(tokens(4, 1), cache)
        return sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)

    model = built(replace(models["ultramem"], n_heads=4, n_kv_heads=n_kv_heads))
    allocated(20)
    scores = 4 * 4 * 80 * 4 * model.cfg.n_layers
    assert 0 <= allocated(100) - allocated(20) <= scores


def test_sequences_are_taken_from_a_state_with_their_past(models):
    model, x = built(models["ultramem"]), tokens(2, 12)
    cache = model.decode_state(2, 8)
    model.hidden(x[:, :8], cache)
    taken = cache.take(torch.tensor([1, 0, 1]), 12)
    expected = model.logits(x[[1, 0, 1]])[:, 8:]
    torch.testing.assert_close(model.logits(x[[1, 0, 1], 8:], taken), expected, rtol=1e-4, atol=1e-5)
    assert (cache.length, cache.capacity, taken.length, taken.capacity) == (8, 8, 12, 12)


def test_a_pretended_past_is_written_everywhere_and_differs_between_sequences(models):
    cache = built(models["dense"]).decode_state(4, 32)
    cache.pretend(30)
    assert cache.length == 30
    for past in cache.past.values():
        assert (past != 0).all()
        assert (past[:, 0] != past[:, 1]).all()


def test_a_full_decode_state_is_refused(models):
    model = built(models["dense"])
    cache = model.decode_state(1, 8)
    model.hidden(tokens(1, 6), cache)
    with pytest.raises(ValueError, match=r"9 tokens do not fit into a decode state of 8"):
        model.hidden(tokens(1, 3), cache)
    assert cache.length == 6


WAITING = {"_local_scalar_dense", "nonzero", "bincount", "_unique2", "masked_select", "repeat_interleave.Tensor", "equal"}


class NoWaiting(TorchDispatchMode):
    """Refuses operations for which a GPU's host waits: their result, or its shape, is a number in device memory."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = str(op).removeprefix("aten.")
        masks = op.overloadpacket is torch.ops.aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not masks, name
        assert name.removesuffix(".default") not in WAITING
        return op(*args, **(kwargs or {}))


def shapes_only(monkeypatch):
    """Kernels that compute nothing: CUDA has its own, and the CPU's, which these tests would run, may look at numbers."""
    fakes = {
        "product_topm": lambda row, col, m: (row.new_ones(*row.shape[:2], m), torch.zeros(*row.shape[:2], m, dtype=torch.long)),
        "tucker_topm": lambda row, col, core, u, t, m: (
            row.new_ones(*row.shape[:2], m, len(core)),
            torch.zeros(*row.shape[:2], m, dtype=torch.long),
        ),
        "weighted_lookup": lambda values, row, weight, group=None, n=1: values.new_ones(len(row), n, values.shape[1]),
        "row_dot": lambda table, row, x: x.new_ones(row.shape),
        "grouped_mm": lambda x, weight, counts: x.new_ones(len(x), weight.shape[2]),
    }
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")  # a mixture of experts is then put together as on CUDA
    for name, fake in fakes.items():
        monkeypatch.setattr(kernels, name, fake)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_step_waits_for_the_device(models, arch, monkeypatch):
    shapes_only(monkeypatch)
    model = built(models[arch])
    cache = model.decode_state(2, 8)
    with NoWaiting():
        for part in tokens(2, 8).split((5, 1, 2), dim=1):
            model.logits(part, cache)


def deep(placement: tuple[str, ...], **fields) -> Transformer:
    sizes = {"d_ff": 24, "n_keys": 12, "d_key": 8, "top_m": 4, "d_value": 16}
    arch = UltraMemConfig(**sizes, placement=placement)
    return built(ModelConfig(arch=arch, vocab_size=1024, d_model=32, n_layers=4, n_heads=4, seq_len=32, **fields))


@pytest.mark.parametrize("placement", [("0:0",), ("0:1", "2:3"), ("0:3", "1:2", "1:1"), ("0:2", "0:1", "3:3")])
def test_overlap_changes_no_bit_and_runs_the_memory_in_its_own_thread(placement):
    model, x, seen = deep(placement), tokens(3, 12), []
    for memory in model.memories:
        memory.register_forward_hook(lambda *_: seen.append(threading.get_ident()))

    def decode():
        cache = model.decode_state(3, 12)
        return torch.cat([model.logits(part, cache) for part in x.split((9, 1, 1, 1), dim=1)], 1)

    plain = decode()
    assert set(seen) == {threading.get_ident()}
    seen.clear()
    model.overlap = Overlap()
    assert torch.equal(decode(), plain)
    assert len(seen) == 4 * len(placement)
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_overlap_runs_in_the_callers_mode(mode):
    model, x = deep(("0:1", "1:3")), tokens(2, 12)
    with mode():
        plain = model.logits(x)
        model.overlap = Overlap()
        cache = model.decode_state(2, 12)
        assert torch.equal(model.logits(x, cache), plain)


def test_the_worker_takes_the_callers_number_of_threads():
    model, before, seen = deep(("0:1",)), torch.get_num_threads(), []
    model.overlap = Overlap()
    model.memories[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    for n_threads in (2, 1):
        torch.set_num_threads(n_threads)
        model.hidden(tokens(1, 4))
    torch.set_num_threads(before)
    assert seen == [2, 1]


def test_blocks_go_on_while_the_memory_runs():
    """The memory waits for a block that comes after it: without overlap this would never end."""
    model, reached = deep(("0:1",)), threading.Event()
    model.overlap = Overlap()
    model.blocks[1].attention.register_forward_hook(lambda *_: reached.set())
    model.memories[0].register_forward_pre_hook(lambda *_: None if reached.wait(20) else pytest.fail("no block went on"))
    model.hidden(tokens(1, 4))


def test_an_error_in_the_worker_surfaces_and_leaves_it_working():
    model, x = deep(("0:1",)), tokens(2, 8)
    plain = model.logits(x)
    model.overlap = Overlap()
    hook = model.memories[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.logits(x)
    hook.remove()
    assert torch.equal(model.logits(x), plain)


def test_training_does_not_overlap():
    model = deep(("0:1",)).train()
    model.overlap, seen = Overlap(), []
    model.memories[0].register_forward_hook(lambda *_: seen.append(threading.get_ident()))
    with torch.enable_grad():
        model.loss(tokens(2, 8), tokens(2, 8))[0].backward()
        model.eval().hidden(tokens(2, 8))
    assert seen == [threading.get_ident()] * 2


class Stream:
    """Knows, as CUDA's streams do, which work is done before what is queued on it next."""

    def __init__(self):
        self.before = set()

    def wait_stream(self, other):
        self.before |= other.before

    def record_event(self):
        return frozenset(self.before)

    def wait_event(self, event):
        self.before |= event


def test_the_side_stream_starts_after_the_input_and_is_waited_for_memory_by_memory(monkeypatch):
    main, side, read_by = Stream(), Stream(), {}
    current = [main]

    @contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    def memory(number):
        def forward(z_BTD, cache):
            assert current[-1] is side
            assert f"input {number}" in side.before
            side.before.add(f"memory {number}")
            return torch.full((1,), float(number)), torch.zeros(())

        return forward

    monkeypatch.setattr(overlap, "side_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: read_by.setdefault(id(tensor), stream))
    finishes, inputs = [], []
    for number in (1, 2):
        main.before.add(f"input {number}")
        z_BTD = torch.zeros(1, 1, 4)
        inputs.append(weakref.ref(z_BTD))
        finishes.append(Overlap()._on_stream(memory(number), z_BTD, None))
        del z_BTD
    assert current == [main]
    gc.collect()
    assert all(z() is not None for z in inputs)  # else the allocator would give it to the main stream's next tensor
    for number, finish in enumerate(finishes, 1):
        assert f"memory {number}" not in main.before
        y_BTD, aux = finish()
        assert (y_BTD, f"memory {number}" in main.before) == (number, True)
        assert read_by[id(y_BTD)] is read_by[id(aux)] is main
    finishes.clear()
    del finish
    assert all(z() is None for z in inputs)
