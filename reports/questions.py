"""Questions that neither paper answers, each in a sentence: gap to MoE-8 with tokens, memory's share, where memory helps."""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.page import Cell, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.placebos import compared, says
from reports.style import in_order, interval, look, si

KINDS = {"answered": "chosen", "underpowered": "underpowered", "not tested": "not-tested"}
BY = {
    "reads": "how often training read the rows that a token reads",
    "frequency": "how often the target stands in the training text",
    "reads at equal frequency": "reads among targets of equal frequency",
}


def _one(frame: pd.DataFrame, quantity: str) -> pd.Series | None:
    found = frame[frame["quantity"] == quantity]
    return found.iloc[0] if len(found) else None


def _with(row: pd.Series, form: str = "+.3f") -> str:
    """A value with its interval."""
    bounds = ", ".join("unbounded" if pd.isna(x) else f"{x:{form}}" for x in (row["ci_low"], row["ci_high"]))
    return f"{row['value']:{form}} [{bounds}]".replace("-", "−")


def _seeds(n: float) -> str:
    return f"{int(n)} seed{'s' * bool(n > 1)}"


def gap(frame: pd.DataFrame, arch: str) -> str:
    """Whether an architecture closes its gap to MoE-8 with tokens."""
    here, name = frame[(frame["question"] == "gap") & (frame["arch"] == arch)], look(arch).label
    slope, crossing, factor = (_one(here, quantity) for quantity in ("slope", "crossing", "factor of tokens"))
    if slope is None or slope["state"] == "not tested":
        return f"Whether {name} closes its gap to MoE-8 with tokens is not tested{_why(slope)}."
    budgets = here.loc[here["quantity"] == "gap", "at"]
    said = f"{name}'s gap to MoE-8 changes by {_with(slope)} nats for ten times the tokens ({len(budgets)} budgets from "
    said += f"{si(budgets.min())} to {si(budgets.max())} tokens, {_seeds(slope['n'])}; {slope['reason']}): "
    if slope["state"] == "underpowered":
        ways = [_seeds(slope["n_needed"])] if pd.notna(slope["n_needed"]) else []
        ways += [f"one more budget of {si(factor['value'])} times the largest"] if factor is not None else []
        return said + f"that is not told from zero{', and ' + ' or '.join(ways) + ' would tell' if ways else ''}."
    said += "it closes" if slope["value"] < 0 else "it grows"
    if crossing is None or pd.isna(crossing["value"]):
        below = crossing is not None and crossing["reason"] == "already below"
        return said + (
            f", and {name} is below MoE-8 already at the largest budget." if below else ", and no crossing is ahead."
        )
    ends = ", ".join("unbounded" if pd.isna(x) else si(x) for x in (crossing["ci_low"], crossing["ci_high"]))
    return said + f", and the line crosses zero at {si(crossing['value'])} tokens [{ends}]."


def split(frame: pd.DataFrame) -> str:
    """What share of the sparse parameters should be memory."""
    here = frame[frame["question"] == "split"]
    best, parabola = _one(here, "best share"), _one(here, "minimum of a parabola")
    if best is None or best["state"] == "not tested":
        return f"What share of the sparse parameters should be memory is not tested{_why(best)}."
    said = f"Of the shares that were run, the best for memory is {_with(best, '.0%')} of the sparse parameters "
    said += f"({_seeds(best['n'])}"
    said += (
        f"; a parabola has its minimum at {_with(parabola, '.0%')})"
        if parabola is not None
        else "; no parabola has one inside)"
    )
    ends = []
    for name in ("experts alone", "memory alone"):
        if (row := _one(here, f"best against {name}")) is not None:
            told = "told apart" if row["state"] == "answered" else "not told apart"
            if pd.notna(row["n_needed"]):
                told += f", {_seeds(row['n_needed'])} would"
            ends.append(f"{_with(row)} nats against {name} ({told})")
    return said + f": {' and '.join(ends)}." if ends else said + "."


def where(frame: pd.DataFrame, arch: str) -> str:
    """Where a memory helps, by how often the rows that a token reads were read, and by frequency."""
    here = frame[(frame["question"] == "where") & (frame["arch"] == arch)]
    parts = []
    for by, words in (("reads", "whose rows training read"), ("frequency", "whose target the training text has")):
        first, last = (_one(here, f"{place} fifth by {by}") for place in ("first", "last"))
        change = _one(here, f"last minus first fifth by {by}")
        if first is not None and last is not None and change is not None:
            equal = _one(here, f"last minus first fifth by {by} at equal frequency")
            part = f"{last['value']:+.3f} nats on the fifth of test tokens {words} most often and {first['value']:+.3f} on "
            part += f"that of the rarest (difference {_with(change)}, {change['state']}"
            parts.append(part + (f"; at equal frequency {_with(equal)})" if equal is not None else ")"))
    name = look(arch).label
    return f"{name} gains over dense {'; and '.join(parts)}.".replace("-0.", "−0.") if parts else ""


def placebo(results: Results) -> str:
    """Which placebos of its own each memory beats; shuffled addresses, where a tie is expected, aside."""
    plain = [(arch, name, change) for arch, name, _, _, change in compared(results) if name != "shuffled"]
    found = [(arch, name, says(change) == "beats it") for arch, name, change in plain if change.bounded]
    if not found:
        why = "one seed and no spread over seeds" if plain else "no placebo has a loss beside its memory's"
        return f"Whether each memory beats its own placebo is not tested: {why}."
    parts = []
    for arch in in_order(arch for arch, *_ in found):
        beaten = {name: beats for one, name, beats in found if one == arch}
        lost = ", ".join(name for name, beats in beaten.items() if not beats)
        parts.append(f"{look(arch).label} {sum(beaten.values())} of {len(beaten)}{f' (not {lost})' if lost else ''}")
    return f"Of its own placebos, shuffled addresses aside, each memory beats: {'; '.join(parts)} (section Placebos)."


