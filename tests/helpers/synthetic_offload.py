"""Made-up tables of decoding with value tables larger than memory."""

from synthetic import row

DEVICE = "CPU: Synthetic 9000"
MEMORIES = ("pkm", "ultramem", "ultramem_v2")


def tables() -> dict[str, list[dict]]:
    """Rows of the four tables: half the bits is half the file, and 4 bits cost a run of PKM the most."""
    found: dict[str, list[dict]] = {name: [] for name in ("offload", "offload_disk", "offload_hits", "offload_loss")}
    for size in (1e9, 4e9):
        for bits in (16, 8, 4):
            same = {"run": "ultramem-d64-s0", "arch": "ultramem", "table_bytes": size, "bits": bits, "limit_bytes": size / 4}
            same |= {"file_bytes": size * bits / 16, "rows": int(size / 1024), "rows_read": 63.0, "bytes_read": 4e3 * bits}
            for kind in ("text", "uniform"):
                for state in ("cold", "warm"):
                    for ahead in (True, False):
                        ms = (5 if ahead else 20) * (2 if state == "cold" else 1) * (1 if kind == "text" else 2)
                        told = {"addresses": kind, "state": state, "ahead": ahead, "limit": "pages dropped", "n_tokens": 300}
                        told |= {"tokens_per_s": 1e3 / ms, "p50_ms": ms, "p99_ms": 3.0 * ms, "bytes_disk": 1e5, "disk_ms": 2.0}
                        told |= {"resident_bytes": 6e8, "cached_bytes": size / 4, "kind": "measured", "device": DEVICE}
                        found["offload"].append(row("offload", **same, **told, tokens_before=0))
            phone = {"addresses": "text", "state": "warm", "ahead": True, "kind": "modelled", "device": "phone: made up"}
            phone |= {"tokens_per_s": 50.0, "p50_ms": 20.0, "source": "a made-up data sheet", "limit": "pages dropped"}
            found["offload"].append(row("offload", **same, **phone))
            disk = {"table_bytes": size, "bits": bits, "file_bytes": size * bits / 16, "device": DEVICE, "how": "O_DIRECT"}
            reads = (("random", 4096, 1, 4e7), ("random", 4096, 32, 4e8), ("in order", 2**20, 1, 2e9))
            for pattern, each, depth, rate in reads:
                read = {"pattern": pattern, "bytes_each": each, "depth": depth, "bytes_per_s": rate}
                found["offload_disk"].append(row("offload_disk", **disk, **read))
    for place, arch in enumerate(MEMORIES):
        about = {"run": f"{arch}-d64-s0", "arch": arch, "size": "d64", "seed": 0}
        for share, rate in ((0.01, 0.3), (0.05, 0.6), (0.25, 0.9)):
            for kind, hit in (("text", rate - 0.05 * place), ("uniform", share)):
                given = {"addresses": kind, "share": share, "hit_rate": hit, "rows": 16384, "capacity": int(16384 * share)}
                found["offload_hits"].append(row("offload_hits", **about, **given))
        for bits, delta in ((32, None), (16, 0.0), (8, 0.0003), (4, 0.02 - 0.005 * place)):
            given = {"bits": bits, "loss": 4.4 + (delta or 0), "delta": delta, "stderr": delta and 0.1 * delta}
            found["offload_loss"].append(row("offload_loss", **about, **given, table_bytes=1e6 * bits / 32))
    return found
