"""A run's training curve as a small SVG, drawn without matplotlib: a report of hundreds of runs has one for each."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from reports.style import si

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 22, 36


@dataclass(frozen=True)
class Line:
    """Points (x, y) of a curve; `colour` is a CSS variable of the page, `dots` mark each point."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = False
    dashed: bool = False


def sketch(lines: Sequence[Line], x_label: str, y_label: str, alt: str) -> str:
    """The lines on a logarithmic x and a linear y axis, named above them in their colours; `alt` says what they show."""
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    left, right = math.log(min(xs)), math.log(max(xs))
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((math.log(x) - left) / (right - left) if right > left else 0.5)

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)

    drawn, foot = [], HEIGHT - BOTTOM
    for tick in ticks:
        drawn.append(f'<path d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}" stroke="var(--rule)" stroke-width=".6"/>')
        drawn.append(_text(LEFT - 5, down(tick) + 3.5, f"{tick:.3g}", "muted", "end"))
    for tick in _decades(min(xs), max(xs)):
        drawn.append(f'<path d="M{across(tick):.1f} {foot}v3" stroke="var(--muted)" stroke-width=".7"/>')
        drawn.append(_text(across(tick), foot + 14, si(tick), "muted", "middle"))
    drawn.append(f'<path d="M{LEFT} {TOP}V{foot}H{WIDTH - RIGHT}" fill="none" stroke="var(--muted)" stroke-width=".7"/>')
    drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "muted", "middle"))
    drawn.append(_text(2, 11, y_label, "muted"))
    place = WIDTH - RIGHT
    for line in reversed(lines):
        drawn.append(_text(place, 11, line.label, line.colour, "end"))
        place -= 5.4 * len(line.label) + 16
    for line in lines:
        path = "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in line.points)
        style = ' stroke-dasharray="5 3"' if line.dashed else ""
        drawn.append(
            f'<path d="M{path}" fill="none" stroke="var(--{line.colour})" stroke-width="{1.5 if line.dots else 1}"{style}/>'
        )
        if line.dots:
            dots = "".join(f"M{across(x):.1f} {down(y):.1f}h0" for x, y in line.points)
            drawn.append(f'<path d="{dots}" stroke="var(--{line.colour})" stroke-width="5" style="stroke-linecap:round"/>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-size="10"'
    return f'<svg role="img" aria-label="{html.escape(alt)}" {box}>{"".join(drawn)}</svg>'


def _text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" fill="var(--{colour})" text-anchor="{anchor}"'
    return f"<text {where}>{html.escape(words)}</text>"


def _decades(low: float, high: float) -> list[float]:
    """Places of 1, 2 and 5 in every decade, of 1 alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 6:
            break
    return found
