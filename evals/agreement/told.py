"""What a comparison comes to: a sentence, lines of text, a page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jinja2

from evals.agreement.findings import FINAL, STATUSES, TIGHT, Finding


def reproduced(findings: list[Finding]) -> bool:
    """Nothing differs, there is a final loss to compare, and each was shown to agree."""
    losses = _losses(findings)
    return bool(losses) and all(f.status == "agree" for f in losses) and not any(f.status == "differ" for f in findings)


def _losses(findings: list[Finding]) -> list[Finding]:
    """Comparisons of the loss that is reported: on test, where both folders have it."""
    by_column = ([f for f in findings if f.table == "runs" and f.column == column and f.a + f.b] for column in FINAL)
    return next(filter(None, by_column), [])


def sentence(findings: list[Finding]) -> str:
    """Whether it reproduced, by what, and what was not compared, in one line."""
    losses, counts = _losses(findings), Counter(f.status for f in findings)
    good = sum(f.status == "agree" for f in losses)
    if not losses:
        parts = ["not reproduced: the two folders share no run that has a final loss"]
    elif reproduced(findings):
        how = "to the last digit" if all(f.a == f.b for f in losses) else f"({_rules(losses)})"
        parts = [f"reproduced: all {good} losses agree {how}" if good > 1 else f"reproduced: the one loss agrees {how}"]
    else:
        tables = Counter(f.table for f in findings if f.status == "differ")
        where = f" ({', '.join(f'{table} {n:,}' for table, n in tables.items())})" if tables else ""
        parts = [f"not reproduced: {counts['differ']:,} of {_compared(counts):,} comparisons differ{where}"]
        parts.append(f"{good} of {len(losses)} losses agree")
        if unsure := sum(f.status == "undecided" for f in losses):
            parts.append(f"{unsure} of them cannot be told to agree or to differ")
    parts.append(f"{counts['agree']:,} comparisons agree")
    if scores := sum(f.status == "undecided" and f.table == "evals" for f in findings):
        parts.append(f"{scores:,} scores have too few runs or items to decide")
    rows = Counter(f.table for f in findings if f.status == "one side" and f.key)
    alone = [f"{_number(n, 'row')} of {table}" for table, n in rows.items()]
    alone += [f"all of {f.table}" for f in findings if f.status == "one side" and not f.key]
    if alone:
        parts.append(f"in one folder only: {', '.join(alone)}")
    if counts["note"]:
        parts.append(f"{_number(counts['note'], 'note')} that count for neither")
    return "; ".join(parts)


def _compared(counts: Counter) -> int:
    return sum(counts[status] for status in ("agree", "undecided", "differ"))


def _rules(losses: list[Finding]) -> str:
    return ", ".join(sorted({f"within {TIGHT:.1%}" if f.rule == "tight" else f.rule.partition(":")[0] for f in losses}))


def _number(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"


def summary(findings: list[Finding], names: tuple[str, str], limit: int = 20) -> str:
    """Counts by table, the first findings of each status that is not agree, and last of all the sentence."""
    counts = Counter((finding.table, finding.status) for finding in findings)
    lines = [f"{'table':16s}" + "".join(f"{status:>10s}" for status in STATUSES)]
    for table in dict.fromkeys(finding.table for finding in findings):
        lines.append(f"{table:16s}" + "".join(f"{counts[table, status]:10d}" for status in STATUSES))
    for status in STATUSES[:-1]:
        odd = [f for f in findings if f.status == status]
        for f in odd[:limit]:
            if status == "one side":
                lines.append(f"only in {names[f.a != 'there']}: {f.table} {f.key or '(the whole table)'}")
            else:
                lines.append(f"{status}: {f.table} {f.key} {f.column}: {f.a or 'empty'} against {f.b or 'empty'} ({f.rule})")
        if len(odd) > limit:
            lines.append(f"{status}: and {len(odd) - limit:,} more")
    return "\n".join([*lines, sentence(findings)])


def page(findings: list[Finding], names: tuple[str, str], limit: int = 2000) -> str:
    """What does not agree, as one HTML file that loads nothing."""
    odd = sorted((f for f in findings if f.status != "agree"), key=lambda f: STATUSES.index(f.status))
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return made.from_string(template).render(
        names=names,
        sentence=sentence(findings),
        head=("status", "table", "key", "column", *names, "rule"),
        rows=[(f.status, f.table, f.key, f.column, f.a, f.b, f.rule) for f in odd[:limit]],
        more=len(odd) - limit,
    )
