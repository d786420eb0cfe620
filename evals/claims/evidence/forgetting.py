"""What a trained model forgets while it is taught new facts in several ways, at equal learning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from evals import stats
from evals.claims.evidence.results import Evidence, NotTested, Results, metric, of_seeds

WAYS = ("full", "lora", "slots")
FORGOTTEN = {"text": ("text_change", 1.0), "old facts": ("old_change", -100.0)}  # nats/token, and points


def forgetting(table: pd.DataFrame, arch: str, what: str) -> dict[str, dict[int, float]]:
    """Way -> seed -> what was forgotten where the way knew the table's level of the new facts; of the seeds at which all of the
    architecture's ways did.

    Args:
        what: "text" in nats/token, or "old facts" in points.
    """
    column, factor = FORGOTTEN[what]
    rows = table[(table.kind == "level") & (table.arch == arch)]
    everywhere = rows.groupby("seed").reached.all()
    rows = rows[rows.seed.map(everywhere).astype(bool)]
    return {way: dict(zip(here.seed, factor * here[column], strict=True)) for way, here in rows.groupby("way")}


def against_least(found: dict[str, dict[int, float]], of: str, against: Sequence[str]) -> stats.Interval:
    """What `of` forgets minus what the way among `against` does that forgets least at a seed, paired by seed."""
    least = {seed: min(found[way][seed] for way in against) for seed in found[of]}
    return stats.difference(found[of], least)


@metric
def forgotten(results: Results, arch: str, what: str, of: str = "slots", against: Sequence[str] = ("full", "lora")) -> Evidence:
    """What one way of teaching forgets minus what the least forgetful of others does, at equal learning.

    Args:
        what: "text" in nats/token, or "old facts" in points.
    """
    table = results.table("forgetting")
    rows = table[(table.kind == "level") & (table.arch == arch)]
    if missing := [way for way in (of, *against) if way not in set(rows.way)]:
        raise NotTested(f"forgetting.csv has no {arch} taught by {', '.join(missing)}")
    short = sorted({f"{row.way} of seed {row.seed}" for row in rows.itertuples() if not row.reached})
    found, level = forgetting(table, arch, what), f"{rows.level.iloc[0]:.0%} of the new facts"
    if not found:
        raise NotTested(f"not at equal learning: {', '.join(short)} never knew {level}")
    note = f"at {level}" + (f", without the seeds of {', '.join(short)}, which never knew them" if short else "")
    return of_seeds(against_least(found, of, against), rows.run[rows.seed.isin(found[of])].unique(), note)
