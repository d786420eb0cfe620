"""The report: results/{preset}/*.csv in, one self-contained HTML file out, and nothing else on either side.

    python -m reports.build --results results/cpu --out reports/cpu.html
    python -m reports.build --results results/cpu --compare results/reference --out reports/both.html

The same CSVs give the same bytes, on any machine: neither torch nor the trainer is imported.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2

from evals.records import options
from evals.records.errors import run
from evals.records.files import whole
from reports.comparison import comparison
from reports.page import Results, Text, span
from reports.placebos import CHAIN as PLACEBOS
from reports.runs import runs
from reports.sections import SECTIONS
from reports.style import LOOKS, si


def facts(results: Results) -> list[tuple[str, str]]:
    """What was run, below the answer."""
    runs, grid = results.runs, results.grid
    if runs.empty:
        return []
    dirty = runs["git_dirty"].map({True: " (modified)"}).fillna("")
    commits = sorted(set((runs["git_commit"].str[:10] + dirty)[runs["git_commit"] != ""])) or ["none recorded"]
    return [
        ("runs", f"{len(runs)}, {len(grid)} in the comparison"),
        ("architectures", str(len(results.archs))),
        ("sizes", ", ".join(results.sizes) or "–"),
        ("seeds", str(grid["seed"].nunique())),
        ("tokens a run", span(grid["tokens"], si)),
        ("device", "; ".join(sorted(runs["device"].unique()))),
        ("training", f"{runs['core_seconds'].sum() / 3600:.2f} core-hours"),
        ("commit", ", ".join(commits) if len(commits) < 3 else f"{len(commits)}, in the sections of the runs"),
    ]


# Sections that take hours to measure, or targets of their own, and what says that a folder holds them.
BORROWED = {
    "ablations": lambda results: "arms" in results and results["arms"]["chain"].isin(["ultramem", "ultramem_v2"]).any(),
    "placebos": lambda results: "arms" in results and (results["arms"]["chain"] == PLACEBOS).any(),
    "diagnosis": lambda results: "diagnosis" in results,
    "questions": lambda results: "questions" in results and (results["questions"]["state"] != "not tested").any(),
    "forgetting": lambda results: "forgetting" in results,
    "speed": lambda results: "speed" in results,
    "offload": lambda results: "offload" in results or "offload_loss" in results,
    "tuning": lambda results: "tuning" in results,
    "coordinates": lambda results: "coordinates" in results,
    "scale": lambda results: "scale" in results,
}


def blocks(name: str, draw: Callable, results: Results, reference: Results | None) -> list:
    """A section of `results`; of `reference`, and said to be, where only that one holds it."""
    holds = BORROWED.get(name)
    if not (reference and holds) or holds(results) or not holds(reference):
        return list(draw(results))
    commits = ", ".join(sorted(set(reference.runs["git_commit"].str[:10]) - {""}))
    origin = f"{reference.folder.name}, {'; '.join(sorted(reference.runs['device'].unique()))}, commit {commits}"
    return [Text(f"Not measured by this run: what follows is of the committed results ({origin})."), *draw(reference)]


def render(folder: Path, also: Sequence[Path] = (), reference: Path | None = None, beside: Path | None = None) -> str:
    """The page for a folder of results and the times in `also`; UserError if a CSV in them cannot be used.

    Sections in `BORROWED` that the folder lacks are those of `reference`, another folder, if it holds runs. `beside` is one
    that stands side by side with it, in a section of its own and in those of single runs.
    """
    results = Results(folder, also)
    lends = reference and reference.resolve() != folder.resolve() and (reference / "runs.csv").exists()
    other = Results(reference, linked=False) if lends else None
    sections = [(name, title, blocks(name, draw, results, other)) for name, title, draw in SECTIONS]
    if beside:
        against = Results(beside, linked=False)
        sections.insert(1, ("compared", f"Compared with {beside.name}", list(comparison(results, against))))
        sections = [*sections[:-1], (*sections[-1][:2], list(runs(results, against)))]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    presets = sorted(results.runs["preset"].unique()) or [folder.name]
    return page.get_template("template.html").render(
        preset=", ".join(presets), folder=folder.name, facts=facts(results), sections=sections, looks=LOOKS
    )


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of CSVs, such as results/cpu")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write, such as reports/cpu.html")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="*",
        default=[],
        help="result folders of other machines, whose latency and speed are shown too",
    )
    parser.add_argument("--reference", type=Path, help="folder whose ablations, tuning, … stand in where --results has none")
    parser.add_argument("--compare", type=Path, help="another results folder, shown side by side with --results")
    args = parser.parse_args(arguments)
    page = render(args.results, args.also, args.reference, args.compare)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.out) as part:
        part.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run(main)
