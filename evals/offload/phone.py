"""What a phone would do with the reads that were measured here: modelled, from published rates; nothing ran on one.

    a token = max(weights / memory rate, pages / storage rate) where rows are asked for ahead, their sum where not

Weights are those that every token reads, in bfloat16 at the peak rate of the memory; pages are those that the measured cell
had read from the disk. What a token takes beyond (products, selection, the system's own work) is left out: these are lower
bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

DEVICE = "phone: Snapdragon 8 Gen 3, LPDDR5X, UFS 4.0"
MEMORY = 76.8e9  # bytes/s: 64 bits at 9600 MT/s
STORAGE = 450e6  # bytes/s of random reads of 4 KB
SOURCE = (
    "memory: LPDDR5X at 4800 MHz, four channels of 16 bits (Qualcomm, Snapdragon 8 Gen 3 product brief), peak; "
    "storage: UFS 4.0, random reads of 4 KB (Xue et al. 2024, PowerInfer-2, arXiv:2406.06282, section 2.3)"
)


def rows(measured: Iterable[dict], weight_bytes: float) -> Iterator[dict]:
    """Modelled rows of the table `offload`, one for each measured row that knows what it had from the disk."""
    for row in measured:
        if row["bytes_disk"] is None:
            continue
        memory_s, storage_s = weight_bytes / MEMORY, row["bytes_disk"] / STORAGE
        seconds = max(memory_s, storage_s) if row["ahead"] else memory_s + storage_s
        kept = ("run", "arch", "table_bytes", "file_bytes", "rows", "bits", "addresses", "state", "ahead", "limit_bytes")
        kept += ("limit", "rows_read", "bytes_read", "bytes_disk")
        yield {name: row[name] for name in kept} | {
            "tokens_per_s": 1 / seconds,
            "p50_ms": 1e3 * seconds,
            "disk_ms": 1e3 * storage_s,
            "kind": "modelled",
            "device": DEVICE,
            "source": SOURCE,
        }
