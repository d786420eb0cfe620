"""The C++ kernels as they are on ARM: built for NEON and run by an emulator on the calls that a build for this machine took."""

import importlib
import shutil
import struct
import subprocess
from pathlib import Path

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
    gradients,
    native,
    needs_compiler,
    numbers,
)
from torch import Tensor

import kernels
from kernels.attention import causal_attention
from kernels.cpu import build
from kernels.cpu import call as calls

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
needs_emulator = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"no {COMPILER} or {EMULATOR}: apt-get install g++-aarch64-linux-gnu qemu-user",
)


def stored(tensor: Tensor) -> bytes:
    """From the first element to the end of what it lies in, strides and all."""
    storage = tensor.untyped_storage()
    start = tensor.storage_offset() * tensor.element_size()
    return bytes(torch.tensor([], dtype=torch.uint8).set_(storage)[start:].numpy())


def written(name: str, arguments: tuple) -> bytes:
    """A call as other_processor.cpp reads it, on one thread."""
    parts = [struct.pack("<q", len(name)), name.encode(), struct.pack("<q", len(arguments) + 1)]
    for value in (*arguments, 1):
        if value is None:
            parts.append(b"n")
        elif isinstance(value, float):
            parts += [b"f", struct.pack("<f", value)]
        elif isinstance(value, int):
            parts += [b"i", struct.pack("<q", value)]
        else:
            data = stored(value) if isinstance(value, Tensor) else struct.pack(f"<{len(value)}q", *value)
            parts += [b"p", struct.pack("<q", len(data)), data]
    return b"".join(parts)


@pytest.fixture
def recorded(monkeypatch):
    """Calls of the library from here on, and what each left in its tensors."""
    taken, original = [], calls.call

    def call(name, *arguments, work):
        asked = written(name, arguments)
        result = original(name, *arguments, work=1)
        taken.append((name, asked, [(x.dtype, stored(x)) if isinstance(x, Tensor) else x for x in arguments]))
        return result

    for module in {*kernels.MODULES["native"].values(), "kernels.cpu.attention", "kernels.cpu.cross_entropy", calls.__name__}:
        module = importlib.import_module(module)
        if hasattr(module, "call"):
            monkeypatch.setattr(module, "call", call)
    monkeypatch.setenv("ULTRAMEM_KERNELS", "native")
    return taken


def use_everything():
    check_product_topm(native, 300, 42)
    check_tucker_gradients(2, 2, 12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        check_weighted_lookup(native, LOOKUPS[2], dtype, tolerance)
        check_row_dot(native, 6, 9, 2, 5, dtype, tolerance)
        check_linear(dtype, 2**-8, 7, 33)
        check_experts(dtype, 70, 3, 9, 26, 13, True)
        check_experts(dtype, 70, 3, 9, 26, 13, False)
        x, gain, turn = numbers(2, 9, 6, 10, dtype=dtype), numbers(10, seed=1), numbers(9, 10, seed=2)
        gradients(lambda x, a, turn=turn: torch.cat(kernels.heads(x, a, a, turn, turn, 2), 1), x, gain)
        gradients(lambda x, a: kernels.swiglu(kernels.rms_norm(x, a, 1e-5)), x, gain)
    gradients(causal_attention, *numbers(3, 2, 2, 70, 8, dtype=torch.bfloat16))
    check_cross_entropy(32, 1.0)
    scores = numbers(5, 90)
    scores[1, 7] = scores[2, ::3] = torch.nan
    native.topm(scores, 20)


@needs_compiler
@needs_emulator
def test_neon_gives_the_same_numbers(recorded, tmp_path):
    use_everything()
    program, file, results = tmp_path / "program", tmp_path / "calls", tmp_path / "results"
    flags = [flag for flag in build.BASE_FLAGS if flag not in ("-shared", "-fPIC", "-O3")]
    include = Path(torch.__file__).with_name("include")
    source = Path(__file__).with_name("other_processor.cpp")
    defines = ["-DCPU_CAPABILITY_DEFAULT", "-DCPU_CAPABILITY=DEFAULT", f"-I{include}", "-Wno-psabi"]
    subprocess.run([COMPILER, "-O2", "-static", *flags, *defines, str(source), "-o", str(program)], check=True)
    file.write_bytes(b"".join(asked for _, asked, _ in recorded))
    subprocess.run([EMULATOR, str(program), str(file), str(results)], check=True)
    found, place = results.read_bytes(), 0
    assert len({name for name, _, _ in recorded}) >= 30
    for name, _, arguments in recorded:
        for argument in arguments:
            if isinstance(argument, tuple) and isinstance(argument[0], torch.dtype):
                dtype, wanted = argument
                got = found[place : place + len(wanted)]
                place += len(wanted)
                assert len(got) == len(wanted), name
                agree(name, dtype, got, wanted)
            elif isinstance(argument, tuple):
                place += 8 * len(argument)
    assert place == len(found)


def agree(name, dtype, got, wanted):
    if not wanted:
        return
    got, wanted = (torch.frombuffer(bytearray(x), dtype=dtype) for x in (got, wanted))
    if dtype.is_floating_point:
        scale = wanted.float().nan_to_num().abs().max().item()
        tolerance = 2**-6 if dtype == torch.bfloat16 or "bf16" in name else 1e-5
        torch.testing.assert_close(
            got, wanted, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )
    else:
        assert torch.equal(got, wanted), name
