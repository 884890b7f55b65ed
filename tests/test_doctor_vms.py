"""The checks of doctor about VMs and their configuration."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.doctoring import (
    GPU,
    OTHER_UUID,
    SECOND,
    Arrange,
    Case,
    both,
    judge,
    nothing,
    put,
    put_vm,
    recorded_whole,
    win11,
)
from tests.fakehost import FakeHost
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook.commands.doctor import configuration, vms
from vfio_console_hook.commands.doctor.areas import Subject
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log

TWO = "two-gpus-6.12"
ETC = "etc/vfio-console-hook"


def vm(name: str, *addresses: str, **more: object) -> Arrange:
    return lambda host: put_vm(host, name, *addresses, **more)  # type: ignore[arg-type]  # of any kind


def on_vfio(address: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        device = f"sys/bus/pci/devices/{address}"
        host.tree.remove(f"{device}/driver")
        host.tree.link(f"{host.tree.where(device)}/driver", "sys/bus/pci/drivers/vfio-pci")

    return arrange


def claimed(host: FakeHost) -> None:
    """win11 holds the GPU, as after its prepare."""
    holder = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
    events.prepare(host, holder, Config(holders=Holders(wait_s=0)), Log(host, "win11"))


def no_vms(host: FakeHost) -> None:
    host.tree.make_directory("libvirt")


def unreadable(host: FakeHost) -> None:
    put_vm(host, "win11", GPU)
    host.tree.put("libvirt/1/xml", "<domain><name>win11</name></domain>")


def on_command_line(host: FakeHost) -> None:
    put_vm(host, "win11")
    qemu = "http://libvirt.org/schemas/domain/qemu/1.0"
    xml = host.read("libvirt/1/xml") or ""
    argument = f"<q:commandline xmlns:q='{qemu}'><q:arg value='-device'/><q:arg value="
    argument += f"'vfio-pci,host={GPU}'/></q:commandline></domain>"
    host.tree.put("libvirt/1/xml", xml.replace("</domain>", argument))


def session(path: str, *addresses: str) -> Arrange:
    return put(path, domain_xml(*addresses).decode())


SESSION = "home/anna/.config/libvirt/qemu/win11.xml"

VMS = [
    Case(vms.libvirt_answers, TWO, both(win11, vm("linux")), "PASS", "2 VMs, 0 of them running"),
    Case(vms.libvirt_answers, TWO, vm("win11", GPU, running=True), "PASS", "1 VM, 1 of them"),
    Case(vms.libvirt_answers, TWO, unreadable, "FAIL", "VM win11: the domain XML has no <uuid>"),
    Case(vms.vms_with_gpus, TWO, win11, "PASS", f"VM win11: {GPU} (on bochs-drm); off"),
    Case(
        vms.vms_with_gpus, "native-6.1", vm("win11", GPU, running=True, autostart=True),
        "PASS", f"{GPU} (on bochs-drm); running, starts with the host",
    ),
    Case(vms.vms_with_gpus, TWO, no_vms, "WARN", "no VM has a GPU of this host", "virsh edit"),
    Case(vms.vms_with_gpus, TWO, vm("linux"), "WARN", "no VM has a GPU of this host"),
    Case(
        vms.vms_with_gpus, TWO, vm("win11", GPU, managed=False),
        "WARN", f"{GPU} in VM win11: managed='no'", "managed='yes'",
    ),
    Case(
        vms.vms_with_gpus, TWO, on_command_line,
        "WARN", "<qemu:commandline>: libvirt does not know", "as a <hostdev>",
    ),
    Case(
        vms.missing_devices, TWO, both(recorded_whole, vm("win11", GPU, "0000:0a:00.0")),
        "FAIL", "VM win11: 0000:0a:00.0 in its XML is no device of this host", "lspci -D",
    ),
    Case(
        vms.hot_plugged_gpus, TWO, vm("win11", plugged=(GPU,), running=True),
        "WARN", f"{GPU} in VM win11: win11 was given it while it ran", "take ADDRESS",
    ),
    Case(
        vms.hot_plugged_gpus, TWO, vm("win11", GPU, running=True), "PASS", "hot-plugged GPUs: none",
    ),
    Case(
        vms.hot_plugged_gpus, TWO, both(vm("win11", GPU, running=True), on_vfio(GPU)),
        "WARN", "win11 runs with it, but this hook has no claim", "hook is called",
    ),
    Case(
        vms.hot_plugged_gpus, TWO,
        both(
            vm("win11", GPU, running=True), on_vfio(GPU),
            put(f"{ETC}/vms/win11.yaml", "enabled: false"),
        ),
        "PASS", "`enabled: false` for that VM",
    ),
    Case(
        vms.hot_plugged_gpus, TWO, both(win11, on_vfio(SECOND)),
        "WARN", f"{SECOND} on vfio-pci: no VM runs with it", "leave it there",
    ),
    Case(
        vms.shared_gpus, TWO,
        both(
            vm("win11", GPU, autostart=True), vm("linux", GPU, uuid=OTHER_UUID, autostart=True)
        ),
        "FAIL", f"{GPU} in win11 and linux: win11 and linux both start with the host",
        "virsh autostart --disable linux",
    ),
    Case(
        vms.shared_gpus, TWO, both(vm("win11", GPU, autostart=True), vm("l", GPU, uuid=OTHER_UUID)),
        "PASS", "only one of them can run at a time",
    ),
    Case(
        vms.session_vms, TWO, session(SESSION, GPU),
        "WARN", f"/{SESSION}: a VM of qemu:///session with {GPU}", "qemu:///system",
    ),
    Case(
        vms.session_vms, TWO, session("root/.config/libvirt/qemu/win11.xml", GPU),
        "WARN", "/root/.config/libvirt/qemu/win11.xml",
    ),
    Case(vms.session_vms, TWO, session(SESSION), "PASS", "none with a PCI device"),
    Case(
        vms.session_vms, TWO,
        both(session(SESSION, GPU), put("proc/mounts", "nas:/h /home/anna nfs4 rw 0 0")),
        "PASS", "none with a PCI device",
    ),
    Case(vms.session_vms, TWO, nothing, "WARN", "not in this recorded machine"),
]  # fmt: skip


def test_vms_that_share_nothing_are_not_told_of(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, autostart=True)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID, autostart=True)

    assert list(vms.shared_gpus(Subject.of(host, host.vms("")))) == []


def test_a_gpu_with_a_record_is_not_told_of(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, running=True)
    claimed(host)
    on_vfio(GPU)(host)

    found = list(vms.hot_plugged_gpus(Subject.of(host, host.vms(""))))

    assert [one.subject for one in found] == ["hot-plugged GPUs"]


def test_a_device_that_was_not_recorded_is_not_missing(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, "0000:0a:00.0")

    assert list(vms.missing_devices(Subject.of(host, host.vms("")))) == []


def test_libvirt_that_does_not_answer_is_a_warning_with_its_reason(machine: MachineFactory) -> None:
    silent = Subject(machine(TWO), unasked="it is off", remedy="start it")

    (answer,) = vms.libvirt_answers(silent)

    assert (answer.level, answer.subject, answer.advice) == ("WARN", "libvirt", "start it")
    assert answer.text.startswith("it is off")
    assert list(vms.vms_with_gpus(silent)) == []


# -- the configuration


def files(**texts: str) -> Arrange:
    """Files below the directory of the configuration; a VM's name is written vms__NAME."""

    def arrange(host: FakeHost) -> None:
        for name, text in texts.items():
            host.tree.put(f"{ETC}/{name.replace('__', '/')}.yaml", text)

    return arrange


