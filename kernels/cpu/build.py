"""Builds the C++ library of `src/` at first use and loads it with ctypes.

It is cached under $XDG_CACHE_HOME/ultramem (default ~/.cache/ultramem), named by a hash of sources, compiler, flags and
processor. Without a working compiler `available()` is False, one warning says why, and `kernels` uses reference.py.
`python -m kernels.cpu.build` prints the state.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name("src")
MAIN = SOURCES / "library.cpp"  # includes the others
BASE_FLAGS = ("-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
# By torch's own choice for this processor, which ATEN_CPU_CAPABILITY overrides.
MACHINE_FLAGS = {"AVX512": ("-march=native", "-mprefer-vector-width=512"), "AVX2": ("-march=haswell",)}
# A compiler without OpenMP gives one thread.
THREAD_FLAGS = (("-fopenmp",), ())


class BuildError(RuntimeError):
    """No shared library could be made; the message says why in one line."""


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)  # type: ignore[return-value]  # not None: see the line above
    raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


def _processor(*about: str) -> str:
    """The first line of the system's account of its processors that begins so: by default, its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(about or ("flags", "Features"))), platform.machine())


def _cache_dir() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultramem"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without HOME and without an entry in passwd
        return Path(tempfile.mkdtemp(prefix="ultramem-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="ultramem-"))


def _capability() -> str:
    """The instruction set that torch's own kernels use here: AVX512, AVX2 or DEFAULT (NEON on ARM)."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in MACHINE_FLAGS else "DEFAULT"


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32: matrix registers (AMX), or AMD's AVX-512.

    Intel's AVX-512 takes two cycles for a bfloat16 product (74 against 131 GFLOP/s on a Xeon whose AMX is hidden), and without
    the instruction oneDNN emulates it (28 with AVX-512, 1 to 13 with AVX2): float32 of rounded operands is faster there.
    """
    if _capability() != "AVX512" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return torch.cpu._is_amx_tile_supported() or "AuthenticAMD" in _processor("vendor_id")


def _torch_flags() -> tuple[str, ...]:
    capability = _capability()
    include = Path(torch.__file__).with_name("include")
    defines = (f"-DCPU_CAPABILITY_{capability}", f"-DCPU_CAPABILITY={capability}")
    kernels = ("-DUKERNELS",) if multiplies_bf16() else ()
    return (*MACHINE_FLAGS.get(capability, ("-march=native",)), *defines, *kernels, f"-I{include}")


def _libraries() -> tuple[str, ...]:
    folder = Path(torch.__file__).with_name("lib")
    return (f"-L{folder}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder}")


def build() -> Path:
    """Path of the shared library, compiled unless cached. Safe when several processes build at once.

    Raises BuildError when no compiler is found or none of the flag sets compiles.
    """
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    sources = (path.read_text() for path in sorted(SOURCES.iterdir()))
    flags = (*BASE_FLAGS, *_torch_flags())
    identity = "\0".join((*sources, version, _processor(), torch.__version__, repr((flags, THREAD_FLAGS))))
    target = _cache_dir() / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    for threads in THREAD_FLAGS:
        handle, partial = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        command = [compiler, *flags, *threads, str(MAIN), "-o", partial, *_libraries()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            os.replace(partial, target)
            return target
        os.unlink(partial)
    complaint = next(iter(done.stderr.strip().splitlines()), "no message")
    raise BuildError(f"{compiler} cannot compile {MAIN.name}: {complaint}")


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as problem:
        warnings.warn(f"kernels: the C++ path is off, plain torch is used instead ({problem})", stacklevel=2)
        return None


def available() -> bool:
    """Whether the C++ library could be built and loaded; builds it on the first call."""
    return _library() is not None


def loaded() -> ctypes.CDLL:
    """The library, built where it is not yet; raises BuildError when it cannot be."""
    if not available():
        raise BuildError("the C++ kernels are not available; unset ULTRAMEM_KERNELS or install a C++ compiler")
    return _library()  # type: ignore[return-value]  # not None: available


if __name__ == "__main__":
    print(f"native kernels: {'built, ' + str(build()) if available() else 'off, plain torch is used'}")
