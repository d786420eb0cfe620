"""The report's answer to its own question, in words made from the tables: loss, tokens, decoding, memory size, confidence.

Every sentence has a form for each result that the tables may hold, an interval that includes zero among them.
"""

from collections.abc import Iterable, Iterator

import pandas as pd

from evals.claims.evidence.times import speedups
from evals.decode import decision
from evals.laws.points import TOKENS
from evals.stats import Interval
from evals.stats.pairs import apart
from reports import published
from reports.contrast import by_seed, seed_noise
from reports.decision import MEASURED, WORDS, Decision, arms, changes, decide, spoken
from reports.page import Results, span
from reports.ranking import FEWEST, Ranking, leaders, ranking, role
from reports.style import look, si
from reports.timings import SETTING, timings

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BATCH = 16  # where a step is neither a single user's nor a full server's; another is taken if it was not timed


def answer(results: Results) -> Iterator[tuple[str, str]]:
    """(topic, sentences), each only if it was measured."""
    for topic, words in _answers(results):
        yield topic, words[0].upper() + words[1:]


def _answers(results: Results) -> Iterator[tuple[str, str]]:
    at = ranking(results)
    if at:
        yield "Loss", _loss(results, at)
        yield "Tokens", _tokens(results, at)
    if "latency" in results:
        found = decide(results)
        if isinstance(found, Decision):
            yield "Decoding", _choice(found)
        if said := _pace(results, at.lowest("memory") if at else None):
            yield "Time of a step", said
    if at:
        yield "Memory size", _memory_size(results, at)
        yield "Confidence", _confidence(results, at)


def _loss(results: Results, at: Ranking) -> str:
    """Who is lowest at the size of the ranking, against whom, and whether the other sizes agree."""
    best, runner_up = at.means.index[:2]
    rivals = [runner_up, "moe8" if "moe8" in at.means else at.lowest("moe"), at.lowest("dense"), at.lowest("memory")]
    rivals = [arch for arch in dict.fromkeys(rivals) if arch and arch != best]
    gaps = {arch: at.gap(results, arch, best) for arch in rivals}
    n = gaps[runner_up].n
    seeds = f"{_count(n)} seed{'s' * (n > 1)}" + ", 95 % intervals" * gaps[runner_up].bounded
    where = f"at {_where(at)}"
    memory, moe = at.lowest("memory"), at.lowest("moe")
    ahead = {True: "a memory layer", False: "a mixture of experts"}.get(_sign(at.gap(results, moe, memory)))
    verdict = f"On loss {ahead} is ahead, at this scale" if ahead else "Memory and experts are not told apart on loss"
    if at.seeds < FEWEST:
        verdict, first = "One seed ranks nobody", f"{where} {_name(best)} has the lowest test loss, {at.means[best]:.3f}, "
        rest = _listed(_against(arch, gap) for arch, gap in gaps.items())
    elif _sign(gaps[runner_up]):
        first = f"lowest test loss {where}: {_name(best)} {at.means[best]:.3f}, "
        rest = _listed(_against(arch, gap) for arch, gap in gaps.items())
    else:
        first = f"{where} the lowest two, {_name(best)} {at.means[best]:.3f} and {_name(runner_up)} "
        first += f"{at.means[runner_up]:.3f}, are not told apart ({_gap(gaps[runner_up])})"
        others = _listed(_against(arch, gap) for arch, gap in gaps.items() if arch != runner_up)
        rest = f"; {_name(best)} is {others}" if others else ""
    return " ".join(filter(None, [f"{verdict}: {first}{rest} ({seeds}).", _left_out(results, at), _sizes(results, best)]))


