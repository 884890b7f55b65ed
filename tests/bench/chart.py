"""The growths as one SVG picture: cost against size, each in a panel of its own.

Both axes are logarithmic, so what is linear rises as the diagonal does. The picture needs
nothing but itself, and has a background of its own, as what shows it may be white or black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from tests.bench.growth import Growth

# All lengths are in pixels.
_COLUMNS = 2
_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 62, 46
_HEAD, _MARGIN = 96, 14
_GUIDE = "#8c959f"
_INK, _FAINT, _GRID, _PAPER = "#1b1f24", "#59636e", "#e4e8ec", "#ffffff"
# Told apart by people with any colour vision (Okabe and Ito, "Color Universal Design",
# 2008), and in grey by their dashes and marks.
_OURS, _FLOOR = "#b04a00", "#0072b2"
_TITLE = "What an event costs, against size"
# Less than a decade would show noise as if it were growth.
_LEAST_DECADES = 1
# How many pieces a curve is drawn of.
_SMOOTH = 40


def picture(growths: Sequence[Growth]) -> str:
    """An SVG document with a panel for each growth."""
    rows = ceil(len(growths) / _COLUMNS)
    width = _COLUMNS * _WIDTH + 2 * _MARGIN
    height = _HEAD + rows * _HEIGHT + _MARGIN
    panels = (
        f'<g transform="translate({_MARGIN + number % _COLUMNS * _WIDTH}'
        f' {_HEAD + number // _COLUMNS * _HEIGHT})">\n{_panel(growth)}\n</g>'
        for number, growth in enumerate(growths)
    )
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc"'
        ' font-family="sans-serif">',
        f'<title id="title">{_TITLE}</title>',
        f'<desc id="desc">{escape(" ".join(_described(one) for one in growths))}</desc>',
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"'
        f' fill="{_PAPER}" stroke="{_GUIDE}"/>',
        *_heading(),
        *panels,
        "</svg>\n",
    ))  # fmt: skip


def _described(one: Growth) -> str:
    largest = one.points[-1]
    return (
        f"{one.what}: {largest.size:g} {one.unit} cost {_ms(one.ours_s)}, {one.floor}"
        f" {_ms(one.theirs_s)}; it grows with the power {one.exponent:.2f} of size."
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds * 1000:.0f} ms"


def _heading() -> Iterator[str]:
    yield _text(24, 36, _TITLE, size=18, bold=True)
    yield _text(
        24, 58, "Processor time, both axes logarithmic. n^1 is linear; the exponent is that of"
        " the larger half, without what the smallest costs.", ink=_FAINT,
    )  # fmt: skip
    keys = ((24, _OURS, "vfio-console-hook"), (214, _FLOOR, "what it is compared to"))
    for x, colour, words in keys:
        dashed = colour == _FLOOR
        yield _line([(x, 78), (x + 36, 78)], colour, [(x + 18, 78)], dashed=dashed)
        yield _text(x + 44, 82, words, ink=colour)
    yield _line([(434, 78), (470, 78)], _GUIDE, (), dashed=True, width=1)
    yield _text(478, 82, "linear, from our smallest to our largest", ink=_FAINT)


@dataclass(frozen=True)
class _Scale:
    """Where a value is drawn: least and most are the ends of the axis."""

    least: float
    most: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = log10(value / self.least) / log10(self.most / self.least)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten, and with few of those their double and fivefold too."""
        decades = range(floor(log10(self.least)), ceil(log10(self.most)) + 1)
        steps = (1, 2, 5) if log10(self.most / self.least) < 2 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [one for one in ticks if self.least * 0.999 <= one <= self.most * 1.001]


def _panel(one: Growth) -> str:
    """One growth, below and right of (0, 0)."""
    sizes = [point.size for point in one.points]
    across = _Scale(sizes[0], sizes[-1], _LEFT, _WIDTH - _RIGHT)
    costs = [cost * 1000 for point in one.points for cost in (point.ours_s, point.floor_s)]
    least, most = min(costs) * 0.8, max(costs) * 1.25
    most = max(most, least * 10**_LEAST_DECADES)
    up = _Scale(least, most, _HEIGHT - _BOTTOM, _TOP)
    ours = [(across(point.size), up(point.ours_s * 1000)) for point in one.points]
    theirs = [(across(point.size), up(point.floor_s * 1000)) for point in one.points]
    return "\n".join((
        _text(_LEFT, 22, one.what, bold=True, size=14),
        _text(_LEFT, 42, f"ours: {_power(one.exponent)}", ink=_OURS),
        _text(_LEFT + 104, 42, f"{one.floor}: {_power(one.floor_exponent)}", ink=_FLOOR),
        *_grid(across, up, one.unit),
        _line(_linear(one, across, up), _GUIDE, (), dashed=True, width=1),
        _line(theirs, _FLOOR, theirs, dashed=True),
        _line(ours, _OURS, ours),
    ))  # fmt: skip


def _linear(one: Growth, across: _Scale, up: _Scale) -> list[tuple[float, float]]:
    """Where the points would be if cost grew as size does, from the first to the last of them.

    A straight line, if the axes were not logarithmic.
    """
    first, last = one.points[0], one.points[-1]
    points = []
    for number in range(_SMOOTH + 1):
        size = first.size * (last.size / first.size) ** (number / _SMOOTH)
        share = (size - first.size) / (last.size - first.size)
        cost = first.ours_s + share * (last.ours_s - first.ours_s)
        points.append((across(size), up(cost * 1000)))
    return points


def _power(exponent: float) -> str:
    return f"n^{exponent:.2f}" if exponent else "flat"


def _grid(across: _Scale, up: _Scale, unit: str) -> Iterator[str]:
    for size in across.ticks():
        x = across(size)
        yield _rule(x, up.end, x, up.start)
        yield _text(x, up.start + 16, f"{size:g}", ink=_FAINT, size=11, anchor="middle")
    for cost in up.ticks():
        y = up(cost)
        yield _rule(across.start, y, across.end, y)
        yield _text(across.start - 6, y + 4, f"{cost:g} ms", ink=_FAINT, size=11, anchor="end")
    middle = (across.start + across.end) / 2
    yield _text(middle, up.start + 34, unit, ink=_FAINT, anchor="middle")


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}" stroke="{_GRID}"/>'


def _line(
    points: Sequence[tuple[float, float]], colour: str, marks: Sequence[tuple[float, float]],
    *, dashed: bool = False, width: int = 2,
) -> str:  # fmt: skip
    """A line through points, with a disc, or if it is dashed a square, at each of marks."""
    path = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    drawn = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>']
    for x, y in marks:
        if dashed:
            box = f'x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"'
            drawn.append(f'<rect {box} fill="{_PAPER}" stroke="{colour}" stroke-width="1.5"/>')
        else:
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return "\n".join(drawn)


def _text(
    x: float, y: float, words: str, *, ink: str = _INK, size: int = 13, bold: bool = False,
    anchor: str = "start",
) -> str:  # fmt: skip
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{ink}"{weight}'
        f' text-anchor="{anchor}">{escape(words)}</text>'
    )
