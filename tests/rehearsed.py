"""A report of a rehearsal as a machine of the tests: replayed on the fake kernel.

The rehearsal is done again on the machine before; the fake must then be what the report says
that the real machine was, during it and after it.
"""

from __future__ import annotations

from pathlib import Path

from tests import events
from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device
from tests.lab import predicted
from vfio_console_hook.commands.rehearse import report, runner
from vfio_console_hook.commands.rehearse.rehearsal import Rehearsal
from vfio_console_hook.commands.snapshot.writer import SEEN, machine_text
from vfio_console_hook.config import load
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log
from vfio_console_hook.machine.snapshot import entries, unpack
from vfio_console_hook.machine.vfio_access import opened

PCI = "sys/bus/pci/devices"
OWN = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a03"
_CONFIGURATION = "etc/vfio-console-hook/"


def functions(text: str) -> tuple[str, ...]:
    """What took part, by the report."""
    lines = report.sections(text)[report.REHEARSED].splitlines()
    (line,) = [one for one in lines if one.startswith("functions ")]
    return tuple(line.split()[1:])


def machine(text: str, directory: Path, kind: type[FakeHost] = FakeHost) -> FakeHost:
    """The machine before, with its configuration, and with what it shows of its drivers."""
    directory.mkdir()
    common, _, rest = text.partition(SEEN)
    # The machine's own answers are of one moment; the fake's are of every moment.
    settings = [one for one in entries(rest) if one.path.startswith(_CONFIGURATION)]
    lines = [line for one in settings for line in one.lines()]
    unpack("\n".join([common, *lines]) + "\n", str(directory))
    host = kind(str(directory))
    for address in host.list(PCI):
        words = native(host, address)
        if words:
            host.tree.put(f"fake/native/{address}", words)
    return host


def native(host: FakeHost, address: str) -> str:
    """What tests/fakehost/pci.py wants to know of a driver that is bound; "" if none is."""
    device = f"{PCI}/{address}"
    driver = host.link_name(f"{device}/driver")
    if driver is None or driver == "vfio-pci":
        return ""
    module = host.link_name(f"sys/bus/pci/drivers/{driver}/module") or driver.replace("-", "_")
    words = [f"driver={driver}", f"module={module}"]
    names = dict(line.split(" ", 1) for line in (host.read("proc/fb") or "").splitlines())
    shown = [names.get(fb[2:], "") for fb in host.list(f"{device}/graphics")]
    words += [f"fb={one}" for one in shown[:1] if one]
    lines = (host.read("proc/iomem") or "").splitlines()
    ranges = [line.split()[0] for line in lines if line.endswith(f" : {driver}")]
    resource = (host.read(f"{device}/resource") or "").splitlines()[:6]
    bars = [str(n) for n, line in enumerate(resource) if _range(line) in ranges]
    words += [f"bars={','.join(bars)}"] if bars else []
    cards = [one for one in host.list(f"{device}/drm") if one.startswith("card")]
    words += ["card=yes"] if cards else []
    words += ["render=yes"] if any("render" in one for one in host.list(f"{device}/drm")) else []
    found = [one.partition("-")[2] for card in cards for one in host.list(f"{device}/drm/{card}")
             if one.startswith(f"{card}-")]  # fmt: skip
    return " ".join(words + ([f"connectors={','.join(found)}"] if found else []))


def _range(line: str) -> str:
    first, last, _ = line.split()
    return f"{int(first, 16):08x}-{int(last, 16):08x}"


def replay(text: str, directory: Path) -> dict[str, str]:
    """How the machine of a report differs from the fake's, during the rehearsal and after it.

    directory is created for the machines.
    """
    directory.mkdir()
    host = machine(text, directory / "before")
    taken = functions(text)
    started = "started yes\n" in report.sections(text)[report.REHEARSED]
    during = _started(host, taken) if started else _rehearsed(host, taken)
    fake = {report.DURING: during, report.AFTER: machine_text(host)}
    seen = report.sections(text)
    found = {}
    for part, lines in fake.items():
        real = predicted.normal(seen[part], directory / part)
        other = predicted.normal(lines, directory / f"fake-{part}")
        if started and part == report.DURING:
            real, other = map(predicted.without_guest_writes, (real, other))
        wrong = predicted.difference(real, other)
        if wrong:
            found[part] = wrong
    return found


def _rehearsed(host: FakeHost, taken: tuple[str, ...]) -> str:
    """Take and give back as a rehearsal does; the machine meanwhile."""
    mine = Rehearsal(
        own=OWN, vm="vm", uuid=OWN, configured_as="vm", addresses=taken, spared=(), untried="",
        seconds=1, times=1, timeout_s=60, began=host.now(),
    )  # fmt: skip
    log = Log(host, mine.vm)
    events.prepare(host, mine.domain, runner.configuration_of(host, mine), log)
    events.start(host, OWN, log)
    with opened(host, taken):
        during = machine_text(host)
    events.release(host, OWN, log, forgotten=True)
    return during


def _started(host: FakeHost, taken: tuple[str, ...]) -> str:
    """Start and destroy a VM; the machine meanwhile."""
    log, libvirt = Log(host, "vm"), FakeLibvirt(host)
    domain = Domain("vm", OWN, tuple(Hostdev(one, True, "hostdev", 0) for one in taken))
    events.prepare(host, domain, load.configuration(host, "vm", OWN), log)
    for one in taken:
        libvirt.detach(one)
    events.start(host, OWN, log)
    for one in taken:
        open_device(host, one)
    during = machine_text(host)
    for one in taken:
        close_device(host, one)
    events.stop(host, OWN, log)
    for one in taken:
        libvirt.reattach(one)
    events.release(host, OWN, log)
    return during
