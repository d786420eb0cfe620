"""Do two results folders agree?

    python -m evals.compare A B [--out DIR] [--margin NATS]

Rows are matched by their key. What both folders hold is compared, each column by the rule of its kind:

    exact        counts, bytes, hashes of config and data, the plan of an ablation: equal
    tight        losses and health, same hardware and build (device, threads, precision, torch): TIGHT relative
    equivalence  final losses, other hardware or build: the 95 % interval of the difference, paired by run, lies inside
                 +-MARGIN; outside it they differ, across its edge they are undecided
    counted      what trained models ask for, what a GPU's counter says, the size of activations: COUNTED relative
    items        scores, same hardware: TIGHT or one item. Other hardware: equivalence of each task's score, over runs
    ratio        times: never milliseconds, but each architecture's time over that of the yardstick measured beside it
                 (the dense model, or the first architecture), and only on one device. A single time beyond a factor of
                 RATIO, times what p20 to p80 of either side spans, is noise and a note; a curve whose median over at
                 least POINTS batches and contexts moved by more than RATIO differs

Rows and tables that one folder alone holds are listed as such and change nothing: other targets were asked for. Wall
times, versions and dates are not compared; neither are verdicts, which follow from what is compared, nor the speed of a
machine, which is not a result, but a changed verdict and a speed beyond RATIO are listed as notes.

The last line printed is one sentence, `reproduced: ...` or `not reproduced: ...`: nothing differs, and the loss of every
shared model was shown to agree. A score that its items cannot decide is counted in the sentence and decides nothing.

Exit status: 0 reproduced, 1 not, 2 a folder that cannot be used.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from scipy import stats as distributions

from evals import stats
from evals.claims.evidence import SCORES
from evals.records import schema
from evals.records.errors import UserError, run

TIGHT = 1e-3
MARGIN = 0.05  # nats/token: smaller differences take three seeds to rule on, so none of the suite's rulings turns on them
ITEM_MARGIN = 0.05  # of a share of items answered: five points
MEAN_MARGIN = 0.02  # of a mean of losses or bits, relative
COUNTED = 0.1
RATIO = 1.5
POINTS = 3
LEVEL = 0.95
HARDWARE = ("device", "threads", "precision", "torch")

KEYS = {
    "runs": ["run"],
    "train": ["run", "step", "split", "source"],
    "matched_compute": ["size", "arch", "role"],
    "arms": ["chain", "step", "run"],
    "health": ["run", "step", "layer", "metric"],
    "tuning": ["arch", "setting", "run"],
    "evals": ["run", "task", "metric", "n_shot"],
    "access": ["run", "arch", "size", "part", "kv", "context", "dtype", "layer", "batch", "routing", "kind", "device"],
    "latency": [
        "run",
        "arch",
        "size",
        "phase",
        "part",
        "variant",
        "batch",
        "context",
        "kv",
        "sparse_ratio",
        "dtype",
        "threads",
        "kind",
    ],
    "machine": ["device", "dtype", "threads", "quantity", "rows"],
    "statements": ["device", "id", "statement"],
    "claims": ["id"],
    "diagnosis": ["topic", "arm"],
    "coordinates": ["arch", "width_rule", "d_model", "step", "where"],
}
UNCOMPARED = ("speed", "cost", "plan", "provenance")  # times and predictions of one machine, and which commit made what
# Modelled rows of a table that its stage writes beside the measured ones.
BESIDE = {"latency": "latency_modelled"}
# A column that the schema does not have (yet) is passed over.
EXACT = {
    "runs": "arch size seed d_model n_layers params active_params sparse_params flops_per_token tokens steps precision"
    " value_optimizer status config_sha data_sha seed_data seed_init seed_rest",
    "matched_compute": "d_ff d_expert n_experts top_k n_keys d_key d_value params active_params sparse_params"
    " flops_per_token flops_mismatch params_mismatch memory_share bytes_b1 bytes_b64 trained",
    "arms": "kind order label set paper_train_loss paper_val_loss paper_delta_val",
    "evals": "n chance higher_is_better",
    "access": "rows_read rows_unique bytes",
    "latency": "bytes_declared",
    "tuning": "size d_model seed lr value_lr_multiplier init chosen",
    "diagnosis": "question label n runs",
}
ROUGHLY = {"latency": ["bytes_counted"], "coordinates": ["value"]}
FINAL = ("test_loss", "val_loss")
LOSSES = {
    "runs": ["train_loss", *FINAL, "val_bpb", "test_bpb"],
    "train": ["loss", "aux_loss"],
    "health": ["value"],
    "tuning": ["val_loss"],
}
STATUSES = ("differ", "undecided", "one side", "note", "agree")


@dataclass(frozen=True)
class Finding:
    """One comparison. `status` is agree, differ, undecided (neither is shown), one side (a row, or with an empty key a table,
    that the other folder lacks), or note (told, but not counted)."""

    table: str
    key: str
    column: str
    a: str
    b: str
    rule: str
    status: str


def compare(folder_a: Path, folder_b: Path, margin: float = MARGIN) -> list[Finding]:
    """Every comparison of two results folders.

    Args:
        margin: nats/token within which the interval of a difference of losses has to lie, on other hardware.

    Raises:
        UserError: a folder cannot be used, or the margin is not positive.
    """
    if not 0 < margin < math.inf:
        raise UserError(f"--margin is {margin}: give nats per token above 0, such as {MARGIN}")
    a, b = (_read(folder) for folder in (folder_a, folder_b))
    same = _same_hardware(a["runs"], b["runs"])
    findings = []
    for table in (table for table in schema.TABLES if table in a or table in b):
        if table not in a or table not in b:
            findings.append(_one_side(table, "", table in a))
            continue
        if table not in KEYS:
            findings.append(Finding(table, "", "", "there", "there", "no rule: name its key in evals/compare.py", "note"))
            continue
        rows_a, rows_b = (_keyed(tables[table], table) for tables in (a, b))
        findings += [_one_side(table, _text(key), key in rows_a) for key in sorted(rows_a.keys() ^ rows_b.keys())]
        shared = sorted(rows_a.keys() & rows_b.keys())
        for key in shared:
            findings += _row(table, key, rows_a[key], rows_b[key], same)
        pairs = [(rows_a[key], rows_b[key]) for key in shared]
        if table == "runs":
            findings += _equivalent_losses([pair for pair in pairs if pair[0]["run"] not in same], margin)
        elif table == "evals":
            findings += _equivalent_scores([pair for pair in pairs if pair[0]["run"] not in same])
        elif table == "latency" and pairs:
            findings += _ratios(*(pd.DataFrame(rows) for rows in zip(*pairs, strict=True)))
    return findings


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results: give two folders such as results/cpu")
    if not (folder / "runs.csv").exists():
        raise UserError(f"{folder} holds no runs.csv, so it is no results folder: give one such as results/cpu")
    found = {}
    for table in (table for table in schema.TABLES if table not in UNCOMPARED):
        paths = [folder / f"{name}.csv" for name in (table, BESIDE.get(table)) if name]
        if frames := [schema.read(path, table) for path in paths if path.exists()]:
            found[table] = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    if found["runs"].empty:
        raise UserError(f"{folder / 'runs.csv'} holds no run: train something first")
    for table, frame in found.items():
        if table not in KEYS:
            continue
        keys = frame[KEYS[table]].assign(machine=frame.device if table == "latency" else "")
        if keys.duplicated().any():
            row = _text(tuple(map(_text, keys[keys.duplicated()].iloc[0])))
            raise UserError(f"{folder / table}.csv has {row} twice: gather it again")
    return found


def _keyed(frame: pd.DataFrame, table: str) -> dict[tuple[str, ...], dict]:
    return {_key(row, table): row for row in frame.astype(object).to_dict("records")}


def _key(row: dict, table: str) -> tuple[str, ...]:
    """Measured times of two machines share a key (threads tell CPU from CUDA), modelled ones of two devices do not."""
    device = (row["device"],) if table == "latency" and row["kind"] == "modelled" else ()
    return tuple(_text(row[name]) for name in KEYS[table]) + device


def _same_hardware(a: pd.DataFrame, b: pd.DataFrame) -> set[str]:
    """Runs that both folders made on equal hardware."""
    left, right = (frame.set_index("run")[list(HARDWARE)] for frame in (a, b))
    shared = left.index.intersection(right.index)
    return set(shared[(left.loc[shared] == right.loc[shared]).all(axis=1)])


def _row(table: str, key: tuple[str, ...], a: dict, b: dict, same: set[str]) -> Iterator[Finding]:
    name = _text(key)
    by_formula = table != "access" or a["kind"].startswith("declared")
    for column in (column for column in EXACT.get(table, "").split() if column in a):
        if by_formula:
            yield _finding(table, name, column, a[column], b[column], "exact", _equal(a[column], b[column]))
        else:
            yield _finding(table, name, column, a[column], b[column], "counted", _near(a[column], b[column], COUNTED))
    for column in ROUGHLY.get(table, ()):
        yield _finding(table, name, column, a[column], b[column], "counted", _near(a[column], b[column], COUNTED))
    if table == "machine" and not _near(a["value"], b["value"], 1 - 1 / RATIO):
        yield Finding(table, name, "value", _text(a["value"]), _text(b["value"]), "speed of the machine", "note")
    if a.get("run") in same:
        for column in (column for column in LOSSES.get(table, ()) if column in a):
            yield _finding(table, name, column, a[column], b[column], "tight", _near(a[column], b[column]))
        if table == "evals":
            yield _score(name, a, b)
    if "verdict" in a and a["verdict"] != b["verdict"]:
        yield Finding(table, name, "verdict", a["verdict"], b["verdict"], "note", "note")


def _score(name: str, a: dict, b: dict) -> Finding:
    """An item whose two best answers tie to rounding may fall either way; a mean of losses has no such items."""
    x, y = a["value"], b["value"]
    allowed = max(TIGHT * abs(x), 1.5 / max(a["n"], 1) if a["metric"] in SCORES else 0.0)
    return _finding("evals", name, "value", x, y, f"items: {allowed:.2g}", _equal(x, y) or abs(x - y) <= allowed)


def _equivalent_losses(pairs: list[tuple[dict, dict]], margin: float) -> Iterator[Finding]:
    """Final losses of the runs that both folders made, on unequal hardware; one comparison per model, over its seeds.

    What another machine does to a loss is noise of one size, supposed the same for all models: its deviation is taken
    within models (about each model's mean difference), or over the runs of the other models (about their mean), whichever
    has more degrees of freedom; so a model of one seed has an interval as soon as three models are compared. A lone pair
    has none: it differs beyond the margin and is undecided within it. Where every pair of a model is equal to TIGHT, as
    it would have to be on one machine, no interval is asked for.
    """
    for column in (column for column in FINAL if pairs and column in pairs[0][0]):
        frame = pd.DataFrame([(a["run"], a[column], b[column]) for a, b in pairs], columns=["run", "a", "b"])
        for run_id, x, y in frame[frame.a.isna() ^ frame.b.isna()].itertuples(index=False):
            yield _finding("runs", run_id, column, x, y, "exact", False)
        frame = frame.dropna()
        frame["model"] = frame.run.str.replace(r"-s\d+$", "", regex=True)
        frame["gap"] = frame.a - frame.b
        for model, own in frame.groupby("model"):
            free, noise = _noise(frame, model)
            half = distributions.t.ppf(0.5 + LEVEL / 2, free) * noise / math.sqrt(len(own)) if free else math.nan
            gap = own.gap.mean()
            rule = f"equivalence within {margin:g} nats/token: {gap:+.4f} +- {half:.4f}, {len(own)} pairs"
            rule = rule if free else f"equivalence within {margin:g} nats/token: one pair, no interval"
            tight = all(map(_near, own.a, own.b))
            status = "agree" if tight else _equivalence(gap, half, margin)
            yield Finding("runs", model, column, _text(own.a.mean()), _text(own.b.mean()), "tight" if tight else rule, status)


def _noise(frame: pd.DataFrame, model: str) -> tuple[int, float]:
    """(degrees of freedom, standard deviation) of one run's difference; (0, NaN) where nothing repeats."""
    within = frame.gap - frame.groupby("model").gap.transform("mean")
    others = frame.gap[frame.model != model]
    free = len(frame) - frame.model.nunique()
    if free >= len(others) - 1:
        return free, math.sqrt((within**2).sum() / free) if free else math.nan
    return len(others) - 1, others.std()


def _equivalent_scores(pairs: list[tuple[dict, dict]]) -> Iterator[Finding]:
    """Scores of runs made on unequal hardware; one comparison per task and metric, over the runs.

    Both folders scored the same items, so their errors are far from independent, but evals.csv keeps n, value and
    standard error of a score and no items. What it has in pairs are the runs: the same model on the same items twice. The
    difference is taken run by run, in which the items' difficulty cancels, and the t interval over runs has to lie within
    ITEM_MARGIN (a share of items) or MEAN_MARGIN (relative). One run alone has its two standard errors taken as
    independent: shared items make the error of the difference smaller, so this is the widest it can be, and neither
    agreement nor difference is claimed too early. The same bound, widened to hold for all scores at once (Bonferroni),
    names a single run whose score is off.
    """
    bound = distributions.norm.ppf(1 - (1 - LEVEL) / 2 / max(len(pairs), 1))
    tasks = defaultdict(list)
    for a, b in pairs:
        tasks[a["task"], a["metric"], _text(a["n_shot"])].append((a, b))
    for task, group in tasks.items():
        x, y = (np.array([row["value"] for row in side]) for side in zip(*group, strict=True))
        if all(map(_near, x, y)) or not np.isfinite([x, y]).all():
            yield _finding("evals", _text(task), "value", x.mean(), y.mean(), "tight", all(map(_near, x, y)))
            continue
        errors = [math.hypot(_error(a), _error(b)) for a, b in group]
        margin = ITEM_MARGIN if task[1] in SCORES else MEAN_MARGIN * float(np.abs([x, y]).mean())
        for (a, b), gap, error in zip(group, x - y, errors, strict=True):
            if abs(gap) - bound * error > margin:
                name = _text(tuple(_text(a[key]) for key in KEYS["evals"]))
                yield _finding("evals", name, "value", a["value"], b["value"], f"items: {margin + bound * error:.2g}", False)
        gap = stats.mean(x - y, LEVEL)
        half = gap.high - gap.value if gap.bounded else distributions.norm.ppf(0.5 + LEVEL / 2) * errors[0]
        rule = f"equivalence within {margin:.2g}: {gap.value:+.2g} +- {half:.2g}, {len(group)} runs"
        status = _equivalence(gap.value, half, margin)
        yield Finding("evals", _text(task), "value", _text(x.mean()), _text(y.mean()), rule, status)


def _error(row: dict) -> float:
    """Standard error of a score; of a share of items at least Agresti and Coull's, not 0 where none or all are right."""
    if row["metric"] not in SCORES:
        return row["stderr"]
    share = (row["value"] * row["n"] + 2) / (row["n"] + 4)
    return float(np.fmax(row["stderr"], math.sqrt(max(share * (1 - share), 0.0) / (row["n"] + 4))))


def _equivalence(gap: float, half: float, margin: float) -> str:
    """Inside the margin, outside it, or across its edge. Without an interval (NaN) nothing is shown to be inside."""
    if abs(gap) + half <= margin:
        return "agree"
    return "differ" if abs(gap) - (0.0 if math.isnan(half) else half) > margin else "undecided"


def _ratios(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[Finding]:
    """Times over the yardstick's at the same point; on another device a note, and modelled times exactly."""
    left, right = (_over_yardstick(frame) for frame in (a, b))
    column, curves = "p50_ms over yardstick", defaultdict(list)
    for key in sorted(left.keys() & right.keys()):
        (x, device_x, kind, spread_x), (y, device_y, _, spread_y) = left[key], right[key]
        far = max(x, y) / min(x, y) if min(x, y) > 0 else math.inf
        allowed = RATIO * max(spread_x, spread_y)
        if kind == "modelled":
            yield _finding("latency", _text(key), column, x, y, "tight", _near(x, y))
        elif device_x != device_y:
            if far > RATIO:
                yield Finding("latency", _text(key), column, _text(x), _text(y), "ratio, other device", "note")
        else:
            status = "agree" if far <= allowed else "note"
            yield Finding("latency", _text(key), column, _text(x), _text(y), f"one time, ratio: {allowed:.3g}", status)
            curve = [part for name, part in zip(KEYS["latency"], key, strict=True) if name not in ("batch", "context")]
            curves[tuple(curve)].append((x, y))
    for curve, points in curves.items():
        if len(points) >= POINTS:
            moved = float(np.median([x / y for x, y in points]))
            rule = f"ratio: {RATIO}, median over {len(points)} points"
            agree = 1 / RATIO <= moved <= RATIO
            yield _finding("latency", _text(curve), f"{column}, the first's over the second's", moved, 1.0, rule, agree)


def _over_yardstick(frame: pd.DataFrame) -> dict[tuple[str, ...], tuple[float, str, str, float]]:
    """Of every other row at a yardstick's point: its ratio, device, kind, and the factor that p20 to p80 of both span."""
    point = ["size", "phase", "part", "batch", "context", "kv", "dtype", "threads", "kind", "device"]
    times = {}
    for _, group in frame.groupby(point, dropna=False, sort=False):
        plain = group[group.variant == "plain"] if (group.variant == "plain").any() else group
        dense = plain[plain.arch == "dense"]
        yardstick = (dense if len(dense) else plain.sort_values(["arch", "sparse_ratio"])).iloc[0]
        for row in group.drop(index=yardstick.name).to_dict("records"):
            spread = math.prod(one["p80_ms"] / one["p20_ms"] for one in (row, yardstick))
            ratio = row["p50_ms"] / yardstick["p50_ms"]
            times[_key(row, "latency")] = (ratio, row["device"], row["kind"], 1.0 if math.isnan(spread) else spread)
    return times


def _one_side(table: str, key: str, in_a: bool) -> Finding:
    return Finding(table, key, "", *(("there", "missing") if in_a else ("missing", "there")), "same rows", "one side")


def _finding(table: str, key: str, column: str, a, b, rule: str, agree: bool) -> Finding:
    return Finding(table, key, column, _text(a), _text(b), rule, "agree" if agree else "differ")


def _equal(a, b) -> bool:
    return bool((pd.isna(a) and pd.isna(b)) or (not pd.isna(a) and not pd.isna(b) and a == b))


def _near(a, b, tolerance: float = TIGHT) -> bool:
    return _equal(a, b) or (not pd.isna(a) and not pd.isna(b) and math.isclose(a, b, rel_tol=tolerance))


def _text(value) -> str:
    if isinstance(value, tuple):
        return " ".join(part for part in value if part)
    return "" if pd.isna(value) else str(value)


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


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ names | join(" against ") }}</title>
<style>:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{border-bottom:1px solid #8886;padding:.25rem .6rem;
text-align:left;font-variant-numeric:tabular-nums}.differ td:first-child{font-weight:700}</style>
<h1>{{ names | join(" against ") }}</h1>
<p>{{ sentence }}</p>
{% if rows %}
<table><thead><tr>{% for word in head %}<th scope="col">{{ word }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}
<tr class="{{ row[0] }}">{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
{% if more > 0 %}<p>{{ more }} more are in compare.csv.</p>{% endif %}
</html>
"""


def page(findings: list[Finding], names: tuple[str, str], limit: int = 2000) -> str:
    """What does not agree, as one HTML file that loads nothing."""
    odd = sorted((f for f in findings if f.status != "agree"), key=lambda f: STATUSES.index(f.status))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return template.from_string(PAGE).render(
        names=names,
        sentence=sentence(findings),
        head=("status", "table", "key", "column", *names, "rule"),
        rows=[(f.status, f.table, f.key, f.column, f.a, f.b, f.rule) for f in odd[:limit]],
        more=len(odd) - limit,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compare two results folders")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--out", type=Path, help="folder for compare.csv and compare.html")
    parser.add_argument("--margin", type=float, default=MARGIN, help="nats/token, other hardware (default: %(default)s)")
    options = parser.parse_args(arguments)
    findings, names = compare(options.a, options.b, options.margin), (str(options.a), str(options.b))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame([asdict(f) for f in findings], columns=[f.name for f in fields(Finding)])
        table.to_csv(options.out / "compare.csv", index=False)
        (options.out / "compare.html").write_text(page(findings, names), encoding="utf-8")
    print(summary(findings, names))
    return int(not reproduced(findings))


if __name__ == "__main__":
    run(main)
