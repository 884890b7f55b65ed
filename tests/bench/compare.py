"""The comparisons: which runs are compared, and the highest acceptable ratio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Cost, Run, interleaved
from tests.gate import write_gate
from tests.libvirt_xml import EVENTS

BAR = 1.5
NAME = "win11"


@dataclass(frozen=True)
class Row:
    """One comparison; measure is "wall" or "cpu"."""

    what: str
    measure: str
    ours_s: float
    theirs_s: float
    bar: float = BAR

    @property
    def value(self) -> float:
        """The ratio of the costs, which the bar limits."""
        return self.ours_s / self.theirs_s


def plain_domain() -> bytes:
    """The XML, of some kilobytes, of a common VM without host devices."""
    return (Path(__file__).parent / "plain.xml").read_bytes()


def usb_domain() -> bytes:
    """The same VM with a USB device of the host: a hostdev, but no PCI device."""
    usb = b"""    <hostdev mode='subsystem' type='usb' managed='yes'>
      <source>
        <address bus='1' device='4'/>
      </source>
      <alias name='hostdev0'/>
      <address type='usb' bus='0' port='2'/>
    </hostdev>
"""
    return plain_domain().replace(b"  </devices>\n", usb + b"  </devices>\n")


def rows_of(what: str, ours: Cost, theirs: Cost) -> tuple[Row, ...]:
    """The wall and the CPU row of one comparison."""
    return (
        Row(what, "wall", ours.wall_s, theirs.wall_s),
        Row(what, "cpu", ours.cpu_s, theirs.cpu_s),
    )


def gate_rows(directory: Path, rounds: int) -> tuple[Row, ...]:
    """The five events of a VM without PCI host device, through the gate and through `exit 0`.

    directory takes the two scripts.
    """
    scripts = write_scripts(directory)
    rows: tuple[Row, ...] = ()
    for what, xml in (
        ("five events without a host device", plain_domain()),
        ("five events with a USB host device", usb_domain()),
    ):
        sides = [five_events(script, xml) for script in scripts]
        rows += rows_of(what, *interleaved(sides, rounds))
    return rows


def write_scripts(directory: Path) -> tuple[Path, Path]:
    """The gate and an empty hook, both written into directory.

    The gate looks for claims below directory, and finds none, as on a host without claims.
    """
    by_name = directory / "run/by-name"
    by_name.mkdir(parents=True)
    nothing = directory / "nothing"
    nothing.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    nothing.chmod(0o755)
    return write_gate(directory / "qemu", run_dir=str(by_name.parent)), nothing


def five_events(script: Path, xml: bytes) -> list[Run]:
    """The events of a VM's life for which libvirt calls a hook."""
    return [Run((str(script), NAME, *event, "-"), xml) for event in EVENTS]
