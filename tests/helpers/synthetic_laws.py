"""What follows from a made-up results folder: counts of parts, fits, rankings and gains, of few resamples."""

from pathlib import Path

from synthetic import row
from synthetic_folder import ARCHS, SIZES

from evals.laws import fits
from evals.records import schema

PARTS = {"embedding": 1.1, "head": 1.1, "attention": 0.3, "attention scores": 0.3, "ffn": 0.5, "norm": 0.01}
MEMORY = {"addressing": 0.1, "projection": 0.07, "table": 0.02, "selection": 0.04}
MIXTURE = {"router": 0.1, "table": 0.09}
JOINT = {"E": 2.0, "A": 1.0, "alpha": 0.4, "B": 1.2, "beta": 0.3, "N0": 8e5, "D0": 2e6}


def write(path: Path) -> None:
    """Adds the tables to a folder with runs and arms; three sizes carry no law, so the joint one of MoE-8 is made up."""
    counts = []
    for size, d_model in SIZES.items():
        for arch in ARCHS:
            own = {"ffn": 0.69} if arch == "dense" else MIXTURE if arch.startswith("moe") else MEMORY
            for part, share in (PARTS | own).items():
                flops = round(share * 2 * 12 * d_model**2 * 4)
                counts.append(row("counting", size=size, arch=arch, part=part, flops=flops, active_params=flops // 2))
    schema.write(path / "counting.csv", "counting", counts)
    found = fits.tables(path, resamples=2)
    found["fits"] = [fit for fit in found["fits"] if (fit["fit"], fit["arch"]) != ("joint", "moe8")]
    about = {"fit": "joint", "arch": "moe8", "stands": True, "form": "L = E + A (N/N0)^-alpha + B (D/D0)^-beta"}
    about |= {"n_runs": 5, "n_points": 5, "objective": 1e-5, "starts": 25, "agree": 24, "worst_residual": -0.01}
    about |= {"worst_run": "moe8-d64-s0", "held_out": "d256", "predicted": 3.9, "predicted_low": 3.8, "predicted_high": 4.0}
    about |= {"truth": 3.95, "statement": "a power law of 5 runs"}
    for name, value in JOINT.items():
        ends = {} if name in ("N0", "D0") else {"low": 0.9 * value, "high": 1.1 * value}
        found["fits"].append(about | {"parameter": name, "value": value} | ends)
    for chain, arch, run in (("", "ultramem", "ultramem-d128-s0"), ("ultramem", "ultramem", "ultramem.1-d64-s0")):
        size, step = run.split("-")[1], {"chain": chain, "step": "s1", "label": "+rm softmax"} if chain else {}
        gain = {"arch": arch, "size": size, "curve": "sizes", "loss": 4.0, "flops": 1e12, "dense_flops": 1.5e12, "ratio": 1.5}
        gain |= {"ratio_low": 1.2, "ratio_high": 1.9, "core_seconds": 300.0, "dense_core_seconds": 270.0, "speedup": 0.9}
        gain |= {"speedup_low": 0.7, "speedup_high": 1.1, "beyond": bool(chain), "runs": run, "n": 1}
        gain |= {"step_ratio": 1.1, "step_low": 1.0, "step_high": 1.2} if chain else {}
        found["equivalents"].append(row("equivalents", **(step | gain), statement="dense would need 1.50 times the compute"))
    for name, rows in found.items():
        schema.write(path / f"{name}.csv", name, rows)
