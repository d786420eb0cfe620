"""Timers and tuning: what runs when, on fakes of torch.cuda and of the clock; the CPU's yardsticks against known work."""

import contextlib
import time
import types

import pytest
import torch

from evals.decode import timers
from kernels.triton import tune


class FakeCuda:
    """torch.cuda with one stream: work counts milliseconds, a capture records it, a replay repeats it."""

    def __init__(self, capturable=True):
        self.log, self.now, self.capturable, self.recording = [], 0.0, capturable, None

    def work(self, name, ms):
        if self.recording is not None:
            self.recording.append((name, ms))
        else:
            self.log.append(name)
            self.now += ms

    def Stream(self):
        return types.SimpleNamespace(name="side", wait_stream=lambda other: self.log.append(f"side waits for {other.name}"))

    def current_stream(self):
        return types.SimpleNamespace(name="main", wait_stream=lambda other: self.log.append(f"main waits for {other.name}"))

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    def device(self, device):
        return contextlib.nullcontext()

    def synchronize(self):
        self.log.append("synchronize")

    def get_device_properties(self, device):
        return types.SimpleNamespace(L2_cache_size=1 << 10)

    def CUDAGraph(self):
        graph = types.SimpleNamespace(nodes=[])
        graph.replay = lambda: [self.work(*node) for node in graph.nodes]
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.recording = graph.nodes
        try:
            yield
        finally:
            self.recording = None
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    def Event(self, enable_timing):
        event = types.SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.synchronize = lambda: self.log.append("event")
        event.elapsed_time = lambda end: end.at - event.at
        return event


@pytest.fixture
def fake(monkeypatch):
    def make(flush=False, **how):
        cuda = FakeCuda(**how)
        monkeypatch.setattr(torch, "cuda", cuda)
        clock = timers.CudaTimer(torch.device("cpu"), flush)
        monkeypatch.setattr(clock, "_empty_caches", lambda: cuda.work("flush", 100.0))
        return cuda, clock

    return make


def test_a_cuda_step_is_warmed_up_beside_captured_and_replayed(fake):
    cuda, clock = fake()
    calls = []

    def step():
        calls.append(tune._depth)
        cuda.work("kernel", 4.0)

    timed = clock.prepare(step)
    warm = ["on side", *["kernel"] * timers.WARM_UPS, "off side"]
    assert cuda.log == ["side waits for main", *warm, "main waits for side", "kernel", "synchronize"]
    assert calls == [1, 0, 0, 0], "the first warm-up tunes, the capture must not"
    assert [timed(), timed()] == [0.004, 0.004]
    assert len(calls) == timers.WARM_UPS + 1, "a replay does not call the step"


def test_flushing_stays_outside_the_time(fake):
    cuda, clock = fake(flush=True)
    timed = clock.prepare(lambda: cuda.work("kernel", 4.0))
    cuda.log.clear()
    assert timed() == 0.004
    assert cuda.log == ["flush", "kernel", "event"]


def test_a_step_that_cannot_be_captured_is_timed_with_its_launches(fake, capsys):
    cuda, clock = fake(capturable=False)
    calls = []

    def step():
        calls.append(1)
        cuda.work("kernel", 4.0)

    timed = clock.prepare(step)
    before = len(calls)
    assert timed() == 0.004
    assert len(calls) == before + 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not permitted when stream is capturing" in line


