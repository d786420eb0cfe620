"""A made-up results folder with every table, for the tests of the report: six architectures, three sizes, chains, times."""

import json
import math
import random
from collections import defaultdict
from pathlib import Path

from synthetic import row

from evals.records import schema

ARCHS = ("dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2")
SIZES = {"d64": 64, "d128": 128, "d256": 256}
DEVICE = "CPU: Synthetic 9000"
STEPS = {
    "ultramem": ("+rm softmax", "+half vdim+proj", "+share query", "+split big mem&skip", "+IVE", "+TDQKR"),
    "ultramem_v2": ("+memory in every block", "+one projector", "+PEER values", "+variance-matched init"),
}
VERDICTS = next(column.choices for column in schema.columns("claims") if column.name == "verdict")


def run_row(run: str, arch: str, size: str, seed: int, loss: float, **change) -> dict:
    d_model = SIZES[size]
    active = 12 * d_model**2 * 4
    params = active if arch == "dense" else 12 * active
    made = {"run": run, "preset": "synthetic", "arch": arch, "size": size, "seed": seed, "d_model": d_model, "n_layers": 4}
    made |= {"params": params, "active_params": active, "sparse_params": params - active, "flops_per_token": 2.0 * active}
    made |= {"tokens": 2_000_000, "train_loss": loss - 0.1, "val_loss": loss, "val_bpb": loss / 2.8, "steps": 488}
    made |= {"test_loss": loss, "test_bpb": loss / 2.8, "value_optimizer": "" if arch in ("dense", "moe2", "moe8") else "rows"}
    made |= {"tokens_per_s": 9e5 / d_model, "core_seconds": 2.2 * d_model, "wall_s": 2.3 * d_model, "precision": "bf16"}
    made |= {"device": DEVICE, "status": "finished", "config_sha": "c0ffee" * 8, "git_commit": "0123456789abcdef" * 2}
    return row("runs", **(made | {"threads": 1, "git_dirty": False} | change))


def _comparison(tables: dict, seeds: int, noise: random.Random) -> None:
    for place, (size, d_model) in enumerate(SIZES.items()):
        for rank, arch in enumerate(ARCHS):
            active = 12 * d_model**2 * 4
            counts = {"preset": "synthetic", "size": size, "arch": arch, "params": 12 * active, "active_params": active}
            counts |= {
                "sparse_params": 11 * active,
                "flops_per_token": 2.0 * active,
                "flops_mismatch": noise.uniform(-0.01, 0.01),
            }
            counts |= {} if arch == "dense" else {"params_mismatch": noise.uniform(-0.02, 0.02), "memory_share": 0.2}
            tables["matched_compute"].append(row("matched_compute", **counts, role="matched", trained=True))
            if arch == "dense":
                tables["matched_compute"].append(row("matched_compute", **counts, role="comparator", trained=False))
            for seed in range(seeds):
                run, loss = f"{arch}-{size}-s{seed}", 4.6 - 0.35 * place - 0.06 * rank + noise.gauss(0, 0.01)
                tables["runs"].append(run_row(run, arch, size, seed, loss))
                _curves(tables, run, rank, loss)
                _scores(tables, run, rank, place, loss)
                tables["cost"].append(row("cost", target="train", run=run, core_seconds=2.2 * d_model, tokens=2e6, flops=1e12))
                tables["plan"].append(
                    row("plan", run=run, arch=arch, size=size, tokens=2_000_000, predicted_core_s=2.0 * d_model)
                )


def _curves(tables: dict, run: str, rank: int, end: float) -> None:
    for step in range(1, 489, 2):
        point = {"run": run, "step": step, "tokens": step * 4096, "loss": end + 4 * step**-0.6}
        tables["train"].append(row("train", **point, split="train"))
    for step in (122, 244, 366, 488):
        for source, shift in (("all", 0), ("wiki", 0.1), ("dictionary", -0.2), ("code docs", -0.4)):
            point = {"run": run, "step": step, "tokens": step * 4096, "loss": end + 4 * step**-0.6 + shift}
            tables["train"].append(row("train", **point, split="validation", source=source))
        for metric in ("share of values used", "KL from uniform") * (rank > 0):
            for layer in range(4):
                value = 1 - math.exp(-step / 200) + 0.05 * layer + 0.02 * rank
                tables["health"].append(row("health", run=run, step=step, layer=layer, metric=metric, value=value))


