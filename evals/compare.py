"""Do two results folders agree?

    python -m evals.compare A B [--out DIR]

Rows are matched by their key, and each column is held to the rule of its kind:

    exact        counts, bytes, hashes of config and data, the plan of an ablation: equal
    tight        losses and health, same hardware (device, threads, precision, torch): TIGHT relative
    statistical  losses, other hardware: paired by seed, the interval of the difference includes 0, or it is below
                 SMALL; with one seed, below ONE_SEED
    counted      what trained models ask for, and what a GPU's counter says: COUNTED relative
    items        scores: TIGHT or one item, same hardware; 2.6 standard errors, other hardware
    ratio        times: never milliseconds, but each architecture's time over that of the yardstick measured beside it
                 (the dense model, or the first architecture); within a factor of RATIO, times what p20 to p80 of either
                 side spans, and only on one device

Wall times, versions and dates are not compared; neither are verdicts, which follow from what is compared, nor the speed
of a machine, which is not a result, but a changed verdict and a speed beyond RATIO are listed as notes.

Exit status: 0 agree, 1 differ, 2 a folder that cannot be used.
"""

from __future__ import annotations

import argparse
import html
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from evals import schema, stats
from workflows.errors import UserError, run

TIGHT = 1e-3
SMALL = 5e-3
ONE_SEED = 0.05
COUNTED = 0.1
RATIO = 1.5
ITEM_ERRORS = 2.6
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
    "claims": ["id"],
}
# Modelled rows of a table that its stage writes beside the measured ones.
BESIDE = {"latency": "latency_modelled"}
ON_DEVICE = ("latency", "access", "machine")
EXACT = {
    "runs": "arch size seed d_model n_layers params active_params sparse_params flops_per_token tokens steps precision"
    " status config_sha data_sha seed_data seed_init seed_rest",
    "matched_compute": "d_ff d_expert n_experts top_k n_keys d_key d_value params active_params sparse_params"
    " flops_per_token flops_mismatch params_mismatch memory_share bytes_b1 bytes_b64 trained",
    "arms": "kind order label set paper_train_loss paper_val_loss paper_delta_val",
    "evals": "n chance higher_is_better",
    "access": "rows_read rows_unique bytes",
    "latency": "bytes_declared",
    "tuning": "lr value_lr_multiplier init chosen",
}
LOSSES = {
    "runs": ["train_loss", "val_loss", "val_bpb"],
    "train": ["loss", "aux_loss"],
    "health": ["value"],
    "tuning": ["val_loss"],
}
STATUSES = ("agree", "note", "differ")


@dataclass(frozen=True)
class Finding:
    """One comparison. `status` is agree, differ, or note (told, but not counted)."""

    table: str
    key: str
    column: str
    a: str
    b: str
    rule: str
    status: str


