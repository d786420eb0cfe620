"""When the rules of the rulings were written down, whether that was before the runs that they judge, and what changed since."""

from collections.abc import Iterator

import pandas as pd

from evals.claims.decided import Decided
from reports.page import Cell, Results, Table, Text

FILE = "evals/claims/decided.yaml"


def decided(results: Results, rules: Decided) -> Iterator:
    """One sentence, then what was decided and each change of it as a table."""
    yield Text(sentence(results, rules))
    changes = [(f"{change.date:%Y-%m-%d}", change.commit[:10], change.what, change.why) for change in rules.changes]
    first = f"{rules.date:%Y-%m-%d}" if rules.date else "–", (rules.commit or "–")[:10]
    words = [(*first, f"{name}: {said}", "the rule") for name, said in vars(rules.rules).items()]
    rows = [
        [Cell(date), Cell(commit, kind="code"), Cell(what, kind="prose"), Cell(why, kind="prose")]
        for date, commit, what, why in [*words, *changes]
    ]
    caption = "What was decided before the runs, and every change after it with its reason."
    yield Table(FILE, caption, "", ["date", "commit", "what", "why"], rows, cards=True)


def sentence(results: Results, rules: Decided) -> str:
    """Which commit wrote the rules down, whether before the first run, and how much has changed; not decided is said too."""
    if rules.commit is None or rules.date is None:
        return (
            f"The rules of these rulings are not decided yet: {FILE} names no commit, so nothing shows that a threshold was "
            "chosen before its result was known."
        )
    lead = f"The rules were committed as {rules.commit[:10]} on {rules.date:%Y-%m-%d %H:%M %Z}"
    runs = results.runs[results.runs["preset"] == rules.preset]
    started = pd.to_datetime(runs["started"], utc=True, format="ISO8601", errors="coerce").dropna()
    if runs.empty:
        order = f"; this folder holds no run of the preset {rules.preset}, which they judge"
    elif started.empty:
        order = f"; no run of the preset {rules.preset} says when it started, so nothing shows which came first"
    elif started.min() > rules.date:
        order = f", before the first run of the preset {rules.preset} started on {started.min():%Y-%m-%d %H:%M %Z}"
    else:
        order = (
            f", AFTER the first run of the preset {rules.preset} started on {started.min():%Y-%m-%d %H:%M %Z}: "
            f"{(started <= rules.date).sum()} of {len(runs)} runs are older than the rules that judge them"
        )
    n = len(rules.changes)
    since = "nothing of them has changed" if not n else f"{n} change{'s' * (n > 1)} of them. " + ". ".join(_listed(rules))
    return f"{lead}{order}; since then {since}."


def _listed(rules: Decided) -> Iterator[str]:
    for change in rules.changes:
        what, why = (words.strip().rstrip(".") for words in (change.what, change.why))
        yield f"{change.date:%Y-%m-%d} ({change.commit[:10]}): {what}. Reason: {why}"
