"""The map of the GPUs' address ranges as an SVG picture for a bug report.

It refers to no script, style sheet or font, and has its own background, because viewers
are white or black.
"""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass, field
from html import escape  # good for XML too; xml.sax.saxutils would load urllib.request

from ...machine.gpu import Gpu
from . import memory_map
from .memory_map import (
    CONSOLE,
    DRIVER,
    FREE,
    KINDS,
    UNKNOWN,
    VFIO,
    BarMap,
    Kind,
    in_units,
    size,
)

# All lengths are in pixels.
_WIDTH, _MARGIN, _LEFT = 900, 24, 40
_BAR_WIDTH, _BAR_HEIGHT = _WIDTH - _MARGIN - _LEFT, 22
_LINE = 18
# Narrower parts would be invisible.
_LEAST = 6
# To the right of the BAR's range and size, which take 42 letters at most.
_VERDICT_LEFT, _VERDICT_COLUMNS = 400, 56
_INK, _FAINT, _PAPER = "#1b1f24", "#59636e", "#ffffff"


@dataclass(frozen=True)
class _Style:
    """How a kind is drawn: its legend, its name, its colour, and lines across 8 by 8 pixels."""

    legend: str
    name: str
    colour: str
    lines: str

    @property
    def pattern(self) -> str:
        return (
            f'<pattern id="{self.name}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<rect width="8" height="8" fill="{self.colour}"/>'
            f'<path d="{self.lines}" stroke="{_PAPER}" stroke-opacity="0.6"/></pattern>'
        )


# Colours that differ for people with any colour vision (Okabe and Ito, "Color Universal
# Design", 2008), and lines that differ in grey.
_STYLES = {
    CONSOLE: _Style("firmware console: blocks the BAR", "console", "#d55e00", "M0,8 L8,0"),
    UNKNOWN: _Style("unknown: blocks the BAR", "unknown", "#cc79a7", "M0,0 L8,8 M0,8 L8,0"),
    DRIVER: _Style("the GPU's own driver", "driver", "#0072b2", "M0,4 L8,4"),
    VFIO: _Style("vfio, for a VM", "vfio", "#009e73", "M4,0 L4,8"),
    FREE: _Style("free", "free", "#e4e8ec", ""),
}


def picture(title: str, before: tuple[Gpu, ...], after: tuple[Gpu, ...]) -> str:
    """An SVG document: the BARs of each GPU to scale, and the reservations inside them.

    title may hold any characters. A BAR that does not change is drawn once.
    """
    drawing = _Drawing()
    # <title> has the whole title.
    drawing.text(_MARGIN, _cut(_printable(title), 72), down=36, height=18, bold=True)
    _legend(drawing, (*before, *after))
    was, will = ({gpu.address: gpu for gpu in gpus} for gpus in (before, after))
    for address in dict.fromkeys((*was, *will)):
        _gpu(drawing, was.get(address), will.get(address))
    if not was and not will:
        drawing.text(_MARGIN, "no GPU", down=_LINE)
    return drawing.document(title)


