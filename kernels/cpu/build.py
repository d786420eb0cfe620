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

SOURCES = Path(__file__).with_name("src")
MAIN = SOURCES / "library.cpp"  # includes the others
BASE_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in order: an old compiler may not know the processor, a compiler without OpenMP gives one thread.
EXTRA_FLAGS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native",),
    (),
)


class BuildError(RuntimeError):
    """No shared library could be made; the message says why in one line."""


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)  # type: ignore[return-value]  # not None: see the line above
    raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache_dir() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultramem"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without HOME and without an entry in passwd
        return Path(tempfile.mkdtemp(prefix="ultramem-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="ultramem-"))


def build() -> Path:
    """Path of the shared library, compiled unless cached. Safe when several processes build at once.

    Raises BuildError when no compiler is found or none of the flag sets compiles.
    """
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    sources = (path.read_text() for path in sorted(SOURCES.iterdir()))
    identity = "\0".join((*sources, version, _processor(), repr((BASE_FLAGS, EXTRA_FLAGS))))
    target = _cache_dir() / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    for flags in EXTRA_FLAGS:
        handle, partial = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        command = [compiler, *BASE_FLAGS, *flags, str(MAIN), "-o", partial]
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