def _tokens(results: Results, at: Ranking) -> str:
    """The best memory against the best mixture of experts at each budget of tokens that both have at one size."""
    runs = arms(results, TOKENS)
    pair = [at.lowest(what, set(runs["arch"])) or "" for what in ("memory", "moe")]
    ours, theirs = (dict(list(runs[runs["arch"] == arch].groupby("tokens"))) for arch in pair)
    budgets = sorted(ours.keys() & theirs.keys())
    if len(budgets) < 2:
        budget = span(results.grid["tokens"] / results.grid["active_params"], "{:.2g}".format)
        return f"one budget of tokens was compared at each size ({budget} a parameter), whether more change the order is open."
    noise = seed_noise(results)
    gaps = [apart(by_seed(theirs[tokens]), by_seed(ours[tokens]), noise) for tokens in budgets]
    memory, moe = map(_name, pair)
    said = _listed(f"{_gap(gap)} at {si(tokens)}" for gap, tokens in zip(gaps, budgets, strict=True))
    lead = {
        frozenset([True]): f"{memory} stays ahead of {moe} with",
        frozenset([False]): f"{moe} stays ahead of {memory} with",
        frozenset([True, None]): f"{memory} is ahead of {moe} or not told apart from it, by",
        frozenset([False, None]): f"{moe} is ahead of {memory} or not told apart from it, by",
        frozenset([None]): f"{memory} and {moe} are not told apart with",
    }.get(frozenset(map(_sign, gaps)), f"which of {memory} and {moe} is ahead changes with")
    where = runs["d_model"].iloc[0]
    return f"{lead} the tokens of a run, each with a schedule of its own: at d_model {where} {memory} is {said} below {moe}."


def _where(at: Ranking) -> str:
    sparse = at.runs[at.runs["arch"] != decision.DENSE]
    sizes = f"{si(at.runs['active_params'].mean())} activated and {si(sparse['params'].mean())} stored parameters"
    return f"d_model {at.runs['d_model'].iloc[0]} ({sizes}, {span(at.runs['tokens'], si)} tokens)"


def _against(arch: str, gap: Interval) -> str:
    """'0.099 [0.061, 0.137] below MoE-8', or that the two are not told apart."""
    if _sign(gap) or not gap.bounded:
        return f"{_gap(gap)} below {_name(arch)}"
    return f"not told apart from {_name(arch)} ({_gap(gap)} below)"


def _left_out(results: Results, at: Ranking) -> str:
    """Those with too few seeds to be ranked, and whether one would have led."""
    if not at.left_out:
        return ""
    here = results.grid[results.grid["size"] == at.size].groupby("arch")["test_loss"].mean()
    lower = [arch for arch in at.left_out if here[arch] < at.means[at.best]]
    more = f", although the loss of {_listed(_name(arch) for arch in lower)} is lower" * bool(lower)
    names = _listed(_name(arch) for arch in at.left_out)
    return f"{names} {'has' if len(at.left_out) == 1 else 'have'} one seed there and no rank{more}."


def _sizes(results: Results, best: str) -> str:
    """At how many sizes the same architecture has the lowest mean, and whether the sizes agree."""
    found, name = leaders(results, best), _name(best)
    if len(found) == 1:
        return "No other size was compared."
    single = list(found.loc[found["seeds"] < FEWEST, "size"])
    seeds = f" (one seed of some at {_listed(single)})" if single else ""
    wins = found[found["arch"] == best]
    if len(wins) == len(found):
        return f"{name} has the lowest mean at all {_count(len(found))} sizes{seeds}: the sizes agree."
    others = found[found["arch"] != best]
    rest = others.groupby("arch", sort=False)["size"].agg(list)
    rest = _listed(f"{_name(arch)} at {_listed(sizes)}" for arch, sizes in rest.items())
    have = f"{name} has the lowest mean at {_count(len(wins))} of {_count(len(found))} sizes, {_listed(wins['size'])}"
    sure = list(others.loc[others["told"], "size"])
    agree = f"and at {_listed(sure)} it is told apart" if sure else "but no other lead is told apart from it"
    return f"{have}, {rest}{seeds}: the sizes do not agree, {agree}."


