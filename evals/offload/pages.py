"""The page cache of a mapped file: what of it is in memory, dropping it, and holding it below a limit.

What limits the page cache is a memory cgroup. RLIMIT_AS counts mappings, so it would refuse the table itself, and RLIMIT_RSS
does nothing in Linux. So the process that decodes is started in a scope of its own where systemd gives one (cgroup v2) and
lowers its memory.max; where not, it drops, between two tokens, the least recently read pages of the table that go beyond the
limit (MADV_DONTNEED and POSIX_FADV_DONTNEED), which is what the kernel's reclaim approximates. Folders of cgroups that belong
to somebody else are left alone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.rows import PAGE, RowFile

CGROUPS = Path("/sys/fs/cgroup")
UNIT = "ultramem-offload"
CGROUP, DROPPED, WHOLE = "cgroup v2", "pages dropped", "table fits"


def resident(file: RowFile) -> int:
    """Bytes of a mapped file that are in the page cache."""
    pages = -(-len(file.map) // PAGE)
    there = (ctypes.c_ubyte * pages)()
    if ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(file.bytes_X.data_ptr()), ctypes.c_size_t(len(file.map)), there
    ):
        raise OSError(ctypes.get_errno(), "mincore")
    return PAGE * int((np.frombuffer(bytes(there), np.uint8) & 1).sum())


class Cache:
    """The pages of a mapped file, at most `limit` bytes of them where they are `dropped` here."""

    def __init__(self, file: RowFile, limit: int, dropped: bool):
        self.file, self.most, self.dropped = file, limit // PAGE, dropped
        self.pages: OrderedDict[int, None] = OrderedDict()
        self.descriptor = os.open(file.path, os.O_RDONLY)

    def close(self) -> None:
        os.close(self.descriptor)

    def drop(self, page: int, pages: int) -> None:
        self.file.map.madvise(mmap.MADV_DONTNEED, page * PAGE, pages * PAGE)
        os.posix_fadvise(self.descriptor, page * PAGE, pages * PAGE, os.POSIX_FADV_DONTNEED)

    def empty(self) -> None:
        """Nothing of the file is in memory afterwards."""
        os.fsync(self.descriptor)
        self.drop(0, -(-len(self.file.map) // PAGE))
        self.pages.clear()

    def read(self, pages: Iterable[int]) -> None:
        """Notes that these pages were read just now, and keeps to the limit."""
        if not self.dropped:
            return
        for page in pages:
            self.pages[page] = None
            self.pages.move_to_end(page)
        while len(self.pages) > self.most:
            self.drop(self.pages.popitem(last=False)[0], 1)

    @property
    def full(self) -> bool:
        """Whether more cannot be held; unknown to a cgroup's process, which asks the kernel."""
        return len(self.pages) >= self.most if self.dropped else resident(self.file) >= 0.95 * self.most * PAGE


def launcher() -> list[str]:
    """Words before a command that put it into a scope of its own, whose memory.max it may lower; none without systemd."""
    if not (shutil.which("systemd-run") and (CGROUPS / "cgroup.controllers").exists()):
        return []
    words = [
        "systemd-run",
        *([] if os.geteuid() == 0 else ["--user"]),
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={UNIT}-{os.getpid()}",
    ]
    words += ["-p", "Delegate=yes", "-p", "MemorySwapMax=0"]
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []


def own_cgroup(root: Path = CGROUPS, told: str = "/proc/self/cgroup") -> Path | None:
    """The folder of this process's cgroup v2, if it is a scope that `launcher` made."""
    try:
        line = next(line for line in Path(told).read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    folder = root / line[3:].strip().lstrip("/")
    return folder if folder.name.startswith(UNIT) and (folder / "memory.max").exists() else None


def limit(n_bytes: int, folder: Path | None) -> str:
    """Lets this process have `n_bytes` more than it has now, page cache included; says by what, or that pages are dropped."""
    if folder is not None:
        try:
            now = int((folder / "memory.current").read_text())
            (folder / "memory.max").write_text(str(now + n_bytes))
            return CGROUP
        except (OSError, ValueError):
            pass
    return DROPPED
