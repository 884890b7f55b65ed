"""Cost by size: of the XML, the host devices in it, /proc/iomem, the claims of other VMs.

Each size is an event through the real gate, which starts Python if a GPU is in the XML; only
the machine is a snapshot. It is compared to the least possible: the same Python, which only
reads the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.compare import Row, five_events, write_scripts
from tests.bench.growth import Growth, Point
from tests.bench.machine import GPU, NAME, Machine
from tests.bench.measure import Run, interleaved
from tests.libvirt_xml import domain_xml

KIB = 1024
PREPARE = ("prepare", "begin")
NEAR_KIB = 64
Sides = tuple[Sequence[Run], Sequence[Run]]

_PYTHON = ("/usr/bin/python3", "-I", "-c")
_PARSE = (*_PYTHON, "import sys, lxml.etree; lxml.etree.fromstring(sys.stdin.buffer.read())")
_SPLIT = "import lxml.etree; [line.split() for line in open({path!r})]"
_LOAD = """\
import json, lxml.etree, os
for one in os.scandir({path!r}):
    with open(one.path, "rb") as file:
        [json.loads(line) for line in file]
"""

_DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/var/lib/libvirt/images/data-{number}.qcow2' index='{number}'/>
      <backingStore/>
      <target dev='vd{number}' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/>
    </disk>
"""
_USB = """\
    <hostdev mode='subsystem' type='usb' managed='yes'>
      <source>
        <address bus='1' device='{number}'/>
      </source>
      <address type='usb' bus='0' port='2'/>
    </hostdev>
"""
_NOTE = """\
    <note:line xmlns:note="http://example.org/note" number="{number}">what was noted</note:line>
"""


@dataclass(frozen=True)
class Filling:
    """Makes an XML large: copies of an element before a line of the XML."""

    name: str
    element: str
    before: str
    within: str = "{}"

    def fill(self, xml: bytes, size: int) -> bytes:
        """The XML with as many elements as fit into size bytes."""
        left = size - len(xml) - len(self.within)
        elements: list[str] = []
        while True:
            elements.append(self.element.format(number=len(elements)))
            left -= len(elements[-1])
            if left < 0:
                break
        more = self.within.format("".join(elements[:-1]))
        return xml.replace(self.before.encode(), more.encode() + self.before.encode(), 1)


DISKS = Filling("disks", _DISK, "    <memballoon ")
USB = Filling("USB host devices", _USB, "    <memballoon ")
METADATA = Filling("metadata", _NOTE, "  <memory ", "  <metadata>\n{}  </metadata>\n")


def gate(
    directory: Path, rounds: int, sizes_kib: Sequence[int], filling: Filling
) -> tuple[Row | Growth, ...]:
    """The five events of a VM without a PCI host device, compared to an empty hook.

    Up to NEAR_KIB the ratio counts, beyond that only the growth.
    """
    scripts = write_scripts(directory)

    def sides(kib: int) -> Sides:
        content = filling.fill(domain_xml(name=NAME), kib * KIB)
        ours, theirs = (five_events(script, content) for script in scripts)
        return ours, theirs

    what = f"five events, no PCI device, {filling.name}"
    growth = _grown(what, sizes_kib, sides, rounds)
    near = (one for one in growth.points if one.size <= NEAR_KIB)
    return (
        *(Row(f"{what}, {one.size:g} KiB", "cpu", one.ours_s, one.floor_s) for one in near),
        growth,
    )


def xml(directory: Path, rounds: int, sizes_kib: Sequence[int], filling: Filling) -> Growth:
    """prepare of a VM with a GPU, compared to a Python that parses the same XML."""
    machine = Machine(directory, "prepare")

    def sides(kib: int) -> Sides:
        content = filling.fill(domain_xml(GPU, name=NAME), kib * KIB)
        return [machine.run(PREPARE, content)], [Run(_PARSE, content)]

    what = f"prepare with a GPU, {filling.name}"
    return _grown(what, sizes_kib, sides, rounds)


def hostdevs(directory: Path, rounds: int, counts: Sequence[int]) -> Growth:
    """prepare of a VM with a GPU and other devices, compared to a Python that parses the XML."""
    machine = Machine(directory, "prepare")
    others = machine.add_devices(max(counts) - 1)

    def sides(count: int) -> Sides:
        content = domain_xml(GPU, *others[: count - 1], name=NAME)
        return [machine.run(PREPARE, content)], [Run(_PARSE, content)]

    what = "prepare with a GPU among host devices"
    return _grown(what, counts, sides, rounds)


@dataclass(frozen=True)
class Crowding:
    """Something that a machine can have much of, and a Python that only reads it.

    add puts that much on a machine and returns the path that program reads.
    """

    what: str
    add: Callable[[Machine, int], Path]
    program: str


IOMEM = Crowding("long /proc/iomem", Machine.grow_iomem, _SPLIT)
CLAIMS = Crowding("claims of other VMs", Machine.add_claims, _LOAD)


def crowded(directory: Path, rounds: int, counts: Sequence[int], crowding: Crowding) -> Growth:
    """prepare on machines that have more and more of something."""
    content = domain_xml(GPU, name=NAME)

    def sides(count: int) -> Sides:
        machine = Machine(directory / str(count), "prepare")
        path = crowding.add(machine, count)
        reading = Run((*_PYTHON, crowding.program.format(path=str(path))))
        return [machine.run(PREPARE, content)], [reading]

    return _grown(f"prepare, {crowding.what}", counts, sides, rounds)


def _grown(what: str, sizes: Sequence[int], sides: Callable[[int], Sides], rounds: int) -> Growth:
    """The growth of the runs that sides makes for each size: ours, and those of the floor."""
    costs = interleaved([side for size in sizes for side in sides(size)], rounds)
    pairs = zip(sizes, costs[::2], costs[1::2])
    return Growth(what, tuple(Point(size, ours.cpu_s, floor.cpu_s) for size, ours, floor in pairs))
