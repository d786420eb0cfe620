"""summary.png of a results folder: the answer in words, loss by size and the decision chart, drawn by matplotlib alone.

`python -m reports.poster --results results/reference --out results/reference/summary.png`

It says what the report's first screen says, from the same CSVs, and carries no time stamp.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.colors import is_color_like, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evals.records import options
from evals.records.errors import run
from evals.records.files import whole
from reports import figures
from reports.answer import answer
from reports.decision import Decision, decide, drawn, elsewhere, ticks
from reports.page import Results
from reports.scaling import by_size
from reports.style import INK, MUTED, PAPER, STYLE, THEME, look

WIDTH, MARGIN, DPI = 12.0, 0.45, 100  # inches, and dots for each of them: 1200 pixels
LINE, LETTERS, TOPIC = 0.235, 118, 1.6  # of the answer's text: a line's inches and letters, and its column of topics
RIGHT = 6.0  # where the cells of the decision chart begin
TITLE = "Should the next model's sparse parameters be a mixture of experts or a memory layer?"
PAINTED = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def poster(results: Results) -> Figure:
    """The figure; what was not measured is left out, and said where the answer would stand."""
    said = list(answer(results)) or [("No answer", "It takes a memory layer and a mixture of experts at one size.")]
    found = decide(results)
    chosen = isinstance(found, Decision)
    with matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": False, "font.size": 10, "hatch.linewidth": 0.8}):
        blocks = [textwrap.wrap(words, LETTERS) for _, words in said]
        text = sum(LINE * len(lines) + 0.1 for lines in blocks)
        strips = [0.72 + 0.55 * len(ticks(cells)) for cells in found.cells.values()] if chosen else []
        drawing = max(3.4 * bool(len(results.grid)) + 0.9 * chosen, sum(strips) + 0.2 * chosen)
        height = 1.0 + text + drawing + 0.75
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER)

        def write(top: float, words: str, left: float = 0.0, **how) -> None:
            """Text whose upper edge is `top` inches below the figure's and whose left edge as far from the margin."""
            how = {"fontsize": 11, "color": INK, "va": "top"} | how
            figure.text((MARGIN + left) / WIDTH, 1 - top / height, words, **how)

        def room(left: float, top: float, width: float, high: float):
            return figure.add_axes((left / WIDTH, 1 - (top + high) / height, width / WIDTH, high / height))

        write(0.3, TITLE, fontsize=16, fontweight="bold")
        top = 0.85
        for (topic, _), lines in zip(said, blocks, strict=True):
            write(top + 0.02, topic, fontweight="bold")
            write(top, "\n".join(lines), TOPIC, linespacing=1.35)
            top += LINE * len(lines) + 0.1
        top += 0.35
        if len(results.grid):
            _losses(room(1.05, top, 3.6, 2.6), results)
        if chosen:
            write(top + 3.25, "\n".join(textwrap.wrap(_rule(found), 66)), fontsize=9, color=MUTED, linespacing=1.3)
        for high, name in zip(strips, found.cells if chosen else (), strict=True):
            axes = room(RIGHT, top, WIDTH - RIGHT - MARGIN, high - 0.55)
            figures.choices.__wrapped__(axes, found.cells[name], **drawn(found, name))
            top += high
        write(height - 0.35, _source(results), fontsize=9, color=MUTED)
        _paint(figure)
    return figure


def _losses(axes, results: Results) -> None:
    frame, labels = by_size(results, "active_params")
    title = "Test loss by size, equal compute and stored parameters"
    figures.curves.__wrapped__(axes, frame, "active_params", "loss", title=title, x_label="activated parameters", **labels)
    handles = [
        Line2D([], [], color=look(arch).colour, marker=look(arch).marker, label=look(arch).label) for arch in results.archs
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, ncols=2)


def _rule(found: Decision) -> str:
    """The chart's score in a few words; its whole caption stands in the report."""
    return (
        f"Best: lowest test loss + b log₁₀(time of a step over dense's), b = {found.slope.value:.2f} nats, what dense's loss "
        "falls by for ten times the activated parameters. “By”: distance to the runner-up. Hatched: the 95 % interval does not "
        "tell the named layers apart." + " † Timed at another sparse ratio than trained." * any(map(elsewhere, found.measured))
    )


def _source(results: Results) -> str:
    measured = results["latency"].query("kind == 'measured'") if "latency" in results else results.runs[:0]
    trained, timed = ("; ".join(sorted(frame["device"].unique())) for frame in (results.runs, measured))
    devices = trained if timed in ("", trained) else f"losses on {trained}, times on {timed}"
    presets = ", ".join(sorted(results.runs["preset"].unique()))
    runs = f"{len(results.runs)} runs of preset {presets} · {devices}"
    return f"{runs} · drawn from the CSVs of results/{results.folder.name}"


def palette() -> dict[str, str]:
    """The page's light colours, by the colour that stands for each in a figure."""
    page = Path(__file__).with_name("looks.html").read_text(encoding="utf-8")
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", page.partition(":root {")[2].partition("}")[0]))
    return {colour: light[name] for colour, name in THEME.items()}


def _paint(figure: Figure) -> None:
    """Give every artist the colours of the page in place of those that stand for them."""
    colours = palette()
    figure.canvas.draw()  # ticks are made when they are first drawn
    for artist in _artists(figure):
        for name in PAINTED:
            if hasattr(artist, f"get_{name}") and hasattr(artist, f"set_{name}"):
                _exchange(artist, name, colours)


def _artists(figure: Figure) -> Iterator[Artist]:
    for artist in figure.findobj():
        yield artist
        if getattr(artist, "get_bbox_patch", None) and artist.get_bbox_patch():
            yield artist.get_bbox_patch()


def _exchange(artist: Artist, name: str, colours: dict[str, str]) -> None:
    found = getattr(artist, f"get_{name}")()
    several = not is_color_like(found)
    old = [to_rgba(one) for one in (found if several else [found])]
    new = [(colours.get(to_hex(one[:3]), to_hex(one[:3])), one[3]) for one in old]
    if any(to_hex(one[:3]) in colours for one in old):
        getattr(artist, f"set_{name}")(new if several else new[0])


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of CSVs, such as results/reference")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write, such as results/reference/summary.png")
    args = parser.parse_args(arguments)
    figure = poster(Results(args.results))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.out) as part:
        figure.savefig(part, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})


if __name__ == "__main__":
    run(main)
