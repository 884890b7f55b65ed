"""record: a snapshot for which plan, doctor and status print the same, without secrets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import installed, private, snapshots
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, hold
from tests.gate import ROOT
from tests.libvirt_xml import domain_xml
from tests.measured import MEASURED
from vfio_console_hook import __version__, cli, domain
from vfio_console_hook.commands.snapshot import writer
from vfio_console_hook.machine import kernel
from vfio_console_hook.machine.pci import displays
from vfio_console_hook.machine.snapshot import answer_path, unpack

# test_snapshot.py has every machine. Here is a third of those before a VM had a GPU, and some
# of the others: doctor starts a process for each check.
MACHINES = sorted({*snapshots.before_vms()[::3], *snapshots.names()[::20]})[
    :: 20 if MEASURED else 1
]
UUID = "00000000-0000-4000-8000-0000000000aa"
GPU = private.GPU
Capture = pytest.CaptureFixture[str]


def with_vm(host: FakeHost, name: str, *addresses: str, uuid: str = UUID, number: int = 1) -> None:
    """Define a VM in libvirt."""
    host.tree.put(f"libvirt/{number}/name", name)
    host.tree.put(f"libvirt/{number}/uuid", uuid)
    xml = domain_xml(*addresses, name=name, uuid=uuid).decode()
    host.tree.put(f"libvirt/{number}/xml", xml)
    host.tree.put(f"libvirt/{number}/autostart", "1")


def printed(capture: Capture, host: FakeHost | None, *words: str) -> tuple[int, str, str]:
    """The exit status of a command, its stdout and its stderr."""
    capture.readouterr()
    status = cli.main([*words], host)
    out, err = capture.readouterr()
    return status, out, err


def snapshot_of(capture: Capture, host: FakeHost, file: Path) -> str:
    status, _, err = printed(capture, host, "record", str(file))
    assert status == 0, err
    return file.read_text(encoding="utf-8")


COMMANDS = (("plan", "--json", "vm1"), ("doctor",), ("status",))


@pytest.mark.parametrize("name", MACHINES)
def test_the_commands_print_the_same_for_a_snapshot_as_for_the_machine(
    machine: MachineFactory, capsys: Capture, tmp_path: Path, name: str
) -> None:
    host = machine(name)
    host.tree.put("recorded/now", "1732312312")
    with_vm(host, "vm1", *displays(host))
    file = tmp_path / "machine.tree"

    snapshot_of(capsys, host, file)

    for words in COMMANDS:
        there = printed(capsys, host, *words)
        assert printed(capsys, None, "--root", str(file), *words) == there


# The replacements of the names; in this order, because some are parts of others.
REPLACEMENTS = {
    "freds-disk.rom": "file1",
    private.NAME: "vm1",
    private.NAME.replace("-", "\\\\x2d"): "vm1",
    private.NAME.upper(): "VM1",
    "fredsmith@smith.example.org": "user@host",
    "annasmith": "user1",
    "fredsmith": "user2",
    "smithtower": "host1",
    private.IPV4: "192.0.2.1",
    private.IPV6: "2001:db8::1",
    private.OTHER_UUID: "00000000000040008000000000000003",
    private.SERVER: "server1.example",
}
AS_JSON = (("plan", "--json", "vm1"), ("doctor", "--json"), ("status", "--json"))


def test_the_commands_print_the_same_for_a_snapshot_except_for_private_names(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = private.add_data(machine("efifb-6.12"))
    file = tmp_path / "machine.tree"
    text = snapshot_of(capsys, host, file)
    uuid = next(line for line in text.splitlines() if line.startswith("f libvirt/1/uuid = "))
    replacements = {**REPLACEMENTS, private.UUID: uuid.rpartition(" ")[2]}

    for words in AS_JSON:
        there = printed(capsys, host, *(word.replace("vm1", private.NAME) for word in words))
        expected = there[1]
        for name, replacement in replacements.items():
            expected = expected.replace(name, replacement)
        status, out, err = printed(capsys, None, "--root", str(file), *words)
        assert unordered(json.loads(out)) == unordered(json.loads(expected))
        assert (status, err) == (there[0], there[2])


def unordered(output: dict[str, Any]) -> list[str]:
    """The output of a command with the findings of doctor sorted, which names reorder."""
    findings = sorted(map(json.dumps, output.pop("findings", [])))
    return [*findings, *json.dumps(output, indent=1).split("\n")]


def test_a_snapshot_of_a_snapshot_is_the_same(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = private.add_data(machine("efifb-6.12"))
    first, second = tmp_path / "first.tree", tmp_path / "second.tree"
    snapshot_of(capsys, host, first)

    printed(capsys, None, "--root", str(first), "record", str(second))

    assert second.read_text(encoding="utf-8") == first.read_text(encoding="utf-8")


def test_no_secret_is_in_a_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = private.add_data(machine("efifb-6.12"))
    there = private.secrets_in_files(host)

    text = snapshot_of(capsys, host, tmp_path / "machine.tree")

    assert there == set(private.SECRETS)
    assert private.secrets_in(text) == set()


def test_a_user_who_lingers_and_is_not_in_passwd_has_no_name_in_a_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("amd-single")
    with_vm(host, "vm1", *displays(host))
    settings = "holders: {terminate: [session]}\n"
    installed.file(host, "etc/vfio-console-hook/default.yaml", settings, mode=0o644)
    words = "# private\nNAME=carasmith\nSTATE=active\nDISPLAY=hunter2\n"
    host.tree.put("run/systemd/users/5001", words)
    host.tree.put("var/lib/systemd/linger/carasmith", "")
    host.tree.make_directory("sys/fs/cgroup/user.slice/user-5001.slice/user@5001.service")
    file = tmp_path / "machine.tree"

    text = snapshot_of(capsys, host, file)

    assert "carasmith" not in text
    assert "hunter2" not in text
    assert "NAME=user1" in text
    plan = printed(capsys, host, "plan", "--json", "vm1")
    assert "user@5001.service" in plan[1]
    assert printed(capsys, None, "--root", str(file), "plan", "--json", "vm1") == plan


# -- the text


def test_a_snapshot_begins_with_its_version_and_a_warning(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    text = snapshot_of(capsys, machine("efifb-6.12"), tmp_path / "machine.tree")

    assert text.splitlines()[:2] == [
        "# vfio-console-hook machine",
        f"# vfio-console-hook {__version__}, Linux 6.12.107+deb13-amd64",
    ]
    assert "read this before you publish it" in text.splitlines()[3]


def test_with_a_dash_only_the_snapshot_goes_to_stdout(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    text = snapshot_of(capsys, host, tmp_path / "machine.tree")

    assert printed(capsys, host, "record", "-") == (0, text, "")


def test_a_path_that_cannot_be_read_is_named_and_the_rest_is_in_the_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    with_vm(host, "vm1", GPU)
    host.tree.put("recorded/now", "1732312312")
    for path in ("proc/cmdline", "etc/vfio-console-hook/.itself", "sys/class/graphics/.itself"):
        host.tree.put(f"refused/{path}", "13")
    host.tree.make_directory("etc/vfio-console-hook")
    host.tree.put("proc/cmdline", "quiet")
    file = tmp_path / "machine.tree"

    status, _, err = printed(capsys, host, "record", str(file))

    text = file.read_text(encoding="utf-8")
    remark = "could not be read: cannot read /proc/cmdline: Permission denied"
    assert (status, f"vfio-console-hook: {remark}\n" in err) == (0, True)
    assert f"# {remark}" in text.splitlines()[:10]
    assert "d sys/class/vtconsole" in text.splitlines()
    for words in (("plan", "vm1"), ("doctor",)):
        assert printed(capsys, None, "--root", str(file), *words) == printed(capsys, host, *words)


def test_the_error_of_libvirt_is_in_the_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("libvirt/unasked", "cannot ask libvirt: it sleeps\nwake it up")
    file = tmp_path / "machine.tree"
    snapshot_of(capsys, host, file)

    assert printed(capsys, None, "--root", str(file), "plan", "vm1") == (
        1, "", "vfio-console-hook: cannot ask libvirt: it sleeps\nhint: wake it up\n",
    )  # fmt: skip


def test_only_processes_that_hold_a_gpu_are_in_a_snapshot_and_no_command_lines(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=4711, command="Xorg", unit="gdm.service")
    hold(host, "dev/fb0", pid=4712, command="plymouthd", mapped=True)
    hold(host, "home/x/letter.txt", pid=4713, command="editor")
    for pid in (4711, 4712, 4713):
        host.tree.put(f"proc/{pid}/cmdline", "secret words")
    with_vm(host, "vm1", GPU)

    text = snapshot_of(capsys, host, tmp_path / "machine.tree")

    there = {line.split()[1] for line in text.splitlines() if line[2:].startswith("proc/47")}
    assert there == {
        "proc/4711/cgroup", "proc/4711/comm", "proc/4711/fd", "proc/4711/fd/0", "proc/4711/stat",
        "proc/4712/cgroup", "proc/4712/comm", "proc/4712/fd", "proc/4712/maps", "proc/4712/stat",
    }  # fmt: skip
    assert "letter" not in text
    assert "secret words" not in text


def test_a_node_under_another_name_has_its_own_name_in_a_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    """The process was found by a device number, which a snapshot does not have."""
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=4711, command="Xorg", shown="/dev/screen")
    with_vm(host, "vm1", GPU)

    text = snapshot_of(capsys, host, tmp_path / "machine.tree")

    assert "l proc/4711/fd/0 -> /dev/fb0" in text.splitlines()


def test_an_absolute_link_stays_within_the_machine(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    installed.hook(host)
    host.tree.remove("bin")
    host.tree.text_link("bin", host.path("usr/bin"))
    host.tree.remove("usr/bin/python3")
    host.tree.text_link("usr/bin/python3", "/etc/alternatives/python3")

    lines = snapshot_of(capsys, host, tmp_path / "machine.tree").splitlines()

    assert [line for line in lines if line.startswith("l ") and " -> /" in line] == []


def test_only_options_about_gpus_stay_on_the_command_line(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    kept = (
        "quiet console=tty0 video=efifb:off,vesafb:off fbcon=map:1 nomodeset nofb intel_iommu=on"
        " iommu=pt vfio-pci.ids=10de:1b80 initcall_blacklist=sysfb_init pcie_acs_override=all"
        " modprobe.blacklist=nouveau module_blacklist=nvidia efifb=off simpledrm:off pci=noaer"
    )
    host.tree.put("proc/cmdline", f"BOOT_IMAGE=/x root=UUID=1 rd.luks.name=1=y ip=::1 {kept}")

    text = snapshot_of(capsys, host, tmp_path / "machine.tree")

    assert f"f proc/cmdline = {kept}" in text.splitlines()


def test_the_xml_of_a_vm_keeps_its_lines(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = private.add_data(machine("efifb-6.12"))
    file = tmp_path / "machine.tree"
    snapshot_of(capsys, host, file)
    root = tmp_path / "unpacked"
    root.mkdir()

    vm = unpack(file.read_text(encoding="utf-8"), str(root)).vms("qemu:///system")[0]

    devices = domain.hostdevs(private.XML.encode())
    assert len(devices) == 2
    renamed = tuple(replace(one, rom="/home/user2/file1") for one in devices)
    assert domain.hostdevs(vm.xml.encode()) == renamed


def test_every_symbol_that_the_program_uses_is_in_a_snapshot() -> None:
    """/proc/kallsyms has megabytes, so only these lines are in a snapshot."""
    package = ROOT / "vfio_console_hook"
    asked = {
        name
        for module in package.rglob("*.py")
        for name in re.findall(r'has_symbol\(\w+, "(\w+)"\)', module.read_text(encoding="utf-8"))
    }
    asked |= set(kernel.SYMBOLS.values())
    # The rows of the drivers name the others.
    rows = (package / "machine/drivers.py").read_text(encoding="utf-8")
    asked |= set(re.findall(r'\bremove(?:_shown)?="(\w+)"', rows))

    assert len(asked) >= 3
    assert asked - set(writer.SYMBOLS) == set()


def test_a_common_name_of_a_vm_is_kept(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    with_vm(host, "gpu", GPU, number=1)
    with_vm(host, "vm1", uuid=private.UUID, number=2)
    with_vm(host, "Fred", uuid=private.OTHER_UUID, number=3)

    lines = snapshot_of(capsys, host, tmp_path / "machine.tree").splitlines()

    assert [line for line in lines if "/name = " in line and "libvirt" in line] == [
        "f libvirt/1/name = gpu", "f libvirt/2/name = vm1", "f libvirt/3/name = vm2",
    ]  # fmt: skip


def test_a_kernel_release_is_not_an_address(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("proc/sys/kernel/osrelease", "6.12.107.2-generic")

    lines = snapshot_of(capsys, host, tmp_path / "machine.tree").splitlines()

    assert "f proc/sys/kernel/osrelease = 6.12.107.2-generic" in lines


def test_a_machine_that_reacts_prints_the_output_in_its_snapshot(
    machine: MachineFactory,
) -> None:
    host = machine("lab-vgacon")
    command = ("/sbin/modprobe", "--showconfig")
    host.tree.put(answer_path(command), "blacklist nouveau")

    assert host.run(*command) == "blacklist nouveau"


def test_what_keeps_a_module_from_loading_is_in_a_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("simpledrm-0380-6.17")
    with_vm(host, "vm1", *displays(host))
    commands = "vmwgfx /bin/false\nsnd /sbin/modprobe --ignore-install snd; /home/me/sound\n"
    host.tree.put("fake/install", commands)
    file = tmp_path / "machine.tree"

    text = snapshot_of(capsys, host, file)

    assert ("install vmwgfx /bin/false" in text, "/home/me/sound" in text) == (True, False)
    assert printed(capsys, None, "--root", str(file), "plan", "vm1") == (
        printed(capsys, host, "plan", "vm1")
    )


def test_a_folder_that_is_a_link_is_once_in_a_snapshot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("vgacon-5.10")
    with_vm(host, "vm1", *displays(host))
    # As in any sysfs: /sys/class has links only.
    real = Path(host.path("sys/devices/virtual/tty"))
    real.mkdir(parents=True)
    Path(host.path("sys/class/tty/tty0")).rename(real / "tty0")
    Path(host.path("sys/class/tty/tty0")).symlink_to("../../devices/virtual/tty/tty0")
    before = printed(capsys, host, "plan", "vm1")
    file = tmp_path / "machine.tree"

    snapshot_of(capsys, host, file)

    assert printed(capsys, None, "--root", str(file), "plan", "vm1") == before
    assert before[0] == 0


@pytest.mark.parametrize("name", [r'""', r'"\q"'])
def test_a_claim_whose_vm_has_no_name_is_in_a_snapshot(
    machine: MachineFactory, tmp_path: Path, capsys: Capture, name: str
) -> None:
    host = machine("lab-efifb-6.12")
    claim = f"run/vfio-console-hook/claims/{UUID}"
    host.tree.put(claim, f'{{"vm": {name}}}')

    assert f"f {claim}" in snapshot_of(capsys, host, tmp_path / "record")