def compare(folder_a: Path, folder_b: Path) -> list[Finding]:
    """Every comparison of two results folders; UserError if one cannot be used."""
    a, b = (_read(folder) for folder in (folder_a, folder_b))
    same = _same_hardware(a["runs"], b["runs"])
    findings = []
    for table in KEYS:
        if table not in a and table not in b:
            continue
        if table not in a or table not in b:
            findings.append(_absent(table, "", table in a))
            continue
        rows_a, rows_b = (_keyed(tables[table], table) for tables in (a, b))
        devices = set(a[table].device) & set(b[table].device) if table in ON_DEVICE else set()
        for key in sorted(rows_a.keys() ^ rows_b.keys()):
            row = rows_a.get(key) or rows_b[key]
            elsewhere = table in ON_DEVICE and row["device"] not in devices
            findings.append(_absent(table, _text(key), key in rows_a, elsewhere))
        shared = sorted(rows_a.keys() & rows_b.keys())
        for key in shared:
            findings += _row(table, key, rows_a[key], rows_b[key], same)
    findings += _statistical(a["runs"], b["runs"], same)
    if "latency" in a and "latency" in b:
        findings += _ratios(a["latency"], b["latency"])
    return findings


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results: give two folders such as results/cpu")
    if not (folder / "runs.csv").exists():
        raise UserError(f"{folder} holds no runs.csv, so it is no results folder: give one such as results/cpu")
    found = {}
    for table in KEYS:
        paths = [folder / f"{name}.csv" for name in (table, BESIDE.get(table)) if name]
        if frames := [schema.read(path, table) for path in paths if path.exists()]:
            found[table] = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    if found["runs"].empty:
        raise UserError(f"{folder / 'runs.csv'} holds no run: train something first")
    for table, frame in found.items():
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
    for column in EXACT.get(table, "").split():
        if by_formula:
            yield _finding(table, name, column, a[column], b[column], "exact", _equal(a[column], b[column]))
        else:
            yield _finding(table, name, column, a[column], b[column], "counted", _near(a[column], b[column], COUNTED))
    if table == "latency":
        column = "bytes_counted"
        yield _finding(table, name, column, a[column], b[column], "counted", _near(a[column], b[column], COUNTED))
    if table == "machine" and not _near(a["value"], b["value"], 1 - 1 / RATIO):
        yield Finding(table, name, "value", _text(a["value"]), _text(b["value"]), "speed of the machine", "note")
    if a.get("run") in same:
        for column in LOSSES.get(table, ()):
            yield _finding(table, name, column, a[column], b[column], "tight", _near(a[column], b[column]))
    if table == "evals":
        yield _score(name, a, b, a["run"] in same)
    if table == "claims" and a["verdict"] != b["verdict"]:
        yield Finding(table, name, "verdict", a["verdict"], b["verdict"], "note", "note")


def _score(name: str, a: dict, b: dict, same: bool) -> Finding:
    x, y = a["value"], b["value"]
    errors = [0.0 if pd.isna(row["stderr"]) else row["stderr"] for row in (a, b)]
    wide = ITEM_ERRORS * math.hypot(*errors)
    # An item whose two best answers tie to rounding may fall either way; a mean of losses has no such items.
    narrow = max(TIGHT * abs(x), 1.5 / max(a["n"], 1) if "acc" in a["metric"] else 0.0)
    allowed = narrow if same else wide
    return _finding("evals", name, "value", x, y, f"items: {allowed:.2g}", _equal(x, y) or abs(x - y) <= allowed)


def _statistical(a: pd.DataFrame, b: pd.DataFrame, same: set[str]) -> Iterator[Finding]:
    """Final losses of runs made on other hardware, one comparison per model, over seeds."""
    a, b = (frame[~frame.run.isin(same)].dropna(subset=["val_loss"]) for frame in (a, b))
    a, b = (frame.assign(model=frame.run.str.replace(r"-s\d+$", "", regex=True)) for frame in (a, b))
    for model in sorted(set(a.model) & set(b.model)):
        left, right = (frame[frame.model == model].set_index("seed").val_loss.to_dict() for frame in (a, b))
        gap = stats.difference(left, right)
        if gap.bounded:
            agree = gap.low <= 0 <= gap.high or abs(gap.value) <= SMALL
            rule = f"statistical: {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {gap.n} seeds"
        else:
            agree, rule = abs(gap.value) <= ONE_SEED, f"statistical: one seed, {ONE_SEED}"
        means = (sum(side.values()) / len(side) for side in (left, right))
        yield _finding("runs", model, "val_loss", *means, rule, agree)


