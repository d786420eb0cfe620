"""The wheel that pip builds of the repository holds all modules and the sources that kernels are compiled from."""

import shutil
import subprocess
import sys
import zipfile

from repository import FLOORS, ROOT

FILES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def test_the_wheel_holds_modules_and_kernel_sources(tmp_path):
    for name in FLOORS:
        shutil.copytree(ROOT / name, tmp_path / "here" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / "here" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", tmp_path, tmp_path / "here"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("kernels/cpu/src/*", "kernels/**/*.py", "models/*.py", "evals/**/*.py", "evals/**/*.yaml"):
        files = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file()}
        assert files, pattern
        assert files <= held, files - held