CONFIGURATION = [
    Case(
        configuration.mistakes, TWO, both(win11, lambda host: host.tree.make_directory(ETC)),
        "PASS", "configuration: none, so the defaults hold",
    ),
    Case(configuration.mistakes, TWO, win11, "WARN", "not in this recorded machine"),
    Case(
        configuration.mistakes, TWO, both(win11, files(default="apu: allow", vms__win11="")),
        "PASS", f"/{ETC}: default.yaml, vms/win11.yaml",
    ),
    Case(
        configuration.mistakes, TWO, both(win11, files(default="apu: allow\nbootfb: perhaps")),
        "FAIL", f"configuration of all VMs: /{ETC}/default.yaml:2:", "no VM with a GPU starts",
    ),
    Case(
        configuration.mistakes, TWO, both(win11, files(vms__win11="\nbootbf: native")),
        "FAIL", f"configuration of win11: /{ETC}/vms/win11.yaml:2:", "that VM does not start",
    ),
    Case(
        configuration.mistakes, TWO, files(vms__win11="bootbf: native"),
        "FAIL", "configuration of win11",
    ),
    Case(
        configuration.files_for_no_vm, TWO, both(vm("win11", GPU), files(vms__Win11="")),
        "WARN", f"/{ETC}/vms/Win11.yaml: is for no VM that libvirt knows",
        "rename it to win11.yaml",
    ),
    Case(
        configuration.files_for_no_vm, TWO, both(vm("win11", GPU), files(vms__debian="")),
        "WARN", "debian.yaml: is for no VM", "remove it",
    ),
    Case(
        configuration.files_for_no_vm, TWO, both(win11, put(f"{ETC}/vms/win11.yml", "")),
        "WARN", "win11.yml: is never read", "rename it to win11.yaml",
    ),
    Case(
        configuration.files_for_no_vm, TWO, both(win11, put(f"{ETC}/win11.yaml", "")),
        "WARN", f"/{ETC}/win11.yaml: is never read", "rename it to vms/win11.yaml",
    ),
    Case(
        configuration.files_for_no_vm, TWO, both(win11, put(f"{ETC}/default.yml", "")),
        "WARN", "default.yml: is never read", "rename it to default.yaml",
    ),
]  # fmt: skip


def test_a_mistake_for_all_vms_is_told_once(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID)
    files(default="bootfb: perhaps", vms__linux="apu: perhaps")(host)

    found = list(configuration.mistakes(Subject.of(host, host.vms(""))))

    assert [one.subject for one in found] == ["configuration of all VMs", "configuration of linux"]
    assert "default.yaml" not in found[1].text


@pytest.mark.parametrize("stem", ["win11", UUID, UUID.upper()])
def test_a_file_of_a_vm_is_found_by_name_or_uuid(machine: MachineFactory, stem: str) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU)
    host.tree.put(f"{ETC}/vms/{stem}.yaml", "apu: allow")

    assert list(configuration.files_for_no_vm(Subject.of(host, host.vms("")))) == []


def test_without_libvirt_no_file_is_called_needless(machine: MachineFactory) -> None:
    host = machine(TWO)
    files(vms__debian="")(host)

    assert list(configuration.files_for_no_vm(Subject(host, unasked="it is off"))) == []


CASES = [*VMS, *CONFIGURATION]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_check_finds_what_is_there(machine: MachineFactory, case: Case) -> None:
    judge(case, machine(case.machine))
