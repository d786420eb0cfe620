"""Made-up runs whose losses follow a known law, for the tests of evals/laws."""

import numpy as np
import pandas as pd
from synthetic import row

SIZES = {"d48": 0.13e6, "d64": 0.23e6, "d96": 0.51e6, "d128": 0.92e6}
SWEEP = (0.25, 0.5, 2.0, 4.0)


def joint(n, d):
    """The law of dense: exponents 0.4 of the size and 0.3 of the tokens."""
    return 2.0 + 0.9 * (n / 3e5) ** -0.4 + 1.6 * (d / 3e6) ** -0.3


def run_row(run, arch, size, n, d, seed, loss, **change):
    """One finished run of n activated parameters and d tokens."""
    made = {"run": run, "arch": arch, "size": size, "seed": seed, "test_loss": loss, "active_params": round(n)}
    made |= {"params": round(6 * n), "sparse_params": round(5 * n), "flops_per_token": 2.0 * n, "tokens": round(d)}
    made |= {"status": "finished", "core_seconds": 1e-12 * n * d, "device": "CPU: made up"}
    return row("runs", **(made | change))


def reference(archs=("dense",), law=joint, noise=0.003, seeds=3, sweep=("dense",), better=0.0):
    """(runs, arms): the grid at ten tokens a parameter, seeds that move all architectures alike and each a little.

    Losses of the second and later architectures are lower by `better` each, as a part.
    """
    rng, runs, arms = np.random.default_rng(3), [], []
    for place, arch in enumerate(archs):
        cells = [(f"{arch}-{size}", size, n, 10 * n) for size, n in SIZES.items()]
        if arch in sweep:
            cells += [(f"scaling_tokens.{arch}-{x:g}x-d64", "d64", SIZES["d64"], 10 * SIZES["d64"] * x) for x in SWEEP]
        for name, size, n, d in cells:
            for seed in range(seeds):
                run, loss = f"{name}-s{seed}", law(n, d) * (1 - better * place) * np.exp(rng.normal(0, noise))
                runs.append(run_row(run, arch, size, n, d, seed, loss))
                if "." in name or (size == "d64" and arch in sweep):
                    times = round(d / 10 / n, 2)
                    label = f"{arch}, {times:g}x"
                    chain = {"chain": "scaling_tokens", "kind": "sweep", "step": label, "order": len(arms)}
                    arms.append(row("arms", **chain, label=label, set="{}", run=run))
    return runs, arms


def frames(runs, arms=()):
    return pd.DataFrame(runs), pd.DataFrame(arms) if len(arms) else None