def test_an_error_of_the_step_itself_is_not_taken_for_a_failed_capture(fake):
    _, clock = fake()
    with pytest.raises(RuntimeError, match="shapes"):
        clock.prepare(lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")))


def test_cuda_yardsticks_divide_by_what_the_graph_holds(fake, monkeypatch):
    cuda, clock = fake()
    monkeypatch.setattr(torch.Tensor, "add_", lambda self, other: cuda.work("add", 0.002))
    assert clock.overhead(calls=50) == pytest.approx(2e-6)
    clock.flops_at_once = 10 * 2 * 4 * 8 * 16
    monkeypatch.setattr(timers.F, "linear", lambda x, weight: cuda.work("linear", 2.0))
    monkeypatch.setattr(torch, "mm", lambda x, weight: cuda.work("mm", 1.0))
    assert clock.matmul_rate(torch.float32, 4, 8, 16) == pytest.approx(2 * 4 * 8 * 16 / 1e-3)


def test_read_bandwidth_takes_the_fastest_way(monkeypatch):
    clock, seconds = timers.timer("cpu"), iter([4.0, 2.0, 3.0])
    monkeypatch.setattr(clock, "median", lambda step: (step(), next(seconds))[1])
    assert clock.read_bandwidth(torch.bfloat16, n_bytes=1 << 20) == (1 << 20) / 2.0


def test_gather_bandwidth_reads_every_row_once(monkeypatch):
    clock, seen = timers.timer("cpu"), []
    monkeypatch.setattr(clock, "cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(clock, "median", lambda step: (step(), 2.0)[1])
    lookup = timers.kernels.weighted_lookup
    monkeypatch.setattr(timers.kernels, "weighted_lookup", lambda *given: (seen.append(given), lookup(*given))[1])
    assert clock.gather_bandwidth(torch.float32, 256) == timers.CACHES_COVERED * (1 << 16) / 2.0
    ((table, row, _),) = seen
    assert torch.equal(row.flatten().sort().values, torch.arange(len(table)))
    assert (row.flatten().diff() == 1).float().mean() < 0.1
    with pytest.raises(ValueError, match="whole numbers"):
        clock.gather_bandwidth(torch.float32, 6)


def test_the_cpu_timer_times_the_step_alone(monkeypatch):
    clock, now, log = timers.timer("cpu"), [0.0], []
    monkeypatch.setattr(timers, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def take(name, seconds):
        log.append(name)
        now[0] += seconds

    monkeypatch.setattr(clock, "_empty_caches", lambda: take("flush", 50.0))
    timed = clock.prepare(lambda: take("step", 3.0))
    assert timed() == 3.0
    assert log == ["step", "flush", "step"]


def test_a_median_is_that_of_warm_runs(monkeypatch):
    clock, waits = timers.timer("cpu"), iter([0.05, 0.05, 0.001, 0.002, 0.09])
    monkeypatch.setattr(timers, "BUDGET_S", 0.0)
    monkeypatch.setattr(timers.CpuTimer, "_empty_caches", lambda self: time.sleep(1))
    assert 0.002 <= clock.median(lambda: time.sleep(next(waits))) < 0.05


def test_emptying_the_caches_covers_them():
    clock = timers.timer("cpu")
    clock._empty_caches()
    assert clock._evictor.nbytes >= 2 * timers.last_level_cache()
    assert (clock._evictor == 1).all()


@pytest.mark.parametrize(("text", "size"), [("32768K", 32 << 20), ("8M", 8 << 20), ("512", 512)])
def test_cache_sizes_as_linux_writes_them(tmp_path, text, size):
    (tmp_path / "size").write_text(text + "\n")
    assert timers._size(tmp_path / "size") == size


@pytest.fixture
def stopwatch(monkeypatch):
    """Tuning where a setting takes as many milliseconds as its own number."""
    tried = []
    monkeypatch.setattr(tune, "found", {})
    monkeypatch.setattr(tune, "milliseconds", lambda call: tried.append(call()) or tried[-1])
    return tried


def test_tuning_takes_the_fastest_and_remembers_it(stopwatch):
    def choose(key):
        return tune.choose(key, 5, lambda: (7, 3, 9), lambda setting: setting)

    assert choose("a") == 5
    assert stopwatch == [], "nothing is tried unless asked"
    with tune.tuning():
        assert choose("a") == 3
        assert stopwatch == [5, 7, 3, 9]
        assert choose("a") == 3
        assert len(stopwatch) == 4
    assert choose("a") == 3
    assert choose("b") == 5


def test_a_setting_beyond_the_device_is_never_the_fastest(monkeypatch):
    testing, errors = pytest.importorskip("triton.testing"), pytest.importorskip("triton.runtime.errors")

    def refuse():
        raise errors.OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(testing, "do_bench", lambda call, **options: call() or 1.0)
    assert tune.milliseconds(refuse) == float("inf")
    assert tune.milliseconds(lambda: None) == 1.0