def _ratios(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[Finding]:
    """Times over the yardstick's at the same point; on another device a note, and modelled times exactly."""
    left, right = (_over_yardstick(frame) for frame in (a, b))
    for key in sorted(left.keys() & right.keys()):
        (x, device_x, kind, spread_x), (y, device_y, _, spread_y) = left[key], right[key]
        far = max(x, y) / min(x, y) if min(x, y) > 0 else math.inf
        if kind == "modelled":
            yield _finding("latency", _text(key), "p50_ms over yardstick", x, y, "tight", _near(x, y))
        elif device_x == device_y:
            yield _finding(
                "latency", _text(key), "p50_ms over yardstick", x, y, f"ratio: {RATIO}", far <= RATIO * max(spread_x, spread_y)
            )
        elif far > RATIO:
            rule = "ratio, other device"
            yield Finding("latency", _text(key), "p50_ms over yardstick", _text(x), _text(y), rule, "note")


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


def _absent(table: str, key: str, in_a: bool, elsewhere: bool = False) -> Finding:
    """A table that one side did not make, or a time on a device that it does not have, is a note: other targets were
    asked for. A row that it lacks is another result."""
    sides = ("there", "missing") if in_a else ("missing", "there")
    return Finding(table, key, "", *sides, "same rows", "differ" if key and not elsewhere else "note")


def _finding(table: str, key: str, column: str, a, b, rule: str, agree: bool) -> Finding:
    return Finding(table, key, column, _text(a), _text(b), rule, "agree" if agree else "differ")


def _equal(a, b) -> bool:
    return bool((pd.isna(a) and pd.isna(b)) or (not pd.isna(a) and not pd.isna(b) and a == b))


def _near(a, b, tolerance: float = TIGHT) -> bool:
    return _equal(a, b) or (not pd.isna(a) and not pd.isna(b) and abs(a - b) <= tolerance * max(abs(a), abs(b)))


def _text(value) -> str:
    if isinstance(value, tuple):
        return " ".join(part for part in value if part)
    return "" if pd.isna(value) else str(value)


def summary(findings: list[Finding], limit: int = 20) -> str:
    """Counts by table, then the first findings that do not agree."""
    counts = Counter((finding.table, finding.status) for finding in findings)
    lines = [f"{'table':16s}" + "".join(f"{status:>10s}" for status in STATUSES)]
    for table in dict.fromkeys(finding.table for finding in findings):
        lines.append(f"{table:16s}" + "".join(f"{counts[table, status]:10d}" for status in STATUSES))
    odd = sorted((f for f in findings if f.status != "agree"), key=lambda f: f.status)
    for f in odd[:limit]:
        lines.append(f"{f.status}: {f.table} {f.key} {f.column}: {f.a or 'empty'} against {f.b or 'empty'} ({f.rule})")
    if len(odd) > limit:
        lines.append(f"and {len(odd) - limit} more")
    differ = sum(f.status == "differ" for f in findings)
    lines.append(f"{differ} of {len(findings)} comparisons differ" if differ else f"agree: {len(findings)} comparisons")
    return "\n".join(lines)


STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{border-bottom:1px solid #8886;padding:.25rem .6rem;
text-align:left;font-variant-numeric:tabular-nums}.differ td:first-child{font-weight:700}"""


def page(findings: list[Finding], names: tuple[str, str], limit: int = 2000) -> str:
    """What does not agree, as one HTML file that loads nothing."""
    odd = sorted((f for f in findings if f.status != "agree"), key=lambda f: f.status)
    head = "".join(f"<th scope=col>{word}</th>" for word in ("status", "table", "key", "column", *names, "rule"))
    rows = []
    for f in odd[:limit]:
        cells = (f.status, f.table, f.key, f.column, f.a, f.b, f.rule)
        rows.append(f"<tr class={f.status}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    verdict = html.escape(summary(findings, limit=0).splitlines()[-1])
    title = html.escape(" against ".join(names))
    more = f"<p>{len(odd) - limit} more are in compare.csv.</p>" if len(odd) > limit else ""
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}" if odd else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{verdict}</p>{body}</html>\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compare two results folders")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--out", type=Path, help="folder for compare.csv and compare.html")
    options = parser.parse_args(arguments)
    findings = compare(options.a, options.b)
    print(summary(findings))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame([asdict(f) for f in findings], columns=[f.name for f in fields(Finding)])
        table.to_csv(options.out / "compare.csv", index=False)
        (options.out / "compare.html").write_text(page(findings, (str(options.a), str(options.b))), encoding="utf-8")
    return int(any(f.status == "differ" for f in findings))


if __name__ == "__main__":
    run(main)
