"""give: a GPU that was taken by hand is the host's again, whatever the platform did with it."""

from __future__ import annotations

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, close_device, open_device
from vfio_console_hook import cli
from vfio_console_hook.actions.vfio import UnbindVfio
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.status import overview
from vfio_console_hook.machine import console

HARVESTER, PROXMOX = "harvester-on-vfio-already", "proxmox-binds-it-itself"
GPU = "0000:b3:00.0"
DEVICE = f"sys/bus/pci/devices/{GPU}"
FIRMWARE = "sys/bus/platform/devices/efi-framebuffer.0"
Capture = pytest.CaptureFixture[str]


def bind_vfio(host: FakeHost) -> None:
    """What a platform does by itself."""
    if host.link_name(f"{DEVICE}/driver") != "vfio-pci":
        host.write(f"{DEVICE}/driver_override", "vfio-pci")
        host.write("sys/bus/pci/drivers_probe", GPU)


def taken(machine: MachineFactory, name: str) -> FakeHost:
    """The GPU was taken, a VM of the platform had it, and has ended."""
    host = machine(name)
    assert cli.main(["take", GPU], host) == 0
    bind_vfio(host)
    assert open_device(host, GPU) == []
    return host


@pytest.mark.parametrize("name", [HARVESTER, PROXMOX])
def test_a_gpu_that_the_platform_has_left_on_vfio_pci_is_taken_off_it(
    machine: MachineFactory, name: str, capfd: Capture
) -> None:
    host = taken(machine, name)
    promised = "afterwards: the firmware console comes back on efi-framebuffer.0"
    assert promised in capfd.readouterr().out
    close_device(host, GPU)

    status = cli.main(["give", GPU], host)

    assert status == 0
    assert host.link_name(f"{DEVICE}/driver") is None
    assert host.link_name(f"{FIRMWARE}/driver") == "efi-framebuffer"
    assert console.current_display(host) == "framebuffer console on fb0 (EFI VGA)"
    assert "before a reboot" not in capfd.readouterr().out


@pytest.mark.parametrize("name", [HARVESTER, PROXMOX])
def test_the_lines_by_hand_take_the_gpu_off_vfio_pci_first(
    machine: MachineFactory, name: str
) -> None:
    host = taken(machine, name)
    close_device(host, GPU)

    (held,) = overview.current(host).claims

    assert held.undo[0] == UnbindVfio(GPU).shell()
    assert held.undo[1].startswith("echo efi-framebuffer.0 > ")


@pytest.mark.parametrize("name", [HARVESTER, PROXMOX])
def test_a_gpu_that_a_vm_has_open_stays_taken_and_the_line_is_shown(
    machine: MachineFactory, name: str, capfd: Capture
) -> None:
    host = taken(machine, name)
    begun = len(host.changes)

    status = cli.main(["give", GPU], host)

    err = capfd.readouterr().err
    assert (status, host.changes[begun:], len(Claims(host).uuids())) == (1, [], 1)
    assert "qemu-system-x86 (4242) with /dev/vfio/60 open" in err
    assert f"`vfio-console-hook give {GPU}` again" in err


def test_a_gpu_that_vfio_pci_does_not_let_go_of_stays_taken(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = taken(machine, PROXMOX)
    close_device(host, GPU)
    refusing = FakeHost(host.root, refuse=1)

    status = cli.main(["give", GPU], refusing)

    err = capfd.readouterr().err
    assert (status, len(Claims(host).uuids())) == (1, 1)
    assert f"echo {GPU} > /{DEVICE}/driver/unbind" in err
    assert cli.main(["give", GPU], FakeHost(host.root)) == 0
    assert host.link_name(f"{FIRMWARE}/driver") == "efi-framebuffer"


def test_a_reboot_is_only_named_where_the_firmware_device_is_gone(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.1")
    gpu = "0000:01:00.0"
    assert cli.main(["take", gpu], host) == 0
    device = f"sys/bus/pci/devices/{gpu}"
    host.write(f"{device}/driver_override", "vfio-pci")
    host.write("sys/bus/pci/drivers_probe", gpu)  # vfio-pci of 6.1 removes the firmware device
    capfd.readouterr()

    cli.main(["give", gpu], host)

    assert host.real(FIRMWARE) is None
    assert "before a reboot: efi-framebuffer.0 is gone" in "".join(capfd.readouterr())


def test_what_give_could_not_give_back_is_its_exit_status_and_stays_visible(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("rx9070-d3cold-after-the-vm")
    gpu = "0000:03:00.0"
    host.tree.put(f"fake/after_vm/{gpu}", "silent")
    assert cli.main(["take", "--vfio", gpu], host) == 0
    open_device(host, gpu)
    close_device(host, gpu)
    capfd.readouterr()

    status = cli.main(["give", gpu], host)

    assert (status, Claims(host).uuids()) == (1, ())
    lost = f"amdgpu did not come back to {gpu}, which does not answer"
    assert f"not all came back: {lost}" in capfd.readouterr().err
    assert cli.main(["status"], host) == 1
    assert cli.main(["dismiss", gpu], host) == 0
    assert cli.main(["status"], host) == 0
