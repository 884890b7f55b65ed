"""What the tests of doctor share: machines with VMs, and cases of one check each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fakehost import FakeHost
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook.commands.doctor.areas import Check, Finding, Subject
from vfio_console_hook.machine.libvirtd import SYSTEM

GPU = "0000:01:00.0"
SECOND = "0000:02:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"

Arrange = Callable[[FakeHost], None]
"""Makes a machine what a case needs."""


def both(*arrangements: Arrange) -> Arrange:
    """All of them, one after another."""

    def arrange(host: FakeHost) -> None:
        for one in arrangements:
            one(host)

    return arrange


def put(path: str, text: str) -> Arrange:
    """A file on the machine."""
    return lambda host: host.tree.put(path, text)


@dataclass(frozen=True)
class Case:
    """One check on one machine: after arrange it has a finding like this.

    text is part of "SUBJECT: TEXT", advice part of what to do.
    """

    check: Check
    machine: str
    arrange: Arrange
    level: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.check.__name__}-{self.level}-{self.text[:40]}"


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
    """Let libvirt know a VM with these PCI devices; those plugged in are only in its run."""
    folder = f"libvirt/{len(host.list('libvirt')) + 1}"
    xml = domain_xml(*addresses, name=name, uuid=uuid, managed=managed)
    live = domain_xml(*addresses, *plugged, name=name, uuid=uuid, managed=managed)
    host.tree.put(f"{folder}/name", name)
    host.tree.put(f"{folder}/uuid", uuid)
    host.tree.put(f"{folder}/xml", xml.decode())
    host.tree.put(f"{folder}/live", live.decode() if running else "")
    host.tree.put(f"{folder}/autostart", "1" if autostart else "0")


def nothing(host: FakeHost) -> None:
    """The machine as it was recorded."""


def win11(host: FakeHost) -> None:
    """A VM with the first GPU."""
    put_vm(host, "win11", GPU)


def recorded_whole(host: FakeHost) -> None:
    """All is recorded that doctor reads of the machine, and nothing of it is wrong."""
    host.tree.put("recorded/now", "1732312312")
    host.tree.put("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet intel_iommu=on")


def subject_of(host: FakeHost) -> Subject:
    """The machine and its VMs; what libvirt knows is asked for as the command does it."""
    return Subject.of(host, host.vms(SYSTEM)) if host.exists("libvirt") else Subject(host)


def found(case: Case, host: FakeHost) -> list[Finding]:
    """What the case's check finds after its arrangement."""
    case.arrange(host)
    return list(case.check(subject_of(host)))


def judge(case: Case, host: FakeHost) -> None:
    """Fail unless the check finds what the case tells."""
    findings = found(case, host)
    told = [f"{one.level} {one.subject}: {one.text} do: {one.advice}" for one in findings]
    assert any(
        one.level == case.level
        and case.text in f"{one.subject}: {one.text}"
        and case.advice in one.advice
        for one in findings
    ), told
