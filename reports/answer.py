"""The report's answer to its own question, in two sentences made from the tables, each with its confidence."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.evidence.times import speedups
from evals.stats import Interval
from reports.contrast import by_seed, contrast
from reports.page import Results
from reports.style import look
from reports.timings import SETTING, timings

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BATCH = 16  # where a step is neither a single user's nor a full server's; another is taken if it was not timed


def answer(results: Results) -> Iterator[str]:
    """One sentence on loss and one on decoding, each only if it was measured."""
    found = _best(results)
    if found:
        yield _loss(results, *found)
    if "latency" in results and (said := _decoding(results, found[0] if found else None)):
        yield said


def role(arch: str) -> str:
    """`dense`, `moe` or `memory`; `other` is none of them and has no part in the answer."""
    return look(arch).role


def _best(results: Results) -> tuple[str, pd.DataFrame] | None:
    """(the memory that has the lowest test loss at the most sizes, mean losses by size and architecture), if compared."""
    if results.grid.empty:
        return None
    means = results.grid.groupby(["size", "arch"])["test_loss"].mean().unstack().reindex(results.sizes)
    roles = {name: [arch for arch in means if role(arch) == name] for name in ("moe", "memory")}
    if not all(roles.values()):
        return None
    means = means[means[roles["moe"]].notna().any(axis=1) & means[roles["memory"]].notna().any(axis=1)]
    if means.empty:
        return None
    firsts = means.idxmin(axis=1)
    wins = {arch: ((firsts == arch).sum(), means[arch].count(), -means[arch].mean()) for arch in roles["memory"]}
    return max((arch for arch in wins if means[arch].notna().any()), key=wins.get), means


def _loss(results: Results, memory: str, means: pd.DataFrame) -> str:
    size, moe = _where(results, memory, means)
    here = results.grid[results.grid["size"] == size]
    ours, moes = here[here["arch"] == memory], [arch for arch in means if role(arch) == "moe"]
    gap = contrast(results, here[here["arch"] == moe], ours)
    rivals = f"{look(moe).label}{', the best MoE here,' if len(moes) > 1 else ''}"
    told = f"{_gap(gap)} nats below {rivals}"
    dense = contrast(results, here[here["arch"].map(role) == "dense"], ours)
    told += f" and {_gap(dense)} below dense" if dense else ""
    memories = sum(role(arch) == "memory" for arch in means)
    who = look(memory).label + (f", the best of {_count(memories)} memory layers," if memories > 1 else "")
    lead = {True: "Yes on loss, at this scale", False: "No on loss, at this scale"}.get(_sign(gap), "Not told apart on loss")
    first = _first(int((means.idxmin(axis=1) == memory).sum()), len(means))
    width = here["d_model"].iloc[0]
    return (
        f"{lead}: at equal compute and stored parameters {who} has the lowest test loss {first}; at d_model {width} it is "
        f"{told} ({_count(gap.n)} seed{'s' * (gap.n > 1)}{_confidence(gap)})."
    )


def _first(wins: int, n: int) -> str:
    """'at two of three sizes'."""
    if n == 1:
        return "at the one size compared" if wins else "at none of one size compared"
    if wins in (0, n):
        return f"at {'all' if wins else 'none of'} {_count(n)} sizes"
    return f"at {_count(wins)} of {_count(n)} sizes"


def _where(results: Results, memory: str, means: pd.DataFrame) -> tuple[str, str]:
    """(size, its best MoE) with the most seeds on both sides; of equals the largest size."""
    found = []
    for place, (size, line) in enumerate(means[means[memory].notna()].iterrows()):
        moe = line[[arch for arch in means if role(arch) == "moe"]].astype(float).idxmin()
        here = results.grid[results.grid["size"] == size]
        shared = by_seed(here[here["arch"] == memory]).keys() & by_seed(here[here["arch"] == moe]).keys()
        found.append((len(shared), place, size, moe))
    return max(found)[2:]


def _sign(gap: Interval) -> bool | None:
    return True if gap.bounded and gap.low > 0 else False if gap.bounded and gap.high < 0 else None


def _gap(gap: Interval) -> str:
    ends = f" [{gap.low:.3f}, {gap.high:.3f}]" if gap.bounded else ""
    return f"{gap.value:.3f}{ends}".replace("-", "−")


def _confidence(gap: Interval) -> str:
    if not gap.bounded:
        return ", so no interval and no ranking"
    return ", 95 % interval" if gap.n > 1 else ", 95 % interval from the seed noise of the other runs"


def _decoding(results: Results, memory: str | None) -> str | None:
    """The memory's step against that of its MoE, at one batch of the setting that was timed at the most."""
    frame = timings(results)
    frame = frame[(frame["kind"] == "measured") & (frame["variant"] == "plain") & (frame["part"] == "model")]
    frame = frame[frame["phase"] == "decode"]
    pairs = speedups(frame[frame["device"] == frame["device"].min()]) if len(frame) else frame
    if pairs.empty:
        return None
    if memory and (pairs["arch"] == memory).any():
        pairs = pairs[pairs["arch"] == memory]
    settings = [here for _, here in pairs.groupby([*SETTING, "sparse_ratio", "arch"], dropna=False, sort=False)]
    pairs = max(settings, key=lambda here: (here["batch"].nunique(), here["dtype"].iloc[0] == "bf16"))
    row = pairs.iloc[(pairs["batch"] - BATCH).abs().argmin()]
    who, moe = look(row["arch"]).label, look(row["arch_moe"]).label
    even = "" if pd.isna(row["conservative"]) else f", {row['conservative']:.1f}x even if it ran at its roofline"
    if row["value"] <= 1:
        lead = f"{who} does not decode faster"
    elif row["conservative"] > 1:
        lead = f"{who} decodes faster than a mixture of experts with as many parameters"
    else:
        lead = f"{who} decodes faster than our mixture of experts, which shows nothing of a perfect one"
    counted = row["bytes_counted_moe"] / row["bytes_counted"]
    reads = "" if pd.isna(counted) else f", and reads {counted:.1f}x the bytes"
    values, batches = pairs["value"], pairs["batch"]
    span = f"{values.min():.1f}x to {values.max():.1f}x over batches {batches.min()} to {batches.max()}"
    where = f"{row['device'].partition(':')[0]}, {row['dtype']}, p20 to p80 in brackets"
    return (
        f"{lead}: at batch {row['batch']} {moe} takes {row['value']:.1f}x [{row['low']:.1f}, {row['high']:.1f}] as long{even}"
        f"{reads} ({span}; {where})."
    )


def _count(n: int) -> str:
    return NUMBERS[n] if n < len(NUMBERS) else str(n)