def _why(row: pd.Series | None) -> str:
    return f": {row['reason']}" if row is not None and row["reason"] else ""


def questions(results: Results) -> Iterator:
    """A sentence for each answer, pictures of what it stands on, and every number."""
    if "questions" not in results:
        yield from (results.missing(table) for table in ("questions", "where") if table not in results)
        return
    frame = results["questions"]
    for arch in in_order(frame.loc[frame["question"] == "gap", "arch"]):
        yield Text(gap(frame, arch))
    yield Text(split(frame))
    told = [where(frame, arch) for arch in in_order(frame.loc[frame["quantity"] == "last fifth by reads", "arch"])]
    told = [words for words in told if words]
    yield from map(Text, told or ["Where a memory helps is not tested: no run kept its losses on single tokens."])
    yield Text(placebo(results))
    runs = results.runs[results.runs["run"].isin(" ".join(frame["runs"]).split())]
    context, badges = results.context(runs), kinds(runs["device"])
    if panels := list(_panels(frame)):
        words = "Left: test loss minus MoE-8's, paired by seed, against training tokens. Right: test loss of a hybrid minus "
        words += "that of experts alone, against memory's share of the sparse parameters. Shaded: 95 % intervals over seeds."
        archs = in_order(frame.loc[frame["question"] != "where", "arch"])
        yield Picture("questions.csv", words, context, panels, archs, badges)
    if "where" in results:
        yield from _gains(results)
    else:
        yield results.missing("where")
    yield _table(results, frame, context, badges)


def _panels(frame: pd.DataFrame) -> Iterator:
    band = {"band": ("ci_low", "ci_high"), "y_label": "nats/token"}
    points = frame[(frame["question"] == "gap") & (frame["quantity"] == "gap")]
    if len(points):
        zero = pd.DataFrame({"arch": ["moe8"], "value": [0.0]})
        labels = {"title": "Gap to MoE-8 (dashed)", "x_label": "training tokens", "log": "x"}
        yield figures.curves("question-gap", points, "at", "value", levels=zero, **labels, **band)
    shares = frame[(frame["question"] == "split") & (frame["quantity"] == "loss against the first")]
    if len(shares):
        alone = shares.iloc[:1].assign(at=0.0, value=0.0, ci_low=0.0, ci_high=0.0)
        shares = pd.concat([alone, shares])
        labels = {"title": "Hybrid minus experts alone", "x_label": "memory's share of the sparse parameters"}
        yield figures.curves("question-split", shares, "at", "value", **labels, **band)


def _gains(results: Results) -> Iterator:
    """The gain over dense in every fifth of the test tokens, at the size and budget that have the most seeds."""
    frame = results["where"]
    n = frame.groupby(["size", "tokens", "d_model"])["n"].max()
    size, tokens, _ = max(n.index, key=lambda place: (n[place], place[2], place[1]))
    here = frame[(frame["size"] == size) & (frame["tokens"] == tokens)]
    runs = results.runs[results.runs["run"].isin(" ".join(here["runs"]).split())]
    panels = []
    shape = {"x_label": "fifth of test tokens, rarest first", "y_label": "gain over dense (nats)"}
    shape |= {"band": ("ci_low", "ci_high")}
    for place, by in enumerate(BY):
        if len(points := here[here["by"] == by]):
            panels.append(figures.curves(f"question-where-{place}", points, "bin", "gain", title=f"By {by}", **shape))
    words = f"Loss of dense minus each architecture's at size {size}, above 0 it helps, by fifths of the test tokens: by "
    words += "; by ".join(BY.values()) + ". Shaded: 95 % intervals over seeds, not over tokens."
    yield Picture("where.csv", words, results.context(runs), panels, in_order(here["arch"]), kinds(runs["device"]))


def _table(results: Results, frame: pd.DataFrame, context: str, badges: tuple[str, ...]) -> Table:
    rows = []
    for row in frame.to_dict("records"):
        links = tuple((run, href) for run in row["runs"].split() if (href := results.href(run)))
        large = row["unit"] == "tokens"
        value = Cell(si(row["value"]), row["value"], number=True) if large else number(row["value"], "+.3f")
        ends = [si(x) for x in (row["ci_low"], row["ci_high"])] if large else []
        spread = Cell(" … ".join(ends)) if large else Cell(interval(row["ci_low"], row["ci_high"], "+.3f"))
        at = Cell("–" if pd.isna(row["at"]) else si(row["at"]), number=True)
        cells = [value, spread, Cell(row["unit"] or "–"), number(row["n"], "d"), number(row["n_needed"], "d")]
        state = Cell(row["state"], title=row["reason"], kind=KINDS[row["state"]])
        end = [state, Cell(row["reason"] or "–", kind="prose"), Cell("" if links else "–", more=links)]
        rows.append([Cell(row["question"]), arch_cell(row["arch"]), Cell(row["quantity"]), at, *cells, *end])
    words = "Every number behind the sentences. “n needed”: seeds that would tell such a value from zero with 80 % power."
    header = ["question", "architecture", "quantity", "at", "value", "95 % interval", "unit", "seeds", "n needed", "state"]
    return Table("questions.csv", words, context, [*header, "remark", "runs"], rows, badges, tall=True)
