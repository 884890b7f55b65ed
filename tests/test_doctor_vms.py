"""The checks of doctor about VMs and their configuration."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import Golden, MachineFactory
from tests.doctoring import (
    GPU,
    OTHER_UUID,
    SECOND,
    Arrange,
    Case,
    assert_found,
    both,
    complete_snapshot,
    missing_in_snapshot,
    nothing,
    put,
    put_vm,
    sentences,
    system_of,
    win11,
)
from tests.fakehost import FakeHost
from tests.libvirt_xml import UUID, domain_xml
from tests.rehearsing import order
from vfio_console_hook.commands.doctor import beside as devices
from vfio_console_hook.commands.doctor import configuration, vms
from vfio_console_hook.commands.doctor.finding import Check
from vfio_console_hook.commands.doctor.system import System
from vfio_console_hook.commands.rehearse import last
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


def rehearsed(*, agrees: bool) -> Arrange:
    """The VM was rehearsed on the host as it is at this moment."""

    def arrange(host: FakeHost) -> None:
        host.tree.make_directory("var/lib")
        last.remember(host, order(host, GPU), agrees, "" if agrees else "BARs: none mapped")

    return arrange


def session(path: str, *addresses: str) -> Arrange:
    return put(path, domain_xml(*addresses).decode())


SESSION = "home/anna/.config/libvirt/qemu/win11.xml"
NO_SESSION = "VMs of qemu:///session"


def on_two(
    name: str, check: Check, arrange: Arrange, level: str, title: str, value: str = "", **more: bool
) -> Case:
    """A case on a host with two GPUs."""
    return Case(name, check, arrange, level, title, value, machine=TWO, **more)


VMS = [
    on_two("two VMs", vms.libvirt_answers, both(win11, vm("linux")), "PASS", "libvirt", "2 VMs"),
    on_two(
        "a VM that runs", vms.libvirt_answers, vm("win11", GPU, running=True),
        "PASS", "libvirt", "1 VM, 1",
    ),
    on_two(
        "an XML that cannot be read", vms.libvirt_answers, unreadable, "FAIL", "VM win11", "<uuid>",
    ),
    on_two("a VM that is off", vms.vms_with_gpus, win11, "PASS", "VM win11", f"{GPU} (on bochs"),
    on_two(
        "a VM that starts with the host", vms.vms_with_gpus,
        vm("win11", GPU, running=True, autostart=True), "PASS", "VM win11",
        "running, starts with the host",
    ),
    on_two(
        "never rehearsed", vms.rehearsals, both(complete_snapshot, win11),
        "PASS", "rehearsal of win11", "none yet",
    ),
    on_two(
        "rehearsed as plan had said", vms.rehearsals,
        both(complete_snapshot, win11, rehearsed(agrees=True)),
        "PASS", "rehearsal of win11", "all was as plan had said",
    ),
    on_two(
        "rehearsed on another kernel", vms.rehearsals,
        both(
            complete_snapshot, win11, rehearsed(agrees=True),
            put("proc/sys/kernel/osrelease", "9.9.9"),
        ),
        "PASS", "rehearsal of win11", "since it the kernel changed",
    ),
    on_two(
        "rehearsed otherwise than plan had said", vms.rehearsals,
        both(complete_snapshot, win11, rehearsed(agrees=False)),
        "WARN", "rehearsal of win11", "BARs: none mapped",
    ),
    on_two("no VM", vms.vms_with_gpus, no_vms, "WARN", "VMs with a GPU", "virsh edit"),
    on_two("no VM with a GPU", vms.vms_with_gpus, vm("linux"), "WARN", "VMs with a GPU"),
    on_two(
        "managed='no'", vms.vms_with_gpus, vm("win11", GPU, managed=False),
        "WARN", f"{GPU} in VM win11", "managed='yes'",
    ),
    on_two(
        "a GPU on QEMU's command line", vms.vms_with_gpus, on_command_line,
        "WARN", f"{GPU} in VM win11", "<qemu:commandline>",
    ),
    on_two(
        "a device that is missing", vms.missing_devices,
        both(complete_snapshot, vm("win11", GPU, "0000:0a:00.0")), "FAIL", "VM win11",
        "0000:0a:00.0",
    ),
    on_two(
        "a GPU that was plugged in", vms.hot_plugged_gpus,
        vm("win11", plugged=(GPU,), running=True), "WARN", f"{GPU} in VM win11", "take ADDRESS",
    ),
    on_two(
        "no GPU that was plugged in", vms.hot_plugged_gpus, vm("win11", GPU, running=True),
        "PASS", "hot-plugged GPUs",
    ),
    on_two(
        "a VM that runs without a claim", vms.hot_plugged_gpus,
        both(vm("win11", GPU, running=True), on_vfio(GPU)), "WARN", f"{GPU} on vfio-pci", "win11",
    ),
    on_two(
        "a VM that runs without the hook", vms.hot_plugged_gpus,
        both(
            vm("win11", GPU, running=True), on_vfio(GPU),
            put(f"{ETC}/vms/win11.yaml", "enabled: false"),
        ),
        "PASS", f"{GPU} on vfio-pci", "enabled: false",
    ),
    on_two(
        "a GPU that was bound at boot", vms.hot_plugged_gpus, both(win11, on_vfio(SECOND)),
        "WARN", f"{SECOND} on vfio-pci", "take ADDRESS",
    ),
    on_two(
        "two VMs that start with the host", vms.shared_gpus,
        both(vm("win11", GPU, autostart=True), vm("linux", GPU, uuid=OTHER_UUID, autostart=True)),
        "FAIL", f"{GPU} in win11 and linux", "virsh autostart --disable linux",
    ),
    on_two(
        "two VMs with one GPU", vms.shared_gpus,
        both(vm("win11", GPU, autostart=True), vm("l", GPU, uuid=OTHER_UUID)),
        "PASS", f"{GPU} in win11 and l",
    ),
    on_two(
        "a user's VM", vms.session_vms, session(SESSION, GPU), "WARN", f"/{SESSION}", GPU,
    ),
    on_two(
        "a VM of root's session", vms.session_vms,
        session("root/.config/libvirt/qemu/win11.xml", GPU),
        "WARN", "/root/.config/libvirt/qemu/win11.xml", GPU,
    ),
    on_two("a user's VM without a GPU", vms.session_vms, session(SESSION), "PASS", NO_SESSION),
    on_two(
        "a home on a server", vms.session_vms,
        both(session(SESSION, GPU), put("proc/mounts", "nas:/h /home/anna nfs4 rw 0 0")),
        "PASS", NO_SESSION,
    ),
    missing_in_snapshot(
        "homes that are not in the snapshot", vms.session_vms, nothing, NO_SESSION, machine=TWO
    ),
]  # fmt: skip


# -- what goes with a GPU


def beside(pci_class: str, folder: str, name: str, more: str = "", text: str = "") -> Arrange:
    """A VM gets a device with something below it in sysfs, and a file below that."""

    def arrange(host: FakeHost) -> None:
        put_vm(host, "win11", GPU, OTHER)
        device = f"sys/devices/pci0000:00/{OTHER}"
        host.tree.put(f"{device}/class", pci_class)
        host.tree.link(f"sys/bus/pci/devices/{OTHER}", device)
        host.tree.make_directory(f"{device}/{name}")
        host.tree.link(f"{folder}/{name}", f"{device}/{name}")
        host.tree.put("proc/self/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda1 rw")
        if more:
            host.tree.put(f"{device}/{name}/{more}", text)

    return arrange


def used(name: str, level: str, value: str, arrange: Arrange) -> Case:
    title = f"{OTHER} in VM win11" if arrange is not win11 else "devices of the host"
    return on_two(name, devices.devices_of_the_host, arrange, level, title, value)


OTHER = "0000:05:00.0"
BESIDE = [
    used("only the GPU", "PASS", "takes a disk, network or keyboard", win11),
    used(
        "a disk that is mounted", "FAIL", "sda1, which is mounted, is on it, so the VM is refused",
        beside("0x010601", "sys/block", "sda", "sda1/dev", "8:1"),
    ),
    used(
        "a disk with LVM", "WARN", "sda, which the host uses, is on it, and is gone",
        beside("0x010601", "sys/block", "sda", "holders/dm-0/dev", "253:0"),
    ),
    used(
        "a network interface", "WARN", "eth0, which is up, is on it",
        beside("0x020000", "sys/class/net", "eth0", "operstate", "up"),
    ),
    used(
        "a keyboard", "PASS", "a keyboard or mouse is on it, and goes with the VM",
        beside("0x0c0330", "sys/class/input", "input3"),
    ),
]


def test_vms_that_share_no_gpu_have_no_finding(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, autostart=True)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID, autostart=True)

    assert list(vms.shared_gpus(system_of(host))) == []


def test_a_gpu_with_a_claim_is_not_hot_plugged(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, running=True)
    claimed(host)
    on_vfio(GPU)(host)

    found = list(vms.hot_plugged_gpus(system_of(host)))

    assert [one.subject for one in found] == ["hot-plugged GPUs"]


def test_a_device_that_is_not_in_the_snapshot_is_not_reported_as_missing(
    machine: MachineFactory,
) -> None:
    host = machine(TWO)
    put_vm(host, "win11", GPU, "0000:0a:00.0")

    assert list(vms.missing_devices(system_of(host))) == []


def test_libvirt_that_does_not_answer_is_a_warning_with_its_reason(machine: MachineFactory) -> None:
    silent = System(machine(TWO), libvirt_error="it is off", libvirt_hint="start it")

    (answer,) = vms.libvirt_answers(silent)

    assert (answer.level, answer.subject, answer.advice) == ("WARN", "libvirt", "start it")
    assert answer.text.startswith("it is off")
    assert list(vms.vms_with_gpus(silent)) == []


# -- the configuration


def files(**texts: str) -> Arrange:
    """Files below the directory of the configuration; a VM's name is written vms__NAME."""

    def arrange(host: FakeHost) -> None:
        put_vm(host, "win11", GPU)
        for name, text in texts.items():
            host.tree.put(f"{ETC}/{name.replace('__', '/')}.yaml", text)

    return arrange


