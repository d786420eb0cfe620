"""Which kernels serve a call, and how the C++ ones are built, cached and done without."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from cpu_kernels import (
    LOOKUPS,
    check_cross_entropy,
    check_experts,
    check_linear,
    check_product_topm,
    check_row_dot,
    check_tucker_gradients,
    check_weighted_lookup,
    experts_of,
    head,
    integers,
    native,
    needs_compiler,
    numbers,
)
from repository import ROOT
from torch.autograd import gradcheck

import kernels
from kernels.cpu import build


def test_cache_folder_without_a_home(monkeypatch):
    """A container's user without HOME and without an entry in passwd."""

    def homeless(_cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "home", classmethod(homeless))
    assert build._cache_dir().is_dir()


def test_float64_gradcheck_through_the_public_functions():
    make = lambda *shape, seed: numbers(*shape, seed=seed, dtype=torch.float64).requires_grad_()  # noqa: E731
    row, col, core = make(3, 2, 6, 2, seed=1), make(3, 2, 6, 2, seed=2), make(2, 2, 2, 2, seed=3)
    u, t = numbers(2, 2, seed=4).double(), numbers(2, 2, seed=5).double()
    assert gradcheck(lambda *x: kernels.tucker_topm(*x, u, t, 4)[0], (row, col, core))
    assert gradcheck(lambda *x: kernels.product_topm(*x, 4)[0], (row[..., 0], col[..., 0]))
    values, weight, picks, group = make(7, 6, seed=6), make(4, 5, 2, seed=7), integers(7, 4, 5), integers(3, 4, 5)
    assert gradcheck(lambda *x: kernels.weighted_lookup(x[0], picks, x[1], group, 3), (values, weight))
    assert gradcheck(lambda *x: kernels.row_dot(x[0], picks, x[1]), (values, make(4, 6, seed=8)))
    moe, experts = experts_of(torch.float64, 5, 2, 3, 4, 3, True), integers(3, 5, 2)
    assert gradcheck(lambda *x: kernels.experts(*x[:3], experts, x[3]), moe)
    x, gains, turns = make(2, 3, 4, 4, seed=12), (make(4, seed=13), make(4, seed=14)), numbers(2, 3, 4, seed=15).double()
    assert gradcheck(lambda *x: kernels.heads(*x, *turns, 2), (x, *gains))
    assert gradcheck(lambda x, gain: kernels.swiglu(kernels.rms_norm(x, gain, 1e-5)), (x, gains[0]))
    counts = torch.tensor([0, 3, 4, 0])
    assert gradcheck(lambda *x: kernels.grouped_mm(*x, counts), (make(7, 4, seed=9), make(4, 4, 3, seed=10)))
    hidden, weight, target = head(10, 6, 11)
    inputs = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    assert gradcheck(lambda *x: kernels.cross_entropy(*x, target, chunk=3), inputs)


def test_override_and_its_error(monkeypatch):
    monkeypatch.setenv("ULTRAMEM_KERNELS", "reference")
    assert kernels.backend("cpu") == "reference"
    monkeypatch.setenv("ULTRAMEM_KERNELS", "fast")
    with pytest.raises(ValueError, match="auto, reference, native, triton"):
        kernels.backend("cpu")
    monkeypatch.delenv("ULTRAMEM_KERNELS")
    assert kernels.backend("cpu") == ("native" if build.available() else "reference")
    assert kernels.backend("meta") == "reference"


# A third of the time that the compiler takes for the fastest code.
QUICK = tuple("-O1" if flag == "-O3" else flag for flag in build.BASE_FLAGS)


def run_python(code, **environment):
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_compiles_nothing(tmp_path):
    code = "import sys, kernels; assert 'triton' not in sys.modules and 'kernels.cpu.build' not in sys.modules"
    run_python(code, XDG_CACHE_HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_one_warning_and_plain_torch(tmp_path):
    code = (
        "import torch, kernels; x = torch.randn(2, 1, 9); kernels.product_topm(x, x, 3); kernels.product_topm(x, x, 3);"
        "print(kernels.backend('cpu'))"
    )
    done = run_python(code, PATH=str(tmp_path), CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "reference"
    assert done.stderr.count("no C++ compiler found") == 1


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM has one build, which the other tests run")
@pytest.mark.parametrize(
    ("capability", "multiplies"), [("DEFAULT", False), ("AVX2", False), ("AVX512", True), ("AVX512", False)]
)
def test_builds_for_other_processors_agree_with_the_reference(capability, multiplies, tmp_path, monkeypatch):
    """The same sources with narrower vectors, with and without micro-kernels for bfloat16, and a compiler without OpenMP."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if (multiplies, capability) == (build.multiplies_bf16(), build._capability()):
        pytest.skip("this machine's own build, which the other tests run")
    if capability == "AVX512" and not (build._capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("this processor has no AVX-512 or no product of bfloat16")
    monkeypatch.setattr(build, "_capability", lambda: capability)
    monkeypatch.setattr(build, "multiplies_bf16", lambda: multiplies)
    monkeypatch.setattr(build, "THREAD_FLAGS", (("-no-such-flag",), ()))
    monkeypatch.setattr(build, "BASE_FLAGS", QUICK)
    tuned = build._library()
    build._library.cache_clear()
    try:
        assert build.available()
        assert build._library() is not tuned
        check_product_topm(native, 300, 42)
        check_tucker_gradients(2, 2, 12)
        check_weighted_lookup(native, LOOKUPS[2], torch.bfloat16, 2**-8)
        check_row_dot(native, 6, 9, 2, 5, torch.float32, 1e-5)
        check_experts(torch.float32, 40, 3, 9, 26, 13, True)
        check_experts(torch.bfloat16, 40, 3, 9, 26, 13, False)
        check_linear(torch.bfloat16, 2**-8, 7, 33)
        monkeypatch.setenv("ULTRAMEM_KERNELS", "native")
        check_cross_entropy(32, 1.0)
    finally:
        build._library.cache_clear()
        monkeypatch.undo()
    assert build.available()


@needs_compiler
def test_two_processes_build_at_once_and_a_cached_library_is_reused(tmp_path):
    command = [
        sys.executable,
        "-c",
        f"from kernels.cpu import build; build.BASE_FLAGS = {QUICK!r}; print('built', build.build())",
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in started]
    assert outputs[0] == outputs[1]
    assert "built" in outputs[0]
    files = list((tmp_path / "ultramem").iterdir())
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert files[0].stat().st_mtime_ns == before