def _scores(tables: dict, run: str, rank: int, place: int, loss: float) -> None:
    def score(task, metric, value, chance=None, better=True, stderr=0.02):
        given = {"run": run, "task": task, "metric": metric, "value": value, "chance": chance, "stderr": stderr, "n": 500}
        tables["evals"].append(row("evals", **given, higher_is_better=better, n_shot=0))

    for task, metric, chance in (("arc_easy", "acc", 0.25), ("piqa", "acc", 0.5), ("sciq", "len_norm", 0.25)):
        score(task, metric, chance + 0.02 * rank + 0.01 * place, chance)
        score(task, "bits_per_byte", 1.4 - 0.01 * rank, 4.0, better=False)
    score("lambada", "loss_per_token", 6.0 - 0.1 * rank, 8.3, better=False)
    for split in ("validation", "test"):
        for source in ("wiki", "dictionary", "all"):
            score(f"perplexity {split}/{source}", "loss_per_token", loss, 8.3, better=False, stderr=0.01)
            score(f"perplexity {split}/{source}", "bits_per_byte", loss / 2.8, 4.0, better=False, stderr=0.01)
    for task, levels in (("phone_book", (4, 8, 16)), ("variable_tracking", (1, 2, 3))):
        for level in ("", *levels):
            name, ease = (f"{task}/{level}", 1 / level) if level else (task, 0.3)
            score(name, "acc", 0.2 + 0.1 * rank * ease, 0.2)
    score("bios", "acc", 0.2 + 0.03 * rank, 0.2)
    score("bios", "bits_per_parameter", 0.001 * rank, 0.0, stderr=0.0001)
    score("corpus_facts", "len_norm", 0.25 + 0.01 * rank, 0.25)


def _chains(tables: dict, noise: random.Random) -> None:
    def arm(chain, kind, order, label, run, **more):
        given = {
            "chain": chain,
            "kind": kind,
            "step": f"s{order}",
            "order": order,
            "label": label,
            "set": '{"x": 1}',
            "run": run,
        }
        tables["arms"].append(row("arms", **given, **more))

    for chain, steps in STEPS.items():
        loss, paper = 4.5, 2.828
        for order, label in enumerate(("base", *steps)):
            change, published = (noise.gauss(-0.02, 0.02), noise.gauss(-0.012, 0.01)) if order else (0, 0)
            loss, paper, run = loss + change, paper + published, f"{chain}.{order}-d64-s0"
            tables["runs"].append(run_row(run, "ultramem", "d64", 0, loss))
            known = {"paper_train_loss": paper - 0.2, "paper_val_loss": paper} | (
                {"paper_delta_val": published} if order else {}
            )
            arm(chain, "cumulative", order, label, run, **known)
    for order, ratio in enumerate((6, 12, 24, 36)):
        for line, shift in (("m/N fixed", 0.0), ("half as dense", 0.05)):
            run, loss = f"sparsity.{order}-{shift}-d64-s0", 4.5 + shift - 0.1 * math.log10(ratio) + noise.gauss(0, 0.004)
            tables["runs"].append(run_row(run, "ultramem", "d64", 0, loss, sparse_params=12 * 64**2 * 4 * ratio))
            arm("sparsity", "sweep", 2 * order + (shift > 0), f"{line}, {ratio}x", run)
    for order, (share, label) in enumerate(((1, "moe8, 1x"), (0.25, "moe8, 0.25x"), (4, "moe8, 4x"))):
        run = "moe8-d64-s0" if share == 1 else f"scaling_tokens.{order}-d64-s0"
        if share != 1:
            tables["runs"].append(run_row(run, "moe8", "d64", 0, 4.5 - 0.2 * math.log10(share), tokens=int(2e6 * share)))
        arm("scaling_tokens", "sweep", order, label, run)
    for order, (label, arch, loss) in enumerate(
        (
            ("UltraMem", "ultramem", 0),
            ("memory frozen", "ultramem", 0.1),
            ("random router", "moe8", 0.2),
            ("dense, 2x FLOPs", "dense", -0.3),
        )
    ):
        run = f"controls.{order}-d64-s0" if order else "ultramem-d64-s0"
        if order:
            tables["runs"].append(run_row(run, arch, "d64", 0, 4.4 + loss))
            _scores(tables, run, order, 0, 4.4)
        arm("controls", "sweep", order, label, run)


