"""Helpers of the tests of doctor: machines with VMs, and cases of one check each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.installed import in_utc
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import __version__
from vfio_console_hook.commands.doctor.finding import NOT_RECORDED, PASS, Check, Finding
from vfio_console_hook.commands.doctor.system import System
from vfio_console_hook.machine.libvirtd import SYSTEM

GPU = "0000:01:00.0"
SECOND = "0000:02:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"

Arrange = Callable[[FakeHost], None]
"""Makes a machine what a case needs."""


def both(*arrangements: Arrange) -> Arrange:
    """Apply the given arrangements, one after another."""

    def arrange(host: FakeHost) -> None:
        for one in arrangements:
            one(host)

    return arrange


def put(path: str, text: str) -> Arrange:
    """A file on the machine."""
    return lambda host: host.tree.put(path, text)


@dataclass(frozen=True)
class Case:
    """One check on one machine: after arrange the check has a finding with these facts.

    title is the title of the finding, value a part of its text or advice that no other case has.
    A WARN or FAIL comes with advice unless advised is False.
    """

    name: str
    check: Check
    arrange: Arrange
    level: str
    title: str
    value: str = ""
    machine: str = "efifb-6.12"
    advised: bool = True

    def __str__(self) -> str:
        return self.name


def missing_in_snapshot(name: str, check: Check, arrange: Arrange, title: str, **more: str) -> Case:
    """A case in which the snapshot lacks the files that the check reads."""
    return Case(name, check, arrange, "WARN", title, NOT_RECORDED, advised=False, **more)


def put_vm(
    host: FakeHost,
    name: str,
    *addresses: str,
    uuid: str = UUID,
    plugged: tuple[str, ...] = (),
    running: bool = False,
    autostart: bool = False,
    managed: bool = True,
) -> None:
    """Define a VM with these PCI devices in libvirt; hot-plugged ones are only in its live XML."""
    folder = f"libvirt/{len(host.list('libvirt')) + 1}"
    xml = domain_xml(*addresses, name=name, uuid=uuid, managed=managed)
    live = domain_xml(*addresses, *plugged, name=name, uuid=uuid, managed=managed)
    host.tree.put(f"{folder}/name", name)
    host.tree.put(f"{folder}/uuid", uuid)
    host.tree.put(f"{folder}/xml", xml.decode())
    host.tree.put(f"{folder}/live", live.decode() if running else "")
    host.tree.put(f"{folder}/autostart", "1" if autostart else "0")


def nothing(host: FakeHost) -> None:
    """The machine as its snapshot has it."""


def win11(host: FakeHost) -> None:
    """A VM with the first GPU."""
    put_vm(host, "win11", GPU)


def complete_snapshot(host: FakeHost) -> None:
    """Add all that doctor reads to the snapshot, without a problem."""
    host.tree.put("recorded/now", "1732312312")
    host.tree.put("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet intel_iommu=on")


def system_of(host: FakeHost) -> System:
    """The machine and its VMs, read from libvirt in the same way as by the command."""
    return System.with_vms(host, host.vms(SYSTEM)) if host.exists("libvirt") else System(host)


def findings(case: Case, host: FakeHost) -> list[Finding]:
    """The findings of the case's check after its arrangement, with times in UTC."""
    with in_utc():
        case.arrange(host)
        return list(case.check(system_of(host)))


def assert_found(case: Case, host: FakeHost) -> None:
    """Fail unless the check has the finding of the case."""
    found = findings(case, host)
    assert any(
        (one.level, one.subject) == (case.level, case.title)
        and case.value in f"{one.text} {one.advice}"
        and bool(one.advice) == (case.level != PASS and case.advised)
        for one in found
    ), found


def sentences(cases: Iterable[Case], machine: MachineFactory) -> str:
    """The findings of all cases, each below the name of its case."""
    lines = []
    for case in {one.name: one for one in cases}.values():
        lines.append(f"# {case.name}")
        for one in findings(case, machine(case.machine)):
            lines.append(f"{one.level}  {one.subject}: {one.text}")
            lines += [f"      do: {one.advice}"] if one.advice else []
    return "\n".join(lines).replace(__version__, "0.0.0") + "\n"
