"""The ROM file of a VM: doctor looks at it, and a VM without it is refused beforehand."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import Golden, MachineFactory
from tests.doctoring import GPU, Arrange, Case, assert_found, both, findings, put, sentences
from tests.fakehost import FakeHost, snapshot
from tests.installed import file, folder
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook.commands.doctor import roms
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import Domain, parse
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log

FOLDER = "var/lib/libvirt/roms"
ROM = f"{FOLDER}/card.rom"
TITLE = f"ROM of {GPU} in VM win11"
PASSWD = "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:994::/:/bin/false\nann:x:1000:100:::"
GROUP = "kvm:x:994:\nroms:x:50:ann,libvirt-qemu\nusers:x:100:"


def xml(path: str = ROM, more: str = "") -> bytes:
    """A VM whose GPU has a ROM file."""
    text = domain_xml(GPU).decode()
    return text.replace("    </hostdev>", f"<rom file='/{path}'{more}/></hostdev>").encode()


def vm(host: FakeHost) -> None:
    parts = {"name": "win11", "uuid": UUID, "xml": xml().decode(), "live": "", "autostart": "0"}
    for part, text in parts.items():
        host.tree.put(f"libvirt/1/{part}", text)
    host.tree.put("recorded/now", "1732312312")


def rom(content: bytes = b"\x55\xaa\x80", mode: int = 0o644, owner: str = "0 0") -> Arrange:
    """The file with this content, mode and owner."""

    def arrange(host: FakeHost) -> None:
        file(host, ROM, "")
        host.tree.put(f"stat/{ROM}", f"{0o100000 | mode:o} {owner} 1")
        with open(host.path(ROM), "wb") as out:
            out.write(content)

    return arrange


def users(host: FakeHost) -> None:
    host.tree.put("etc/passwd", PASSWD)
    host.tree.put("etc/group", GROUP)


def closed(mode: int, owner: str = "0 0") -> Arrange:
    return put(f"stat/{FOLDER}/.itself", f"{0o40000 | mode:o} {owner} 1")


def with_rom(name: str, level: str, value: str, *arrangements: Arrange) -> Case:
    return Case(name, roms.rom_files, both(vm, users, *arrangements), level, TITLE, value)


UNREADABLE = "QEMU runs as the user libvirt-qemu, who cannot"
CASES = [
    with_rom("a ROM", "PASS", "begins with 55 aa; libvirt-qemu can read it", rom()),
    with_rom("no file", "FAIL", f"/{ROM} does not exist, so QEMU does not start"),
    with_rom("an empty file", "FAIL", "is empty", rom(b"")),
    with_rom("a folder", "FAIL", "is no file", lambda host: folder(host, ROM)),
    with_rom("a header before the ROM", "WARN", "nvflash", rom(b"NVGI" + bytes(20) + b"\x55\xaa")),
    with_rom("a file of root's", "FAIL", f"{UNREADABLE} read /{ROM}", rom(mode=0o600)),
    with_rom("a file of QEMU's own", "PASS", "", rom(mode=0o400, owner="64055 0")),
    with_rom("a file of QEMU's group", "PASS", "", rom(mode=0o640, owner="0 994")),
    with_rom("a file of another group of QEMU's", "PASS", "", rom(mode=0o640, owner="0 50")),
    with_rom("a file of a user", "FAIL", "read", rom(mode=0o640, owner="1000 100")),
    # The owner's bits count for the owner, even where those of all others allow more.
    with_rom("a file that its owner cannot read", "FAIL", "", rom(mode=0o044, owner="64055 0")),
    with_rom("a closed folder", "FAIL", f"{UNREADABLE} enter /{FOLDER}", rom(), closed(0o700)),
    with_rom("a folder that can be entered", "PASS", "", rom(), closed(0o711)),
    with_rom(
        "a user in qemu.conf", "FAIL", "the user ann,", rom(mode=0o640, owner="0 994"),
        put("etc/libvirt/qemu.conf", '#user = "root"\nuser = "ann"'),
    ),
    with_rom(
        "QEMU as root", "PASS", "", rom(mode=0o600),
        put("etc/libvirt/qemu.conf", 'user = "+0"\nuser = "root"'),
    ),
    with_rom("a user that is unknown", "PASS", "", rom(mode=0o600), put("etc/passwd", "")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_roms(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-roms", sentences(CASES, machine))


def test_a_vm_without_a_rom_file_has_no_finding(machine: MachineFactory) -> None:
    def without(host: FakeHost) -> None:
        vm(host)
        host.tree.put("libvirt/1/xml", domain_xml(GPU).decode())

    assert findings(Case("", roms.rom_files, without, "", ""), machine("efifb-6.12")) == []


# -- plan and prepare


def refused(host: FakeHost, domain: Domain) -> str:
    """Why prepare refuses a VM, without a change; plan says the same."""
    host.tree.put("recorded/now", "1732312312")
    before = snapshot(host)
    planned = plan.plan_for(host, domain, Config())
    with pytest.raises(RefusedError) as caught:
        events.prepare(host, domain, Config(), Log(host, "win11"))
    assert snapshot(host) == before
    assert (planned.verdict, planned.reason) == (plan.REFUSE, caught.value.text)
    return caught.value.text


def test_a_vm_whose_rom_file_is_missing_is_refused(machine: MachineFactory) -> None:
    text = refused(machine("efifb-6.12"), parse(xml()))

    assert f"/{ROM} of {GPU} does not exist" in text


def test_a_failure_that_does_not_matter_does_not_bring_the_file_back(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("recorded/now", "1732312312")

    planned = plan.plan_for(host, parse(xml()), Config(on_failure="start"))

    assert (planned.verdict, f"/{ROM}" in planned.reason) == (plan.REFUSE, True)


def test_a_rom_file_of_the_command_line_counts(machine: MachineFactory) -> None:
    text = domain_xml().decode().replace("type='kvm'", "type='kvm' xmlns:q='" + QEMU + "'", 1)
    argument = f"vfio-pci,host=01:00.0,romfile=/{ROM}"
    words = f"<q:arg value='-device'/><q:arg value='{argument}'/>"
    commands = f"<q:commandline>{words}</q:commandline></domain>"
    domain = parse(text.replace("</domain>", commands).encode())

    assert domain.hostdevs[0].rom == f"/{ROM}"


QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


@pytest.mark.parametrize("more", ["", " enabled='no'"])
def test_with_the_file_or_without_a_rom_the_vm_starts(machine: MachineFactory, more: str) -> None:
    host = machine("efifb-6.12")
    host.tree.put("recorded/now", "1732312312")
    if not more:
        rom()(host)

    planned = plan.plan_for(host, parse(xml(more=more)), Config())

    assert planned.verdict == plan.START


def test_a_snapshot_that_lacks_the_file_is_no_reason_to_refuse(machine: MachineFactory) -> None:
    planned = plan.plan_for(machine("efifb-6.12"), parse(xml()), Config())

    assert planned.verdict == plan.START