def _times(tables: dict) -> None:
    shared = {
        "phase": "decode",
        "variant": "plain",
        "threads": 1,
        "kind": "measured",
        "device": DEVICE,
        "n_iters": 9,
        "run": "",
    }

    def timed(arch, batch, ratio, dtype, part, **more):
        rank = ARCHS.index(arch)
        slow = {"moe2": 6.0, "moe8": 4.0}.get(arch, 1.0) if 4 <= batch <= 64 else 1.1
        ms = slow * (1 + 0.02 * rank + 0.01 * ratio) * (1 + batch / 40) * (1.0 if part == "model" else 0.5)
        given = {
            "arch": arch,
            "batch": batch,
            "sparse_ratio": ratio,
            "dtype": dtype,
            "part": part,
            "size": "decode",
            "context": 256,
        }
        given |= {"kv": "gqa", "p20_ms": 0.92 * ms, "p50_ms": ms, "p80_ms": 1.1 * ms, "bytes_declared": 1e6 * batch}
        given |= {"predicted_ms": ms / (1.5 if arch == "moe8" and batch == 16 else 1.1), "bytes_counted": 0.9e6 * batch}
        return row("latency", **(shared | given | more))

    modelled = {"kind": "modelled", "context": 2048, "threads": None, "p20_ms": None, "p80_ms": None, "n_iters": None}
    modelled |= {"predicted_ms": None, "bytes_counted": None}
    for rank, arch in enumerate(ARCHS):
        sparse = 0.0 if arch == "dense" else 11.0 + 0.05 * rank
        for batch in (1, 4, 16, 64, 256):
            for part in ("model", "ffn"):
                tables["latency"].append(timed(arch, batch, sparse, "fp32", part))
            tables["latency"].append(timed(arch, batch, sparse, "bf16", "model"))
            for device in ("CUDA: A100", "CUDA: H100"):
                for kv in ("mha", "gqa"):
                    model = {"size": "1.6B", "device": device, "kv": kv}
                    tables["latency_modelled"].append(timed(arch, batch, sparse, "bf16", "model", **modelled, **model))
        for ratio in (3.0, 23.0) if rank else ():
            tables["latency"].append(timed(arch, 64, ratio + 0.05 * rank, "fp32", "model"))
        for kind, routing in (("declared-worst", "worst"), ("declared-expected", "uniform"), ("counted", "trained")):
            for batch in (1, 16, 256):
                for part, kv, context in (("ffn", "none", 0), ("model", "gqa", 256)):
                    read = {"run": f"{arch}-d256-s0", "arch": arch, "size": "d256", "part": part, "kv": kv, "context": context}
                    read |= {"batch": batch, "routing": routing, "kind": kind, "dtype": "fp32", "device": "", "layer": None}
                    read |= {"bytes": 1e6 * (7 - rank) * batch**0.7 * (0.9 if kind == "counted" else 1.0)}
                    tables["access"].append(row("access", **read))
    for variant, gain in (("overlap", 0.9), ("folded", 1.2)):
        plain = timed("ultramem", 64, 11.2, "fp32", "model")
        tables["latency"].append(plain | {"variant": variant, "p50_ms": gain * plain["p50_ms"]})
    speeds = [("read", None, 1.2e10, "bytes/s"), ("gather", 512, 8e9, "bytes/s"), ("launch", None, 2e-6, "s")]
    for quantity, rows, value, unit in [*speeds, ("matmul", 64, 9e10, "FLOPs/s")]:
        made = {"quantity": quantity, "rows": rows, "value": value, "unit": unit}
        tables["machine"].append(row("machine", device=DEVICE, dtype="fp32", threads=1, **made))


