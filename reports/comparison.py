"""Two results folders side by side: whether they agree, their losses and verdicts, and all that differs."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from evals.agreement.findings import STATUSES, Finding
from evals.agreement.told import sentence
from evals.compare import compare
from reports import figures
from reports.claims import SIGNS
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number
from reports.scaling import by_size
from reports.style import in_order, interval

SHOWN = 1000


def comparison(here: Results, there: Results) -> Iterator:
    """What `evals.compare` finds, then losses, curves and verdicts of both.

    Raises:
        UserError: one of the two holds no runs.
    """
    findings = compare(here.folder, there.folder)
    a, b = here.folder.name, there.folder.name
    told = sentence(findings)
    yield Text(f"{told[0].upper()}{told[1:]}.", "answer", f"{a} against {b}")
    yield from _losses(here, there, a, b)
    yield from _verdicts(here, there, a, b)
    yield from _counts(findings, a, b)
    yield from _odd(here, findings, a, b)


def _losses(here: Results, there: Results, a: str, b: str) -> Iterator:
    """The loss table of both, a column each, and both in one picture."""
    sizes = [size for size in here.sizes if size in there.sizes] or list(dict.fromkeys([*here.sizes, *there.sizes]))
    archs = in_order([*here.archs, *there.archs])
    if not archs:
        yield Missing(f"Neither {a} nor {b} holds a finished run of a comparison.")
        return
    header, rows = ["architecture"], []
    for size in sizes:
        header += [f"{size}, {a}", f"{size}, {b}", "difference"]
    for arch in archs:
        row = [arch_cell(arch)]
        for size in sizes:
            grids = [side.grid[(side.grid["arch"] == arch) & (side.grid["size"] == size)] for side in (here, there)]
            row += [side.mean(grid, "test_loss") for side, grid in zip((here, there), grids, strict=True)]
            row.append(number(grids[0]["test_loss"].mean() - grids[1]["test_loss"].mean(), "+.3f"))
        rows.append(row)
    both = pd.concat([side.grid for side in (here, there)])
    badges = kinds(both["device"])
    about = f"{a}: {here.context(here.grid)} — {b}: {there.context(there.grid)}"
    yield Table(
        "runs.csv",
        f"Test loss in nats per token of {a} and {b}, mean ± standard deviation over seeds, and the difference of the means, "
        f"{a} minus {b}. Configs and data may differ: what differs is listed below.",
        about,
        header,
        rows,
        badges,
    )
    frames = []
    for name, side in ((a, here), (b, there)):
        frame, labels = by_size(side, "active_params")
        if len(frame):
            frames.append(side.linked(frame).assign(folder=name))
    low, high = min(frame["low"].min() for frame in frames), max(frame["high"].max() for frame in frames)
    room = 0.05 * (high - low or 1.0)
    panels = [
        figures.curves(
            f"beside-{place}",
            frame,
            "active_params",
            "loss",
            title=frame["folder"].iloc[0],
            x_label="activated parameters",
            y_range=(low - room, high + room),
            **labels,
        )
        for place, frame in enumerate(frames)
    ]
    words = f"Test loss by size, {a} beside {b}, on one scale; shaded from the lowest to the highest seed."
    yield Picture("runs.csv", words, about, panels, archs, badges)


def _verdicts(here: Results, there: Results, a: str, b: str) -> Iterator:
    """Every claim that one of the two could test, with what either says."""
    if "claims" not in here or "claims" not in there:
        yield Missing(f"No verdicts side by side: {a if 'claims' not in here else b} holds no claims.csv.")
        return
    left, right = (side["claims"].set_index("id") for side in (here, there))
    rows = []
    for name in [*left.index, *right.index.difference(left.index)]:
        sides = [frame.loc[name] if name in frame.index else None for frame in (left, right)]
        if all(side is None or side["verdict"] == "not tested" for side in sides):
            continue
        cells = [Cell(name, href=f"#claim-{name}" if name in left.index else None)]
        cells.append(Cell(next(side["statement"] for side in sides if side is not None), kind="prose"))
        for side in sides:
            if side is None:
                cells += [Cell("–")] * 3
                continue
            word = side["verdict"]
            cells.append(Cell(f"{SIGNS[word]} {word}", word, kind=word.replace(" ", "-")))
            cells += [number(side["value"], ".4g"), Cell(interval(side["ci_low"], side["ci_high"], ".3g"))]
        words = [side["verdict"] for side in sides if side is not None]
        told = "one side" if len(words) < 2 else "the same" if words[0] == words[1] else "differs"
        rows.append([*cells, Cell(told)])
    changed = sum(row[-1].text == "differs" for row in rows)
    pairs = (f"{word}, {name}" for name in (a, b) for word in ("verdict", "value", "95 % interval"))
    header = ["id", "claim", *pairs, "verdicts"]
    yield Table(
        "claims.csv",
        f"Claims that {a} or {b} tests, {len(rows)} of them; on {changed} their verdicts differ. Intervals come from repeated "
        "seeds, so a verdict may change with the number of seeds alone.",
        "",
        header,
        rows,
        searchable=True,
        tall=True,
        cards=True,
    )


def _counts(findings: list[Finding], a: str, b: str) -> Iterator:
    counts = Counter((one.table, one.status) for one in findings)
    rows = [
        [Cell(f"{table}.csv"), *(number(counts[table, status] or None, "d") for status in STATUSES)]
        for table in dict.fromkeys(one.table for one in findings)
    ]
    yield Table(
        "every table of both",
        f"Comparisons by outcome, as python -m evals.compare {a} {b} makes them: counts and hashes exactly, losses of equal "
        "hardware to 0.1 %, of other by equivalence, times as ratios. Undecided: too few runs or items; one side: a row or "
        "table of one folder alone; note: told, and counted for neither.",
        "",
        ["table", *STATUSES],
        rows,
    )


def _odd(here: Results, findings: list[Finding], a: str, b: str) -> Iterator:
    """What does not agree, cell by cell."""
    odd = sorted((one for one in findings if one.status != "agree"), key=lambda one: STATUSES.index(one.status))
    if not odd:
        return
    rows = []
    for one in odd[:SHOWN]:
        run = next((word for word in one.key.split() if here.href(word)), "")
        rows.append(
            [
                Cell(one.status, one.status, kind="not-reproduced" if one.status == "differ" else "not-tested"),
                Cell(one.table),
                Cell(one.key or "the whole table", href=here.href(run) if run else None, kind="brief"),
                Cell(one.column or "–"),
                _value(one.a),
                _value(one.b),
                Cell(one.rule, kind="brief"),
            ]
        )
    more = f"; the first {SHOWN:,} of {len(odd):,}, the rest by python -m evals.compare" if len(odd) > SHOWN else ""
    yield Table(
        "every table of both",
        f"What does not agree, the worst first{more}.",
        "",
        ["status", "table", "row", "column", a, b, "rule"],
        rows,
        filters=tuple(word for word in STATUSES if any(one.status == word for one in odd)),
        searchable=True,
        tall=True,
        cards=True,
    )


def _value(text: str) -> Cell:
    """A cell of a CSV, numbers to five digits; the whole is what sorts and what is saved."""
    try:
        value = float(text)
    except ValueError:
        return Cell(text or "–", kind="brief")
    return Cell(f"{value:.5g}".replace("-", "−"), value, number=True)
