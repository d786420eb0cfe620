"""Made-up losses over four sizes and decode times over batches, for the tests of the report's answer and decision chart.

Dense falls by `SLOPE` for ten times the activated parameters; the others lie where a test puts them.
"""

from synthetic import grid_run, row

SLOPE = 1.0
SIZES = {"d32": 10**4, "d64": 10**5, "d128": 10**6, "d256": 10**7}  # activated parameters
SHIFTS = (0.0, 0.10, -0.05)  # of three seeds, alike for every architecture
RATIO = 6.0
BATCHES = (1, 16, 256)


def losses(gaps: dict[str, float], seeds: dict[str, int] | int = 3, jitter: float = 0.004, **at_size: dict[str, float]) -> list:
    """Runs of every size: dense's line plus the architecture's gap, `at_size` (`d64={...}`) in place of it there.

    Args:
        seeds: of each architecture, or of each size.
        jitter: what a seed adds to one architecture alone (nats), the sign alternating.
    """
    found = []
    for place, (size, active) in enumerate(SIZES.items()):
        for rank, (arch, gap) in enumerate(({"dense": 0.0} | gaps | at_size.get(size, {})).items()):
            n = seeds if isinstance(seeds, int) else seeds.get(arch, seeds.get(size, 3))
            for seed in range(n):
                own = jitter * (-1) ** (rank * seed + place + seed // 2)
                loss = 5.0 - SLOPE * place + gap + SHIFTS[seed] + own
                params = active if arch == "dense" else int(RATIO * active)
                shape = {"d_model": int(size[1:]), "active_params": active, "params": params, "tokens": 10 * active}
                found.append(grid_run(arch, size, seed, val_loss=9 - loss, test_loss=loss, **shape))
    return found


def timed(arch: str, batch: int, ms: float, ratio: float = 12.0, part: str = "model", **more) -> dict:
    same = {"phase": "decode", "variant": "plain", "kind": "measured", "device": "CPU: made up", "threads": 1, "size": "decode"}
    spread = {"p20_ms": 0.999 * ms, "p50_ms": ms, "p80_ms": 1.001 * ms, "n_iters": 9, "predicted_ms": ms / 2}
    where = {"arch": arch, "batch": batch, "sparse_ratio": 0.0 if arch == "dense" else ratio, "part": part, "dtype": "bf16"}
    return row("latency", **(same | spread | where | {"run": "", "bytes_counted": 1e6 * ms} | more))


def latency(paces: dict[str, float | tuple[float, ...]], ratio: float = RATIO, **more) -> list:
    """Whole-model times at `BATCHES`: dense takes 10 ms, each other that many times as long, at all batches or each its own."""
    found = []
    for arch, pace in ({"dense": 1.0} | paces).items():
        each = pace if isinstance(pace, tuple) else (pace,) * len(BATCHES)
        found += [timed(arch, batch, 10.0 * times, ratio, **more) for batch, times in zip(BATCHES, each, strict=True)]
    return found


def sparsity(ratios: dict[float, dict[str, float]], size: str = "d64", seeds: int = 3) -> tuple[list, list]:
    """(runs, arms) of the chain `sparsity`: test losses by ratio of stored parameters and architecture."""
    runs, arms, active = [], [], SIZES[size]
    for order, (ratio, by_arch) in enumerate(ratios.items()):
        for arch, loss in by_arch.items():
            for seed in range(seeds):
                shape = {"d_model": int(size[1:]), "active_params": active, "params": int(ratio * active)}
                run = f"sparsity.{arch}-{ratio:g}-{size}-s{seed}"
                runs.append(grid_run(arch, size, seed, run=run, val_loss=1.0, test_loss=loss + SHIFTS[seed], **shape))
                step = {"step": f"{arch}-{ratio:g}", "order": order, "label": f"{arch}, {ratio:g}x", "set": "{}", "run": run}
                arms.append(row("arms", chain="sparsity", kind="sweep", **step))
    return runs, arms
