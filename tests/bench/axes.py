"""What may grow: the XML, the host devices in it, /proc/iomem, the claims of other VMs.

Each size is an event that goes through the real gate, which starts Python where there is a
GPU in the XML; only the machine is a recorded one. Beside it runs a program that cannot do
with less: the same Python, which only reads the same bytes.
"""

from __future__ import annotations

import compileall
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.compare import Row
from tests.bench.growth import Growth, Point
from tests.bench.measure import Run, interleaved
from tests.gate import ROOT, write_gate
from tests.libvirt_xml import EVENTS, domain_xml
from vfio_console_hook.recorded import entries, unpack

MACHINE = "lab-efifb-6.12"
RUNNING = "recorded-efifb-6.12-running"
GPU = "0000:01:00.0"
NAME = "win11"
KIB = 1024
PREPARE = ("prepare", "begin")
NEAR_KIB = 64

# As hooks/launch.py, and as small: a script is compiled in every run. What prepare leaves
# behind goes, so that every run finds the machine alike.
_PROGRAM = """\
import gc, os, sys
gc.disable()
sys.dont_write_bytecode = True
sys.path.insert(0, {repository!r})
from vfio_console_hook import hook
from tests.bench.pretending import Pretending
host = Pretending({machine!r}, sys.argv[2])
status = hook.main(sys.argv[1:], host=host)
os.unlink(host.path("run/vfio-console-hook/by-name/=" + sys.argv[1]))
os.unlink(host.path("run/vfio-console-hook/claims/0f0e0d0c-0b0a-4908-8706-050403020100"))
sys.stderr.flush()
os._exit(status)
"""
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
    """What makes an XML large: copies of an element, before a line of the XML."""

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
    """The five events of a VM without a PCI host device, beside a hook that is empty.

    Up to NEAR_KIB both are compared, and what is larger may only grow as its size.
    """
    nothing = directory / "nothing"
    nothing.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    nothing.chmod(0o755)
    (directory / "run/by-name").mkdir(parents=True, exist_ok=True)
    ours = write_gate(directory / "qemu", run_dir=str(directory / "run"))
    sides = []
    for size in sizes_kib:
        xml = filling.fill(domain_xml(name=NAME), size * KIB)
        for script in (ours, nothing):
            sides.append([Run((str(script), NAME, *event, "-"), xml) for event in EVENTS])
    points = _points(sizes_kib, sides, rounds)
    what = f"five events, no PCI device, {filling.name}"
    near = (one for one in points if one.size <= NEAR_KIB)
    return (
        *(Row(f"{what}, {one.size:g} KiB", "cpu", one.ours_s, one.floor_s) for one in near),
        Growth(what, "KiB of XML", "empty hook", points),
    )


def xml(directory: Path, rounds: int, sizes_kib: Sequence[int], filling: Filling) -> Growth:
    """prepare of a VM with a GPU, beside a Python that parses the same XML."""
    machine = Machine(directory)
    sides = []
    for size in sizes_kib:
        content = filling.fill(domain_xml(GPU, name=NAME), size * KIB)
        sides += [[machine.prepare(content)], [Run(_PARSE, content)]]
    return Growth(
        f"prepare with a GPU, {filling.name}", "KiB of XML", "parsing it",
        _points(sizes_kib, sides, rounds),
    )  # fmt: skip


def hostdevs(directory: Path, rounds: int, counts: Sequence[int]) -> Growth:
    """prepare of a VM with a GPU and other host devices, beside a Python that parses the XML."""
    machine = Machine(directory)
    others = machine.add_devices(max(counts) - 1)
    sides = []
    for count in counts:
        content = domain_xml(GPU, *others[: count - 1], name=NAME)
        sides += [[machine.prepare(content)], [Run(_PARSE, content)]]
    return Growth(
        "prepare with a GPU among host devices", "host devices", "parsing the XML",
        _points(counts, sides, rounds),
    )  # fmt: skip


def iomem(directory: Path, rounds: int, counts: Sequence[int]) -> Growth:
    """prepare where /proc/iomem has that many lines, beside a Python that splits them."""
    content = domain_xml(GPU, name=NAME)
    sides = []
    for count in counts:
        machine = Machine(directory / str(count))
        path = machine.grow_iomem(count)
        split = (*_PYTHON, _SPLIT.format(path=str(path)))
        sides += [[machine.prepare(content)], [Run(split)]]
    return Growth(
        "prepare, long /proc/iomem", "lines", "splitting them", _points(counts, sides, rounds)
    )