@dataclass()
class _Drawing:
    """The elements drawn so far, and their height."""

    y: float = 0
    elements: list[str] = field(default_factory=list)

    def text(
        self, x: float, words: str, *, down: float = 0, height: int = 13, ink: str = _INK,
        bold: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        """One line of text, `down` below the last one."""
        self.y += down
        family = "monospace" if mono else "sans-serif"
        weight = ' font-weight="bold"' if bold else ""
        self.elements.append(
            f'<text x="{x:g}" y="{self.y:g}" font-family="{family}" font-size="{height}"'
            f'{weight} fill="{ink}" xml:space="preserve">{escape(_printable(words))}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, kind: Kind) -> None:
        """A rectangle in the colour of a kind."""
        style = _STYLES[kind]
        self.elements.append(
            f'<rect class="{style.name}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            f' fill="url(#{style.name}) {style.colour}" stroke="{_INK}" stroke-width="0.5"/>'
        )

    def document(self, title: str) -> str:
        """The whole document, with the patterns it refers to."""
        height = self.y + _MARGIN
        return "\n".join((
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:g}"'
            f' viewBox="0 0 {_WIDTH} {height:g}" role="img">',
            f"<title>{escape(_printable(title))}</title>",
            "<defs>",
            *(style.pattern for style in _STYLES.values()),
            "</defs>",
            f'<rect class="sheet" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1:g}"'
            f' rx="6" fill="{_PAPER}" stroke="#8c959f"/>',
            *self.elements,
            "</svg>\n",
        ))  # fmt: skip


def _printable(words: str) -> str:
    """Without characters that XML forbids (XML 1.0, 2.2) or that change the text direction."""
    return "".join(character for character in words if character.isprintable())


def _cut(words: str, columns: int) -> str:
    """The words, cut to this width; East Asian characters take two columns."""
    taken = 0
    for index, character in enumerate(words):
        taken += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if taken > columns:
            return words[:index] + "..."
    return words


def _legend(drawing: _Drawing, gpus: tuple[Gpu, ...]) -> None:
    """The kinds that occur, from left to right."""
    seen = {part.kind for gpu in gpus for one in memory_map.bar_maps(gpu) for part in one.parts}
    x: float = _MARGIN
    drawing.y += 26
    for kind in (kind for kind in KINDS if kind in seen):
        drawing.box(x, drawing.y - 11, 22, 14, kind)
        drawing.text(x + 28, _STYLES[kind].legend)
        x += 40 + 6.9 * len(_STYLES[kind].legend)


def _gpu(drawing: _Drawing, was: Gpu | None, will: Gpu | None) -> None:
    """One GPU before and after; None where it is not known."""
    gpus = tuple(gpu for gpu in (was, will) if gpu)
    drawing.text(_MARGIN, _described(gpus), down=36, height=15, bold=True)
    widest = max((size(bar.range) for gpu in gpus for bar in gpu.bars), default=0)
    if not widest:
        drawing.text(_LEFT, "no memory BAR has an address", down=_LINE + 4)
        return
    before, after = ({m.bar.number: m for m in memory_map.bar_maps(gpu)} if gpu else {}
                     for gpu in (was, will))  # fmt: skip
    enlarged: tuple[str, ...] = ()
    for number in sorted({*before, *after}):
        enlarged += _bar(drawing, before.get(number), after.get(number), widest)
    scale = f"To scale: the full width is {in_units(widest)}."
    if enlarged:
        scale += f" Drawn wider than to scale: {', '.join(dict.fromkeys(enlarged))}."
    drawing.y += 8
    for line in textwrap.wrap(scale, 125):
        drawing.text(_LEFT, line, down=_LINE, height=12, ink=_FAINT)


def _described(gpus: tuple[Gpu, ...]) -> str:
    drivers = ", then ".join(dict.fromkeys(gpu.driver or "none" for gpu in gpus))
    return _cut(f"GPU {gpus[0].address} (class {gpus[0].pci_class:04x}), driver: {drivers}", 90)


def _bar(
    drawing: _Drawing, before: BarMap | None, after: BarMap | None, widest: int
) -> tuple[str, ...]:
    """Draw one BAR before and after; returns what was drawn wider than to scale."""
    drawing.y += 10
    if before == after and before:
        return _row(drawing, before, "before and after", widest)
    rows = [(one, when) for one, when in ((before, "before"), (after, "after")) if one]
    return tuple(wide for one, when in rows for wide in _row(drawing, one, when, widest))


def _row(drawing: _Drawing, one: BarMap, when: str, widest: int) -> tuple[str, ...]:
    """Draw a BAR at one time: its verdict, its picture, its reservations."""
    where = f"BAR {one.bar.number}  {one.bar.range}  {in_units(size(one.bar.range))}"
    drawing.text(_LEFT, where, down=_LINE + 6, mono=True)
    drawing.text(_VERDICT_LEFT, _cut(f"{when}: {one.verdict}", _VERDICT_COLUMNS), bold=True)
    enlarged = _draw_parts(drawing, one, widest)
    reserved = [part for part in one.parts if part.reservations]
    for part in reserved if len(one.parts) > 1 else ():
        drawing.box(_LEFT, drawing.y + 7, 14, 12, part.kind)
        words = f"{part.range}  {in_units(size(part.range))}  {part.name}: {part.kind.words}"
        drawing.text(_LEFT + 22, _cut(words, 105), down=_LINE, mono=True, height=12)
    for note in one.notes:
        drawing.text(_LEFT + 22, note, down=_LINE, height=12)
    return enlarged


def _draw_parts(drawing: _Drawing, one: BarMap, widest: int) -> tuple[str, ...]:
    """Draw the BAR and its parts to scale; returns what was drawn wider than to scale."""
    sizes = tuple(size(part.range) for part in one.parts)
    to_scale = size(one.bar.range) * _BAR_WIDTH / widest
    width = max(to_scale, min(_LEAST * len(one.parts), _BAR_WIDTH))
    # Tenths of a pixel.
    widths = memory_map.shares(sizes, round(width * 10), _LEAST * 10)
    drawing.y += 8
    x = float(_LEFT)
    for part, tenths in zip(one.parts, widths):
        drawing.box(x, drawing.y, tenths / 10, _BAR_HEIGHT, part.kind)
        x += tenths / 10
    drawing.elements.append(
        f'<rect class="bar" x="{_LEFT}" y="{drawing.y:g}" width="{width:g}" height="{_BAR_HEIGHT}"'
        f' fill="none" stroke="{_INK}"/>'
    )
    drawing.y += _BAR_HEIGHT
    if width > to_scale:
        return (f"BAR {one.bar.number}",)
    small = (part for part, one_size in zip(one.parts, sizes)
             if one_size * width < _LEAST * size(one.bar.range))  # fmt: skip
    return tuple(f"{part.name or 'a free part'} in BAR {one.bar.number}" for part in small)
