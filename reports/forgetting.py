"""What trained models forget while they are taught new facts: all parameters, LoRA, or chosen rows of the value tables."""

from collections.abc import Iterator

import pandas as pd

from evals import stats
from evals.claims.evidence.forgetting import FORGOTTEN, WAYS, against_least
from evals.claims.evidence.forgetting import forgetting as forgotten
from reports import figures
from reports.page import Cell, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.style import in_order, interval, look

NAMES = {"full": "all parameters", "lora": "LoRA", "slots": "slots alone"}
UNITS = {"text": ("nats on held-out text", "+.3f"), "old facts": ("points of the old facts", "+.1f")}


def forgetting(results: Results) -> Iterator:
    """A sentence for each architecture, the curves, every way at equal learning, and the rates that were tried."""
    if "forgetting" not in results:
        yield results.missing("forgetting")
        return
    frame = results["forgetting"]
    archs, level = in_order(frame["arch"]), frame["level"].iloc[0]
    runs = results.runs[results.runs["run"].isin(frame["run"])]
    context, badges = results.context(runs), kinds(runs["device"])
    yield Text(
        "New people are described to a trained model until it knows their facts; compared is what each way to teach them costs "
        f"of what the model knew, at equal learning: where the curve first knows {level:.0%} of the new facts. “Slots alone” "
        "trains only those rows of the value tables that the new facts read often and the training text rarely (TF-IDF of "
        "reads). Every way was tried with as many learning rates, with other people and on validation text. A model that knew "
        "too few of the old facts first read on about them, for all ways alike."
    )
    yield from (Text(sentence(frame, arch)) for arch in archs)
    words = "Change of the loss on held-out text (top: up is forgotten) and old facts known (bottom: down is forgotten) by "
    words += "the share of the new facts known, a line a seed: solid all parameters, dashed LoRA, dotted slots alone."
    yield Picture("forgetting.csv", words, context, list(_panels(results, frame, archs)), archs, badges)
    yield _compared(frame, archs, context, badges)
    yield _rates(results, frame, archs, context, badges)


def sentence(frame: pd.DataFrame, arch: str) -> str:
    """What each way forgets, and whether slots alone forget less than the better of the others."""
    name, here = look(arch).label, frame[(frame["arch"] == arch) & (frame["kind"] == "level")]
    short = sorted({NAMES[way] for way in here.loc[~here["reached"].astype(bool), "way"]}, key=list(NAMES.values()).index)
    missed = f" ({', '.join(short)} did not get there with every seed)" if short else ""
    parts = []
    for what, (unit, form) in UNITS.items():
        found = forgotten(frame, arch, what)
        if not found:
            return f"{name} was not compared: no seed learned enough in every way{missed}."
        means = {way: stats.mean(list(found[way].values())).value for way in WAYS if way in found}
        each = ", ".join(f"{signed(mean, form)} by {NAMES[way]}" for way, mean in means.items())
        part = f"{each} ({unit})"
        if "slots" in found:
            gap = against_least(found, "slots", [way for way in found if way != "slots"])
            told = "not told apart" if not gap.bounded or gap.low <= 0 <= gap.high else "less" if gap.high < 0 else "more"
            part += f", slots alone against the better of the others {signed(gap.value, form)} "
            part += f"[{interval(gap.low, gap.high, form)}], {told}" if gap.bounded else "(one seed: undecided)"
        parts.append(part)
    return f"{name} forgets {'; '.join(parts)}{missed}."


def signed(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−")


def _panels(results: Results, frame: pd.DataFrame, archs: list[str]) -> Iterator:
    curves = results.linked(frame[frame["kind"] == "curve"])
    curves = curves.sort_values("way", key=lambda ways: ways.map(WAYS.index), kind="stable")
    for column, words in (("text_change", "change of loss (nats/token)"), ("old_known", "old facts known")):
        for arch in archs:
            labels = {"title": look(arch).label, "x_label": "new facts known", "y_label": words}
            here = curves[curves["arch"] == arch]
            yield figures.curves(f"{column}-{arch}", here, "known", column, **labels, by=("arch", "seed", "way"), lines="way")


def _compared(frame: pd.DataFrame, archs: list[str], context: str, badges: tuple[str, ...]) -> Table:
    here, rows = frame[frame["kind"] == "level"], []
    for arch in archs:
        for way in (way for way in WAYS if ((here["arch"] == arch) & (here["way"] == way)).any()):
            these = here[(here["arch"] == arch) & (here["way"] == way)]
            there = these[these["reached"].astype(bool)]
            cells = [number(these["trained"].mean(), ",.0f"), number(these["lr"].iloc[0], ".2g")]
            cells += [Cell(f"{len(there)} of {len(these)}", number=True), number(there["passes"].mean(), ".1f")]
            for what, (column, factor) in FORGOTTEN.items():
                mean = stats.mean(list(factor * there[column])) if len(there) else None
                form = UNITS[what][1]
                cells += [number(mean and mean.value, form), Cell(interval(mean.low, mean.high, form) if mean else "–")]
            rows.append([arch_cell(arch), Cell(NAMES[way]), *cells])
    words = "Each way at equal learning, mean over the seeds that got there: what was forgotten of held-out text (rise of the "
    words += "loss) and of the old facts (points), with 95 % intervals over seeds. Trained: parameters that may change."
    header = ["architecture", "way", "trained", "rate", "seeds there", "passes", "text (nats/token)", "95 % interval"]
    return Table("forgetting.csv", words, context, [*header, "old facts (points)", "95 % interval"], rows, badges)


def _rates(results: Results, frame: pd.DataFrame, archs: list[str], context: str, badges: tuple[str, ...]) -> Table:
    tried = frame[frame["kind"] == "tuning"]
    order = [(archs.index(row.arch), WAYS.index(row.way), row.lr) for row in tried.itertuples()]
    tried = tried.assign(order=order).sort_values("order")
    names = ["arch", "way", "lr", "optimizer", "reached", "passes", "known", "text_change", "chosen", "edge", "run"]
    words = "The rates that were tried, on validation text and with people of their own; chosen is the one that forgets least "
    words += "where it knows as much. On an edge: it was the lowest or highest tried, so that a better one may lie beyond."
    return Table("forgetting.csv", words, context, *results.listing("forgetting", tried, names), badges, tall=True)