def folder(path: Path, seeds: int = 1) -> Path:
    """Every file of a results folder, under `path`; the same every time."""
    noise, tables = random.Random(0), defaultdict(list)
    _comparison(tables, seeds, noise)
    _chains(tables, noise)
    _times(tables)
    for arch in ARCHS:
        for lr in (3e-4, 1e-3, 3e-3):
            run, loss = f"tuning-{arch}-{lr}", 4.5 + 0.1 * math.log10(lr / 1e-3) ** 2 - 0.02 * ARCHS.index(arch)
            tables["runs"].append(run_row(run, arch, "d64", 0, loss, tokens=500_000))
            setting = {"arch": arch, "setting": json.dumps({"lr": lr}), "lr": lr, "init": "paper", "run": run, "val_loss": loss}
            tables["tuning"].append(row("tuning", **setting, chosen=lr == 1e-3))
        for table, impl, ms in (("speed", "ours", 200.0), ("peers", "ours", 2.0), ("peers", "a peer", 5.0)):
            timed = {"benchmark": "training step", "impl": impl, "arch": arch, "d_model": 64, "tokens": 4096, "p50_ms": ms}
            timed |= {
                "ratio": 2.4 - 0.2 * ARCHS.index(arch),
                "versus": "a yardstick",
                "device": DEVICE,
                "p20_ms": ms,
                "p80_ms": ms,
            }
            tables[table].append(row("speed", **timed))
        for part, ms, products in (("attention", 30.0, 9.0), ("rest", 5.0, None)):
            timed = {"arch": arch, "d_model": 64, "part": part, "p50_ms": ms, "product_ms": products, "step_ms": 90.0}
            tables["step"].append(row("step", **timed, device=DEVICE))
    for value, impl in ((16384, "ours"), (65536, "ours"), (16384, "a peer")):
        timed = {"axis": "rows", "value": value, "layer": "PKM", "impl": impl, "us_per_token": 3.5, "exponent": 0.1}
        tables["growth"].append(row("growth", **timed, device=DEVICE))
    for place, verdict in enumerate(VERDICTS * 5):
        claim = {"id": f"C{place + 1}", "paper": ("P1", "P2", "blog")[place % 3], "source": "table 1", "verdict": verdict}
        claim |= {"kind": ("trained", "measured", "modelled", "arithmetic")[place % 4], "test": f"C{place + 1}"}
        claim |= {
            "statement": f"Claim {place}: <b>memory</b> & experts reach the same loss at equal compute.",
            "metric": "a - b",
        }
        claim |= {"reason": "The interval of the paired difference over three seeds holds zero.", "published": "−0.02"}
        found = {
            "value": -0.01,
            "ci_low": -0.03,
            "ci_high": 0.01,
            "n": 3,
            "n_needed": 5,
            "runs": "dense-d64-s0 pkm-d64-s0 elsewhere-s0",
        }
        tables["claims"].append(row("claims", **claim, **(found if verdict != "not tested" else {}), scale="d256, 2 M tokens"))
    for gpus, fits in ((8, "does not fit"), (16, "fits"), (32, "fits")):
        for way, cheaper in (("dimension", True), ("number", False)):
            place = {"model": "UltraMem-1.6B-x12", "arch": "ultramem", "gpus": gpus, "partition": way, "cheaper": cheaper}
            tables["scale"].append(
                row("scale", **place, fits=fits, memory_gb=800.0 / gpus, params=21_000_000_000, device="CUDA: X")
            )
    tables["cost"] += [
        row("cost", target=target, core_seconds=seconds) for target, seconds in (("data", 90.0), ("latency", 240.0))
    ]
    files = {"latency_modelled": "latency", "peers": "speed"}
    said = {"device": "A100", "statement": "UltraMem takes 12 ms", "published": "12 ms", "modelled": "3.0 ms"}
    ruled = {"B1": "holds", "B2": "modelled against"}
    tables["statements"] = [said | {"id": name, "verdict": verdict} for name, verdict in ruled.items()]
    for name, rows in tables.items():
        schema.write(path / f"{name}.csv", files.get(name, name), rows)
    corpus = {"documents": 1000, "bytes": 10**7, "licence": "CC-BY-SA 4.0", "sha256": "ab" * 32}
    sources = dict.fromkeys(("wiki", "dictionary"), corpus)
    (path / "data.json").write_text(json.dumps({"corpus": "bundled", "tokens": 8_123_456, "sources": sources}))
    return path