def _choice(found: Decision) -> str:
    """The batch at which the best layer at equal decode time changes, for each variant of the times."""
    ratio = max((cell.row.ratio for cell in found.measured), key=lambda ratio: _archs(found, ratio))
    rows = {name: [cell for cell in cells if cell.row.ratio == ratio] for name, cells in found.cells.items()}
    measured = rows.pop(MEASURED)
    if not any(cell.told for cell in measured):
        lead = "no batch tells a best layer apart"
    elif changes(measured):
        lead = "the best layer changes with the batch"
    else:
        lead = "the best layer is the same at every batch that tells one apart"
    rest = "".join(f"; with {WORDS[name]}, {spoken(cells)}" for name, cells in rows.items() if cells)
    device, dtype = found.timed["device"].iloc[0].partition(":")[0], found.timed["dtype"].iloc[0]
    stored = f"{ratio:.3g} times as many parameters stored as activated"
    return f"At equal decode time ({device}, {dtype}) and {stored} {lead}: {spoken(measured)}{rest}."


def _archs(found: Decision, ratio: float) -> int:
    return max(len(cell.standings) for cell in found.measured if cell.row.ratio == ratio)


def _memory_size(results: Results, at: Ranking) -> str:
    """The best layer by loss at each ratio of stored over activated parameters."""
    rows, noise = decision.rows(results.grid, arms(results), at.size), seed_noise(results)
    if len(rows) < 2:
        sparse = at.runs[at.runs["arch"] != decision.DENSE]
        ratio = sparse["params"].mean() / sparse["active_params"].mean()
        stored = f"{si(sparse['params'].mean())} parameters, {ratio:.3g} times the activated ones"
        return (
            f"one memory size was compared ({stored}); whether a larger or smaller one would change the ranking is open here."
        )
    said, told = [], set()
    for row in rows:
        order = sorted(row.losses, key=lambda arch: sum(row.losses[arch].values()) / len(row.losses[arch]))
        gap = apart(row.losses[order[1]], row.losses[order[0]], noise)
        names = [_name(arch) for arch in order[:2]]
        sure = _sign(gap)
        told |= {names[0]} if sure else set()
        who = names[0] if sure else f"none ({' and '.join(names)} are not told apart)"
        said.append(f"{who} at {row.ratio:.3g} times the activated parameters")
    lead = {
        0: "no memory size tells a best layer by loss apart",
        1: "the best layer by loss does not change where one is told apart",
    }
    return f"{lead.get(len(told), 'the best layer by loss changes with the parameters stored')}: {_listed(said)}."


def _confidence(results: Results, at: Ranking) -> str:
    """Seeds, sizes, device and scale, and that this is not the papers' scale."""
    grid, found = results.grid, leaders(results, at.best)
    repeated = int((found["seeds"] >= FEWEST).sum())
    most = int(at.runs.groupby("arch")["seed"].nunique().max())
    seeds = f"{_count(at.seeds)}{f' to {_count(most)}' * (most > at.seeds)} seed{'s' * (most > 1)} of each layer ranked"
    seeds += (
        f", {_count(repeated) if repeated else 'none'} of {_count(len(found))} size{'s' * (len(found) > 1)} with all repeated"
    )
    budget = span(grid["tokens"] / grid["active_params"], "{:.2g}".format)
    scale = f"{span(grid['active_params'], si)} activated parameters, {budget} training tokens for each"
    papers = float(published.losses()["active_params"].min())
    times = papers / float(grid["active_params"].max())
    far = (
        f"The papers' smallest model is {times:,.0f} times larger: this says what happens here, not there." if times > 2 else ""
    )
    devices = "; ".join(sorted(grid["device"].unique()))
    paired = "Intervals are paired by seed and not corrected for the number of comparisons." if at.seeds >= FEWEST else ""
    return " ".join(filter(None, [f"{seeds}; {scale}, on {devices}.", paired, far]))


def _sign(gap: Interval) -> bool | None:
    return True if gap.bounded and gap.low > 0 else False if gap.bounded and gap.high < 0 else None


def _gap(gap: Interval) -> str:
    ends = f" [{gap.low:.3f}, {gap.high:.3f}]" if gap.bounded else ""
    return f"{gap.value:.3f}{ends}".replace("-", "−")


def _name(arch: str) -> str:
    """An architecture in a sentence."""
    return look(arch).label if role(arch) != "dense" else "dense"


def _listed(words: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _pace(results: Results, memory: str | None) -> str | None:
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
