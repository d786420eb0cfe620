"""What a page is made of: results as found in a folder, and the blocks (text, table, picture) that show them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from evals.records import schema
from evals.records.errors import UserError
from reports.folder import FILES, join, read_folder
from reports.style import ORDER, Look, Panel, anchor, in_order, key, look, si

WRITER = {
    "runs": "the training stage writes it",
    "train": "the training stage writes it",
    "matched_compute": "the compute-matching gate writes it",
    "counting": "the compute-matching gate writes it",
    "arms": "an ablation target writes it, such as “snakemake ablation_ultramem”",
    "health": "the training stage writes it for sparse layers",
    "tuning": "“snakemake tuning” writes it",
    "speed": "“snakemake speed” writes it",
    "step": "“snakemake speed” writes it",
    "peers": "“snakemake peers” writes it",
    "growth": "“snakemake peers” writes it",
    "evals": "“snakemake evaluate” writes it",
    "latency": "“snakemake latency” writes it",
    "machine": "“snakemake latency” writes it",
    "access": "“snakemake access” writes it",
    "claims": "“snakemake claims” writes it",
    "fits": "“snakemake fits” writes it",
    "ranking": "“snakemake fits” writes it",
    "equivalents": "“snakemake fits” writes it",
    **dict.fromkeys(("plan", "scale"), "“snakemake plan” writes it"),
    "cost": "the gathering stage writes it",
    "diagnosis": "“python -m evals.claims.diagnosis” writes it",
    "coordinates": "“snakemake coordinates” writes it",
    "questions": "“snakemake questions” writes it",
    "offload": "“snakemake offload” writes it",
    "offload_disk": "“snakemake offload” writes it",
    "offload_hits": "“snakemake offload” writes it",
    "offload_loss": "“snakemake offload” writes it",
    "where": "“snakemake questions” writes it",
    "forgetting": "“snakemake forgetting” writes it",
}
LARGE = ("parameters", "FLOPs", "bytes", "tokens", "rows", "tokens/s")


@dataclass(frozen=True)
class Cell:
    """`text` as shown, `sort` as compared by the page; `href` leads to the run, `more` to several; many are folded up."""

    text: str
    sort: float | str | None = None
    href: str | None = None
    title: str = ""
    number: bool = False
    strong: bool = False
    kind: str = ""
    id: str = ""
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` stands before it in bold."""

    text: str
    kind: str = ""
    lead: str = ""
    block: str = "text"


@dataclass(frozen=True)
class Missing:
    """The sentence in place of what was not measured."""

    text: str
    block: str = "missing"


@dataclass(frozen=True)
class Facts:
    """Names and values, in a row; of `terms` the values are sentences."""

    facts: list[tuple[str, str]]
    kind: str = "facts"
    block: str = "facts"


@dataclass(frozen=True)
class Verdicts:
    """(sign, verdict, claims, unique tests) of one kind of claim, each a link that filters the ledger."""

    kind: str
    title: str
    counts: list[tuple[str, str, int, int]]
    block: str = "verdicts"


@dataclass(frozen=True)
class Table:
    """`csv` and `context` (scale, device, seeds) stand under the caption; `filters` are words of a column `verdict`.

    Rows of `cards` hold sentences: a narrow screen shows each as a list of named cells.
    """

    csv: str
    caption: str
    context: str
    header: list[str]
    rows: list[list[Cell]]
    badges: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    searchable: bool = False
    tall: bool = False
    cards: bool = False
    block: str = "table"


@dataclass(frozen=True)
class Picture:
    csv: str
    caption: str
    context: str
    panels: list[Panel]
    archs: list[str] = field(default_factory=list)
    badges: tuple[str, ...] = ()
    block: str = "picture"

    @property
    def legend(self) -> list[Look]:
        return [look(arch) for arch in self.archs]


