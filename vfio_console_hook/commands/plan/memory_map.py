"""The map of a GPU's address ranges: what is in each BAR, and what blocks it.

QEMU needs each BAR as a whole (Linux drivers/vfio/pci/vfio_pci_core.c requests
the region of a whole BAR), so one small reservation blocks all of it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from ...machine import firmware
from ...machine.gpu import Gpu
from ...machine.iomem import Reservation
from ...machine.memory import Bar, Range
from ..terminal import Terminal


@dataclass(frozen=True)
class Kind:
    """A kind of reservation: the character that draws it, words, a terminal colour."""

    character: str
    words: str
    colour: str
    blocks: bool = False


FREE = Kind(".", "free", "dim")
CONSOLE = Kind("#", "firmware console", "red", blocks=True)
UNKNOWN = Kind("?", "unknown", "yellow", blocks=True)
DRIVER = Kind("d", "the GPU's own driver", "blue")
VFIO = Kind("v", "for a VM", "green")
KINDS = (CONSOLE, UNKNOWN, DRIVER, VFIO, FREE)
"""All kinds; of nested reservations the kind that comes first here counts."""


@dataclass(frozen=True)
class Part:
    """A part of a BAR with the same reservations, the outer one first; none where it is free."""

    range: Range
    reservations: tuple[Reservation, ...]
    kind: Kind

    @property
    def name(self) -> str:
        """The names of its reservations, such as "BOOTFB, simpledrm"; "" where it is free."""
        return _names(self.reservations)


@dataclass(frozen=True)
class BarMap:
    """A BAR and its parts, ordered by address, without gaps."""

    bar: Bar
    parts: tuple[Part, ...]

    @property
    def kind(self) -> Kind:
        """The kind of its worst part."""
        return min((part.kind for part in self.parts), key=KINDS.index)

    @property
    def name(self) -> str:
        """What blocks it, such as "efifb", or else what reserves it; "" if it is free."""
        alike = (part for part in self.parts if part.kind.blocks == self.kind.blocks)
        return _names(tuple(reservation for part in alike for reservation in part.reservations))

    @property
    def verdict(self) -> str:
        """Its state in a few words, such as "blocked by efifb"."""
        if self.kind.blocks:
            return f"blocked by {self.name}"
        return f"held by {self.name}, {self.kind.words}" if self.name else self.kind.words

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks about reservations that begin before the BAR or end after it."""
        found = dict.fromkeys(
            reservation for part in self.parts for reservation in part.reservations
        )
        return tuple(
            f"{_names((reservation,))} extends beyond the BAR: it is {reservation.range}"
            for reservation in found
            if not self.bar.range.holds(reservation.range)
        )


def bar_maps(gpu: Gpu) -> tuple[BarMap, ...]:
    """The map of each memory BAR, in BAR order."""
    return tuple(BarMap(bar, _parts(gpu, bar)) for bar in gpu.bars)


def _parts(gpu: Gpu, bar: Bar) -> tuple[Part, ...]:
    reservations = [
        c for c in gpu.reservations if c.bar == bar.number and c.range.overlaps(bar.range)
    ]
    # The outer one first: it is longer.
    reservations.sort(key=lambda reservation: size(reservation.range), reverse=True)
    starts = {bar.range.first}
    for reservation in reservations:
        starts |= {reservation.range.first, reservation.range.last + 1}
    firsts = sorted(start for start in starts if bar.range.first <= start <= bar.range.last)
    lasts = [first - 1 for first in firsts[1:]] + [bar.range.last]
    parts = []
    for range_ in map(Range, firsts, lasts):
        inside = tuple(
            reservation for reservation in reservations if reservation.range.holds(range_)
        )
        kind = min(
            (_kind(gpu, reservation) for reservation in inside), key=KINDS.index, default=FREE
        )
        parts.append(Part(range_, inside, kind))
    return tuple(parts)


def _kind(gpu: Gpu, reservation: Reservation) -> Kind:
    if reservation.vfio:
        return VFIO
    if reservation.around:
        return FREE
    if reservation.name in firmware.RESERVATION_NAMES:
        return CONSOLE
    # A driver may choose any name: mgag200's are "mgadrmfb_vram" and "mgadrmfb_mmio"
    # (Linux drivers/gpu/drm/mgag200/mgag200_drv.c).
    return DRIVER if gpu.native else UNKNOWN


_LONGEST_NAME = 32


def _names(reservations: tuple[Reservation, ...]) -> str:
    return ", ".join(dict.fromkeys(_plain(reservation.name) for reservation in reservations))