def claims(directory: Path, rounds: int, counts: Sequence[int]) -> Growth:
    """prepare while other VMs hold that many GPUs, beside a Python that loads their records."""
    content = domain_xml(GPU, name=NAME)
    sides = []
    for count in counts:
        machine = Machine(directory / str(count))
        path = machine.add_claims(count)
        load = (*_PYTHON, _LOAD.format(path=str(path)))
        sides += [[machine.prepare(content)], [Run(load)]]
    return Growth(
        "prepare, claims of other VMs", "claims", "loading them", _points(counts, sides, rounds)
    )


def _points(
    sizes: Sequence[float], sides: Sequence[Sequence[Run]], rounds: int
) -> tuple[Point, ...]:
    """The points of a growth, whose runs are ours and the floor's of each size in turn."""
    costs = interleaved(sides, rounds)
    pairs = zip(sizes, costs[::2], costs[1::2])
    return tuple(Point(size, ours.cpu_s, floor.cpu_s) for size, ours, floor in pairs)


class Machine:
    """A recorded machine that can be made larger, and the gate for it."""

    def __init__(self, directory: Path) -> None:
        for folder in ("vfio_console_hook", "tests/bench"):
            compileall.compile_dir(ROOT / folder, quiet=1)
        self.root = directory / "machine"
        self.root.mkdir(parents=True)
        tree = (ROOT / f"tests/machines/{MACHINE}.tree").read_text(encoding="utf-8")
        unpack(tree, str(self.root))
        program = directory / "hook"
        values = {"repository": str(ROOT), "machine": str(self.root)}
        program.write_text(_PROGRAM.format(**values), encoding="utf-8")
        run_dir = self.root / "run/vfio-console-hook"
        self._gate = write_gate(directory / "gate", program=str(program), run_dir=str(run_dir))

    def prepare(self, xml: bytes) -> Run:
        """The event, as libvirt has it run by the gate."""
        return Run((str(self._gate), NAME, *PREPARE, "-"), xml)

    def add_devices(self, count: int) -> list[str]:
        """The addresses of that many devices that are no GPUs: virtual functions of an NVMe."""
        addresses = [f"0000:{0x20 + n // 8:02x}:00.{n % 8}" for n in range(count)]
        for address in addresses:
            folder = self.root / "sys/bus/pci/devices" / address
            folder.mkdir()
            (folder / "class").write_text("0x010802\n", encoding="utf-8")
            lines = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 13
            (folder / "resource").write_text(lines, encoding="utf-8")
        return addresses

    def grow_iomem(self, count: int) -> Path:
        """Give /proc/iomem that many lines; its path. The new ones lie above all others."""
        path = self.root / "proc/iomem"
        lines = path.read_text(encoding="utf-8").splitlines()
        if count < len(lines):
            raise ValueError(f"{MACHINE} has {len(lines)} lines already")
        lines += [
            f"    {first:x}-{first + 0xFFF:x} : 0000:{number % 256:02x}:00.0"
            for number, first in enumerate(range(1 << 40, (1 << 40) + (count << 13), 1 << 13))
        ]
        path.write_text("".join(f"{line}\n" for line in lines[:count]), encoding="utf-8")
        return path

    def add_claims(self, count: int) -> Path:
        """Make records of that many VMs which run and hold a GPU each; their directory."""
        boot = (self.root / "proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        run_dir = self.root / "run/vfio-console-hook"
        for folder in (run_dir, run_dir / "claims", run_dir / "by-name"):
            folder.mkdir(mode=0o700)
        for number, (uuid, text) in enumerate(_records(boot, count)):
            file = run_dir / "claims" / uuid
            file.write_text(text, encoding="utf-8")
            file.chmod(0o600)
            (run_dir / f"by-name/=vm{number}").symlink_to(f"../claims/{uuid}")
        return run_dir / "claims"


def _records(boot: str, count: int) -> Iterator[tuple[str, str]]:
    """(uuid, text) of the record of each VM: that of a real one, but for what tells it apart."""
    tree = (ROOT / f"tests/machines/{RUNNING}.tree").read_text(encoding="utf-8")
    (real,) = (one for one in entries(tree) if one.path.startswith("run/vfio-console-hook/claims/"))
    head, _, rest = real.content.decode().partition("\n")
    for number in range(count):
        uuid = f"00000000-0000-4000-8000-{number:012x}"
        gpu = f"{1 + number // 256:04x}:{number % 256:02x}:00.0"
        own = {**json.loads(head), "vm": f"vm{number}", "uuid": uuid, "boot": boot, "gpus": [gpu]}
        yield uuid, f"{json.dumps(own)}\n{rest.replace(GPU, gpu)}"
