"""Reservations: what /proc/iomem shows inside the BARs of a PCI device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HostError
from ..value import Value
from .host import Host
from .memory import Bar, Range

BOOTFB = "BOOTFB"
"""The resource of a simple-framebuffer device itself; it outlives the driver
(Linux drivers/firmware/sysfb_simplefb.c, sysfb_create_simplefb)."""


@dataclass(frozen=True, eq=False, repr=False)
class Reservation(Value):
    """A line of /proc/iomem inside a BAR: memory that a driver or a device has reserved.

    around: it is a BOOTFB that fills the BAR. The kernel inserts such a one above the BAR
    (Linux kernel/resource.c, __insert_resource), where it keeps nothing from being reserved.
    """

    name: str
    range: Range
    bar: int
    around: bool = False

    @property
    def vfio(self) -> bool:
        """Whether it is vfio's, for the VM: "vfio-pci", or "vfio" in Linux 7.3."""
        return self.name.startswith("vfio")

    def __str__(self) -> str:
        return f"{self.name} at {self.range} (BAR {self.bar})"


_IOMEM_LINE = re.compile(r" *([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)")


def reserved_ranges(host: Host) -> tuple[tuple[Range, str], ...]:
    """The reserved ranges of physical memory and their names, parents before children.

    Raises HostError when /proc/iomem shows only zeros, as to a reader without
    CAP_SYS_ADMIN (Linux kernel/resource.c, r_show).
    """
    lines = (host.read("proc/iomem") or "").splitlines()
    found = [match.groups() for match in map(_IOMEM_LINE.match, lines) if match]
    ranges = tuple((Range(int(first, 16), int(last, 16)), name) for first, last, name in found)
    if not any(range_.last for range_, _ in ranges):
        raise HostError(
            "cannot tell who has reserved the GPU's memory: /proc/iomem shows no addresses",
            hint="run it as root, in the host's own user namespace",
            path="/proc/iomem",
        )
    return ranges


def _reserves_whole(range_: Range, name: str, bar: Bar) -> bool:
    # Exactly the BAR, but not its own line or a bridge's window.
    return range_ == bar.range and not name.startswith("PCI ")


def reservations(
    reserved: tuple[tuple[Range, str], ...], address: str, bars: tuple[Bar, ...]
) -> tuple[Reservation, ...]:
    """Every reservation inside the BARs of a PCI device, in the order of /proc/iomem.

    Only ranges are compared: /proc/iomem stops indenting at MAX_IORES_LEVEL. A line that
    holds the whole BAR and comes before the BAR's own line, whose name is the address, is
    a bridge or a bus, not a reservation.
    """
    found = []
    for bar in bars:
        own_line_seen = False
        for range_, name in reserved:
            if not range_.overlaps(bar.range):
                continue
            if name == address and range_ == bar.range:
                own_line_seen = True
            elif own_line_seen or not range_.holds(bar.range) or _reserves_whole(range_, name, bar):
                around = name == BOOTFB and range_ == bar.range and not own_line_seen
                found.append(Reservation(name, range_, bar.number, around))
    return tuple(found)