def _plain(name: str) -> str:
    # A snapshot can come from anyone: its names may contain terminal escapes.
    return ascii(name)[1:-1][:_LONGEST_NAME]


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(range_: Range) -> int:
    """How many bytes a range holds."""
    return range_.last - range_.first + 1


def in_units(size_bytes: int) -> str:
    """A size as text: "16 MiB" is exact, "3.9 MiB" is rounded."""
    power = min((max(size_bytes, 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    count, rest = divmod(size_bytes, 1 << 10 * power)
    if not rest:
        return f"{count} {_UNITS[power]}"
    rounded = f"{size_bytes / (1 << 10 * power):.1f}"
    # "32.0 GiB" in a BAR of 32 GiB would look like the whole BAR.
    if rounded.endswith(".0"):
        rounded = f"{size_bytes / (1 << 10 * power):.2f}"
    return f"{rounded} {_UNITS[power]}"


def shares(sizes: tuple[int, ...], total: int, least: int = 1) -> tuple[int, ...]:
    """How many of `total` units each size gets: in their ratio, but none less than `least`.

    They add up to total: the largest ones get less so that small ones get `least`. If
    there are too many sizes for that, all get the same.
    """
    least = min(least, total // len(sizes))
    size_sum, reached, ends = sum(sizes), 0, [0]
    for one in sizes:
        reached += one
        ends.append((2 * reached * total + size_sum) // (2 * size_sum))
    widths = [max(end - begin, least) for begin, end in zip(ends, ends[1:])]
    while sum(widths) > total:
        widths[widths.index(max(widths))] -= 1
    return tuple(widths)


_INDENT = " " * 9
# A BAR's size is a power of two (PCI Local Bus Specification 3.0, 6.2.5.1), so with
# these each character stands for one, too.
_COLUMNS, _COLUMNS_OF_NARROW = 64, 32


def text(gpu: Gpu, terminal: Terminal) -> str:
    """The map as indented lines of ASCII: each BAR, drawn to its own scale, and its parts."""
    maps = bar_maps(gpu)
    if not maps:
        return "  no memory BAR has an address, so nothing can block it\n"
    ranges = [range_ for one in maps for range_ in (one.bar.range, *(p.range for p in one.parts))]
    table = _Table(
        max(len(str(range_)) for range_ in ranges),
        max(len(in_units(size(range_))) for range_ in ranges),
        terminal,
    )
    return "".join(_bar(gpu, one, table) for one in maps)


@dataclass(frozen=True)
class _Table:
    """The widths of the columns for addresses and sizes, and the terminal."""

    addresses: int
    sizes: int
    terminal: Terminal

    def line(self, label: str, range_: Range, words: str, kind: Kind) -> str:
        """One row; words that do not fit are wrapped in their column."""
        amount = in_units(size(range_))
        start = f"  {label:>5}  {range_!s:>{self.addresses}}  {amount:>{self.sizes}}  "
        lines = textwrap.wrap(words, self.terminal.width - 1 - len(start), break_on_hyphens=False)
        painted = (self.terminal.paint(line, kind.colour) for line in lines)
        return start + ("\n" + " " * len(start)).join(painted) + "\n"


def _bar(gpu: Gpu, one: BarMap, table: _Table) -> str:
    idle = one.kind is FREE and gpu.native
    verdict = f"free: {_plain(gpu.driver or '')} reserves nothing here" if idle else one.verdict
    lines = table.line(f"BAR {one.bar.number}", one.bar.range, verdict, one.kind)
    if one.kind is not FREE:
        lines += _row(one, table.terminal)
    if len(one.parts) > 1:
        for part in one.parts:
            words = f"{part.name}: {part.kind.words}" if part.reservations else part.kind.words
            lines += table.line(part.kind.character, part.range, words, part.kind)
    for note in one.notes:
        lines += table.terminal.wrapped(_INDENT + note, _INDENT)
    return lines


def _row(one: BarMap, terminal: Terminal) -> str:
    """The BAR as a row of characters; every part has at least one."""
    columns = _COLUMNS if terminal.width > len(_INDENT) + _COLUMNS + 2 else _COLUMNS_OF_NARROW
    if len(one.parts) > columns:
        return ""
    sizes = tuple(size(part.range) for part in one.parts)
    widths = shares(sizes, columns)
    row = "".join(
        terminal.paint(part.kind.character * width, part.kind.colour)
        for part, width in zip(one.parts, widths)
    )
    lines = f"{_INDENT}|{row}|\n"
    if min(sizes) * columns < size(one.bar.range):
        character = in_units(size(one.bar.range) // columns)
        lines += f"{_INDENT}a character is {character}: smaller parts look larger\n"
    return lines