def misplaced(name: str, correct: str) -> Case:
    """A file that is never read."""
    check, arrange = configuration.files_for_no_vm, both(win11, put(f"{ETC}/{name}", ""))
    return on_two(f"a file {name}", check, arrange, "WARN", f"/{ETC}/{name}", f"/{ETC}/{correct}")


CONFIGURATION = [
    on_two(
        "no file", configuration.mistakes, lambda host: host.tree.make_directory(ETC),
        "PASS", "configuration",
    ),
    missing_in_snapshot(
        "a configuration that is not in the snapshot", configuration.mistakes, win11,
        "configuration", machine=TWO,
    ),
    on_two(
        "files in order", configuration.mistakes, files(default="apu: allow", vms__win11=""),
        "PASS", "configuration", "default.yaml and vms/win11.yaml",
    ),
    on_two(
        "a mistake for all VMs", configuration.mistakes,
        files(default="apu: allow\nbootfb: perhaps"),
        "FAIL", "configuration of all VMs", f"/{ETC}/default.yaml:2:",
    ),
    on_two(
        "a wait that is too long", configuration.without_effect,
        files(vms__win11="\nholders: {wait_s: 50}"), "WARN", f"/{ETC}/vms/win11.yaml:2",
        "set `timeout_s: 150`",
    ),
    on_two(
        "a mistake for one VM", configuration.mistakes, files(vms__win11="\nbootbf: native"),
        "FAIL", "configuration of win11", f"/{ETC}/vms/win11.yaml:2:",
    ),
    on_two(
        "a mistake for a VM that libvirt does not know", configuration.mistakes,
        files(vms__gone="bootbf: native"), "FAIL", "configuration of gone",
    ),
    on_two(
        "two files for one VM", configuration.mistakes,
        files(**{"vms__win11": "", f"vms__{UUID}": ""}),
        "FAIL", "configuration of win11", f"/{ETC}/vms/{UUID}.yaml",
    ),
    on_two(
        "a file with capitals", configuration.files_for_no_vm, files(vms__Win11=""),
        "WARN", f"/{ETC}/vms/Win11.yaml", f"/{ETC}/vms/win11.yaml",
    ),
    on_two(
        "a file of a VM that is gone", configuration.files_for_no_vm, files(vms__debian=""),
        "WARN", f"/{ETC}/vms/debian.yaml", "remove it",
    ),
    on_two(
        "a file with capitals beside the right one", configuration.files_for_no_vm,
        files(vms__Win11="", vms__win11=""),
        "WARN", f"/{ETC}/vms/Win11.yaml", f"add what you need of it to /{ETC}/vms/win11.yaml",
    ),
    on_two(
        "a file with capitals beside one by uuid", configuration.files_for_no_vm,
        files(**{"vms__Win11": "", f"vms__{UUID}": ""}),
        "WARN", f"/{ETC}/vms/Win11.yaml", f"add what you need of it to /{ETC}/vms/{UUID}.yaml",
    ),
    on_two(
        "a misplaced file beside the right one", configuration.files_for_no_vm,
        both(files(vms__win11=""), put(f"{ETC}/win11.yaml", "")),
        "WARN", f"/{ETC}/win11.yaml", f"add what you need of it to /{ETC}/vms/win11.yaml",
    ),
    misplaced("vms/win11.yml", "vms/win11.yaml"),
    misplaced("win11.yaml", "vms/win11.yaml"),
    misplaced("default.yml", "default.yaml"),
]  # fmt: skip


def test_a_mistake_for_all_vms_is_reported_once(machine: MachineFactory) -> None:
    host = machine(TWO)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID)
    files(default="bootfb: perhaps", vms__linux="apu: perhaps")(host)

    found = list(configuration.mistakes(system_of(host)))

    assert [one.subject for one in found] == ["configuration of all VMs", "configuration of linux"]
    assert "default.yaml" not in found[1].text


@pytest.mark.parametrize("stem", ["win11", UUID, UUID.upper()])
def test_a_file_of_a_vm_is_found_by_name_or_uuid(machine: MachineFactory, stem: str) -> None:
    host = machine(TWO)
    files(**{f"vms__{stem}": "apu: allow"})(host)

    assert list(configuration.files_for_no_vm(system_of(host))) == []


def test_without_libvirt_no_file_is_reported_as_unused(machine: MachineFactory) -> None:
    host = machine(TWO)
    host.tree.put(f"{ETC}/vms/debian.yaml", "")

    assert list(configuration.files_for_no_vm(System(host, libvirt_error="it is off"))) == []


CASES = [*VMS, *BESIDE, *CONFIGURATION]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_vms(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-vms", sentences(CASES, machine))
