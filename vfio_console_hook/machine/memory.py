"""The memory of a PCI device: its BARs, and its ROM."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HostError
from ..value import Value
from . import pci
from .host import Host

# Linux include/linux/ioport.h
_IORESOURCE_MEM = 0x200
_IORESOURCE_UNSET = 0x20000000


@dataclass(frozen=True, eq=False, repr=False)
class Range(Value):
    """Physical byte addresses, both ends inclusive."""

    first: int
    last: int

    def overlaps(self, other: Range) -> bool:
        return self.first <= other.last and other.first <= self.last

    def holds(self, other: Range) -> bool:
        return self.first <= other.first and other.last <= self.last

    def __str__(self) -> str:
        return f"{self.first:x}-{self.last:x}"


@dataclass(frozen=True, eq=False, repr=False)
class Bar(Value):
    """A memory BAR: its number (0 to 5) and where it is."""

    number: int
    range: Range


def memory_bars(host: Host, address: str) -> tuple[Bar, ...]:
    """The memory BARs of a PCI device, in BAR order; unused ones and I/O ports are left out.

    address is a full PCI address in lower case, such as "0000:01:00.0".

    Raises HostError when no such device is on the PCI bus.

    Source: the first six lines of sysfs `resource` are "first last flags", one a
    BAR (Linux drivers/pci/pci-sysfs.c, resource_show).
    """
    lines = _resource(host, address)
    if lines is None:
        raise pci.no_device(address)
    bars = []
    for number, (first, last, flags) in enumerate(lines[:6]):
        if flags & _IORESOURCE_MEM and not flags & _IORESOURCE_UNSET and last > first:
            bars.append(Bar(number, Range(first, last)))
    return tuple(bars)


# `resource` has a line for each BAR and then one for the expansion ROM, with
# IORESOURCE_ROM_SHADOW if the kernel found a copy of the ROM in memory.
_ROM_LINE = 6
_ROM_SHADOW = 0x2


def rom_shadowed(host: Host, address: str) -> bool:
    """Whether the kernel has found a copy of the device's ROM in memory.

    Source: arch/x86/pci/fixup.c, pci_fixup_video. `boot_vga` may differ.
    """
    lines = _resource(host, address) or ()
    return len(lines) > _ROM_LINE and bool(lines[_ROM_LINE][2] & _ROM_SHADOW)


# Three resource_size_t, which have at most 64 bits.
_RESOURCE_LINE = re.compile(r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})")


def _resource(host: Host, address: str) -> tuple[tuple[int, int, int], ...] | None:
    """(first, last, flags) of each resource of a PCI device, or None when it is not there.

    Raises HostError when it cannot be understood.
    """
    path = f"sys/bus/pci/devices/{address}/resource"
    text = host.read(path)
    if text is None:
        return None
    found = []
    for line in text.splitlines():
        match = _RESOURCE_LINE.fullmatch(line)
        if match is None:
            raise HostError.unclear(f"/{path}", line)
        first, last, flags = match.groups()
        found.append((int(first, 16), int(last, 16), int(flags, 16)))
    return tuple(found)
