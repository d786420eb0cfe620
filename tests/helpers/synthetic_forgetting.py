"""Made-up rows of the table `forgetting` whose answer is known."""

from synthetic import row

WAYS = {"full": (0.4, 0.3), "lora": (0.2, 0.2), "slots": (0.05, 0.1)}  # nats of text and share of the old facts, forgotten


def forgetting(archs=("dense", "ultramem"), seeds=3, ways=WAYS, short=(), level=0.7):
    """Curves, levels and trials; `short` names (arch, way, seed) that never know enough. Other seeds forget 0.01 more each."""
    for arch in archs:
        for way, (text, old) in ways.items():
            if way == "slots" and arch == "dense":
                continue
            for rate in (1e-3, 3e-3, 9e-3):
                tried = {"lr": rate, "chosen": rate == 3e-3, "edge": False, "text_change": text + abs(rate - 3e-3)}
                yield one(arch, way, 0, level, kind="tuning", known=level, **tried)
            for seed in range(seeds):
                reached, more = (arch, way, seed) not in short, 0.01 * seed
                for passes, known in enumerate((0.1, 0.5, 0.9 if reached else 0.5)):
                    gone = {"text_change": passes * text / 2, "old_known": 0.8 - passes * old / 2}
                    yield one(arch, way, seed, level, kind="curve", known=known, passes=3.0 * passes, reached=reached, **gone)
                gone = {"text_change": text + more, "old_change": -old - more, "old_known": 0.8 - old - more}
                yield one(arch, way, seed, level, kind="level", known=level if reached else 0.5, reached=reached, **gone)


def one(arch, way, seed, level, **values):
    named = {"run": f"{arch}-d64-s{seed}", "arch": arch, "size": "d64", "seed": seed, "way": way, "level": level}
    same = {"lr": 3e-3, "optimizer": "adamw", "trained": 1000, "reached": True, "passes": 9.0}
    return row("forgetting", **(named | same | values))
