"""How the report draws: colours, markers, number forms, the way from a matplotlib figure to an SVG, and axes' scales.

Every colour is a CSS variable, so that one file serves light, dark and print; each architecture has a colour (Okabe and
Ito's palette, which the colour-blind can tell apart) and a marker.
"""

import html
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

matplotlib.use("svg")

INK, MUTED, RULE, PAPER, GAIN, LOSS = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
THEME = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", GAIN: "gain", LOSS: "loss"}


@dataclass(frozen=True)
class Look:
    """How an architecture is written and drawn; `name` is also its CSS variable, `role` one of dense, moe, memory, other."""

    name: str
    label: str
    colour: str
    marker: str
    role: str = "other"


@dataclass(frozen=True)
class Panel:
    """One SVG; a wide one gets more room on the page, a broad one a row of its own."""

    svg: str
    wide: bool
    broad: bool = False


LOOKS = (
    Look("dense", "Dense", "#070707", "o", "dense"),
    Look("moe2", "MoE-2", "#080808", "s", "moe"),
    Look("moe8", "MoE-8", "#090909", "D", "moe"),
    Look("pkm", "PKM", "#0a0a0a", "^", "memory"),
    Look("ultramem", "UltraMem", "#0b0b0b", "v", "memory"),
    Look("ultramemv2", "UltraMemV2", "#0c0c0c", "P", "memory"),
)
# For architectures that the report does not know, by a hash of their name.
SPARE = (("spare1", "#0d0d0d", "X"), ("spare2", "#0e0e0e", "h"), ("spare3", "#0f0f0f", "p"), ("spare4", "#101010", "*"))
THEME |= {look.colour: look.name for look in LOOKS} | {colour: name for name, colour, _ in SPARE}
ORDER = {look.name: place for place, look in enumerate(LOOKS)}

STYLE = {
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
}
NARROW, WIDE, BROAD = 3.7, 4.4, 7.6
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
AFTER = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}


def key(arch: str) -> str:
    """The name of an architecture without punctuation: `moe_8`, `MoE-8` and `moe8` look the same."""
    return re.sub(r"[^a-z0-9]", "", arch.lower())


def look(arch: str) -> Look:
    """The look of an architecture; one that the report does not know has a spare colour."""
    name, colour, marker = SPARE[zlib.crc32(key(arch).encode()) % len(SPARE)]
    return next((known for known in LOOKS if known.name == key(arch)), Look(name, arch, colour, marker))


def in_order(archs: Iterable[str]) -> list[str]:
    return sorted(set(archs), key=lambda arch: (ORDER.get(key(arch), len(ORDER)), arch))


def si(value: float, digits: int = 3) -> str:
    """1234567 -> '1.23 M'."""
    if pd.isna(value):
        return "–"
    power = 0 if value == 0 else max(0, min(5, math.floor(math.log10(abs(value)) / 3 + 1e-12)))
    return f"{value / 1000**power:.{digits}g} {' kMGTP'[power]}".strip()


def interval(low: float, high: float, form: str = ".3f") -> str:
    """'−0.02 … 0.01', or a dash where there is none."""
    return "–" if pd.isna(low) or pd.isna(high) else f"{low:{form}} … {high:{form}}".replace("-", "−")


def anchor(run: str) -> str:
    """The id of a run's section."""
    return "run-" + re.sub(r"[^\w.-]", "_", run)


def svg(name: str, alt: str, figure: Figure) -> str:
    """The figure as an SVG element: ids start with `name`, colours come from the page, `alt` says what it shows."""
    name, buffer = re.sub(r"[^\w-]", "_", name), io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    role = "group" if "<a " in text else "img"  # links inside an image could not be reached
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"(<svg)[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'\1 role="{role}" aria-label="{html.escape(alt)}" \2>', text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var(--{variable})")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)([^")]+)', lambda hit: hit[1] + (f"{name}-" if hit[2] in ids else "") + hit[2], text)
    text = text.replace("xlink:href", "href").replace(' target="_blank"', "")
    text = re.sub(r"\s*\n\s*", " ", text)
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)


def panel(draw: Callable[..., str]) -> Callable[..., Panel]:
    """Turn a function that draws on axes, and returns in words what they show, into one from a `name` to a panel."""

    @wraps(draw)
    def drawn(name: str, *arguments, width: float = NARROW, height: float = 2.7, **options) -> Panel:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(width, height))
            return Panel(svg(name, draw(figure.add_subplot(), *arguments, **options), figure), width > NARROW, width > WIDE)

    return drawn


def markers(axes: Axes, x, y, this: Look, runs: Iterable[str] = (), solid: bool = True) -> None:
    """The markers of an architecture, each a link to its run; open ones tell a second series of it from the first."""
    if this.marker == "x":
        how = {"c": this.colour}
    elif solid:
        how = {"c": this.colour, "edgecolors": PAPER, "linewidths": 0.6}
    else:
        how = {"facecolors": PAPER, "edgecolors": this.colour, "linewidths": 1.2}
    axes.scatter(x, y, 30, marker=this.marker, zorder=3, **how).set_urls([link(run) for run in runs] or [None])


def hollow(axes: Axes, published: pd.DataFrame | None, x: str, y: str) -> None:
    for arch, rows in () if published is None else published.groupby("arch"):
        this = look(arch)
        colours = {"c": this.colour} if this.marker == "x" else {"facecolors": "none", "edgecolors": this.colour}
        axes.scatter(rows[x], rows[y], 34, marker=this.marker, zorder=3, linewidths=1.1, **colours)


def link(run: str) -> str | None:
    return f"#{anchor(run)}" if run else None


def scales(axes: Axes, log: str) -> None:
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in log:
            getattr(axes, f"set_{name}scale")("log")
            low, high = axis.get_view_interval()
            if high / low < 1.5:  # matched values would look far apart
                low, high = low / 1.4, high * 1.4
                axis.set_view_interval(low, high, ignore=True)
            wide = LogLocator(subs=(1,) if high / low > 160 else (1, 2, 5))
            axis.set_major_locator(wide if high / low > 6 else MaxNLocator(4))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda number, _: si(number, 4)))


def labelled(axes: Axes, places: Iterable[int], labels: list[str], title: str, x_label: str) -> None:
    axes.set_yticks(places, labels)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{round(number, 9) + 0:.4g}".replace("-", "−")))
    axes.spines["left"].set_visible(False)
    axes.set(title=title, xlabel=x_label)