class Results:
    """The tables with rows found in a folder; `"evals" in results`, `results["evals"]`.

    Modelled latency and a GPU's counters have files of their own and join the measured and the counted in one table. `also`
    names folders of other machines, whose times are shown beside these; their runs are not, and are not linked. Runs of a
    folder that is not `linked` stand on no page.
    """

    def __init__(self, folder: Path, also: Sequence[Path] = (), linked: bool = True):
        self.folder, self.has_page = folder, linked
        for each in (folder, *also):
            schema.check_seal(each)
        found = read_folder(folder)
        if not found:
            raise UserError(f"{folder} holds none of the CSVs that make a report: run `snakemake` first")
        parts = [found]
        for other in map(read_folder, also):
            timed = {
                name: other[name] for name in ("latency", "latency_modelled", "machine", "speed", "peers") if name in other
            }
            parts.append({name: frame.assign(run="") if "run" in frame else frame for name, frame in timed.items()})
        whole = {name: join(part[name] for part in parts if name in part) for name in FILES if any(name in p for p in parts)}
        for table, beside in (("latency", "latency_modelled"), ("access", "access_hardware")):
            if beside in whole:
                more = whole.pop(beside)
                whole[table] = join([whole[table], more] if table in whole else [more])
        self.tables = {name: frame for name, frame in whole.items() if len(frame)}
        self.empty = whole.keys() - self.tables.keys()

    def __contains__(self, table: str) -> bool:
        return table in self.tables

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    def missing(self, table: str) -> Missing:
        if table in self:
            return Missing(f"Not measured in this run: {table}.csv holds no finished run of the comparison.")
        state = "has no rows" if table in self.empty else "is absent"
        return Missing(f"Not measured in this run: {table}.csv {state} ({WRITER[table]}).")

    @cached_property
    def runs(self) -> pd.DataFrame:
        frame = self.tables.get("runs", pd.DataFrame(columns=[column.name for column in schema.TABLES["runs"]]))
        return frame.set_index("run", drop=False).rename_axis(None)

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The finished runs of the comparison: `{arch}-{size}-s{seed}`; if none is so named, those of no sweep."""
        frame = self.runs[self.runs["test_loss"].notna()]
        named = frame["run"] == frame["arch"] + "-" + frame["size"] + "-s" + frame["seed"].astype(str)
        swept = {run for table in ("arms", "tuning") if table in self for run in self[table]["run"]}
        return frame[named] if named.any() else frame[~frame["run"].isin(swept)]

    @cached_property
    def archs(self) -> list[str]:
        return in_order(self.grid["arch"])

    @cached_property
    def sizes(self) -> list[str]:
        """Small to large."""
        return list(self.grid.sort_values(["d_model", "n_layers", "active_params"])["size"].drop_duplicates())

    def joined(self, table: str) -> pd.DataFrame:
        """The rows of a table that belong to the comparison, with their run's architecture, size and seed."""
        return self[table].merge(self.grid[["run", "arch", "size", "seed"]], on="run")

    def linked(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame for a figure: runs that have no section on the page are left without a link."""
        return frame.assign(run=frame["run"].where(frame["run"].isin(self.runs.index) & self.has_page, ""))

    def href(self, run: str) -> str | None:
        return f"#{anchor(run)}" if self.has_page and run in self.runs.index else None

    def mean(self, frame: pd.DataFrame, column: str, show: Callable = "{:.3f}".format, strong: bool = False) -> Cell:
        """The mean of a column over seeds, ± the standard deviation, linked to every run behind it."""
        frame = frame[frame[column].notna()]
        if frame.empty:
            return Cell("–", number=True)
        mean, runs = frame[column].mean(), list(frame["run"])
        if len(runs) == 1:
            return Cell(show(mean), mean, self.href(runs[0]), runs[0], number=True, strong=strong)
        links = tuple((str(seed), self.href(run)) for seed, run in zip(frame["seed"], runs, strict=True) if self.has_page)
        return Cell(f"{show(mean)} ± {show(frame[column].std())}", mean, number=True, strong=strong, more=links)

    def listing(self, table: str, frame: pd.DataFrame, names: Iterable[str] = ()) -> tuple[list[str], list[list[Cell]]]:
        """Header and rows of a table as it stands in the CSV: all its columns, or `names` in that order."""
        known = {column.name: column for column in schema.columns(FILES[table])}
        shown = [known[name] for name in names or known]
        rows = [[self.cell(column, row[column.name]) for column in shown] for row in frame.to_dict("records")]
        return [column.name for column in shown], rows

    def cell(self, column: schema.Column, value) -> Cell:
        """One value of the CSV, written as its type and unit ask."""
        if pd.isna(value) or value == "":
            return Cell("–", number=column.dtype in (int, float))
        if column.name == "run":
            return Cell(value, href=self.href(value))
        if column.name == "arch":
            return arch_cell(value)
        if column.name.endswith(("_sha", "_commit")):
            return Cell(value[:10], title=value, kind="code")
        if column.dtype is bool:
            return Cell("yes" if value else "no")
        if column.dtype is str:
            return Cell(value, kind="code" if value.startswith("{") else "")
        if column.unit in LARGE and value >= 1e4:
            return Cell(si(value, 4), float(value), title=f"{value:,}", number=True)
        if column.unit == "fraction":
            return number(value, ".2%")
        if column.unit == "nats/token":
            return number(value, ".3f")
        return number(value, "d" if column.dtype is int else ".4g")

    def context(self, frame: pd.DataFrame) -> str:
        """Scale, seeds and device of some runs, in words."""
        if frame.empty:
            return ""
        seeds = frame["seed"].nunique()
        parts = [
            f"d_model {span(frame['d_model'], str)}",
            f"{span(frame['active_params'], si)} activated parameters",
            f"{span(frame['tokens'], si)} tokens a run",
            f"{seeds} seed{'s' * (seeds > 1)}",
            *sorted(frame["device"].unique()),
            threads(frame),
            ", ".join(sorted(frame["precision"].unique())),
        ]
        return " · ".join(parts)


def number(value, form: str, href: str | None = None) -> Cell:
    if pd.isna(value):
        return Cell("–", number=True)
    text = format(int(value) if form == "d" else float(value), form).replace("-", "−")
    return Cell(text, float(value), href, number=True)


def arch_cell(arch: str) -> Cell:
    this = look(arch)
    return Cell(this.label, ORDER.get(key(arch), len(ORDER)), kind=f"arch {this.name}")


def span(values: pd.Series, show: Callable) -> str:
    """'3' or '3–7'."""
    values = values.dropna()
    return "–".join(dict.fromkeys((show(values.min()), show(values.max())))) if len(values) else "–"


def threads(frame: pd.DataFrame) -> str:
    return f"{span(frame['threads'], str)} thread{'s' * bool(frame['threads'].max() > 1)}"


def kinds(devices: Iterable[str]) -> tuple[str, ...]:
    """The labels of some devices: 'CPU: AMD EPYC' -> 'CPU'."""
    return tuple(sorted({device.partition(":")[0] for device in devices}))
