"""coreboot's framebuffer, which its own bus registers again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests import events
from tests.building import COREBOOT, Firmware, Machine
from tests.conftest import MachineFactory
from tests.fakehost import (
    FakeHost,
    FakeLibvirt,
    KernelFault,
    close_device,
    open_device,
    snapshot,
)
from tests.hosts import DISPLAY, VGA, lab_gpu
from tests.lab.predicted import difference
from vfio_console_hook.actions.coreboot import RegisterCoreboot
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.snapshot.writer import machine_text
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError, LostError, RefusedError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import Log
from vfio_console_hook.machine.firmware import RESERVATION_NAMES
from vfio_console_hook.machine.iomem import reserved_ranges
from vfio_console_hook.machine.snapshot import unpack

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
NOW = Config(holders=Holders(wait_s=0))
VM = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
PICTURE = 1280 * 800 * 4
DEVICE = "sys/bus/platform/devices/simple-framebuffer.0"
REMOVES = ("framebuffer_remove",)
"""framebuffer_coreboot has a remove function: up to Linux 7.0, without the fix of 2026."""


def coreboot(
    kernel: str,
    driver: str = "simpledrm",
    pci_class: int = VGA,
    *,
    bound: bool = True,
    symbols: tuple[str, ...] = (),
) -> Machine:
    """A GPU that coreboot has lit; what registers its device is on /sys/bus/coreboot."""
    gpu = replace(lab_gpu(pci_class=pci_class), native="")
    kind, own, below = "simple", "Coreboot Framebuffer", COREBOOT
    if driver == "corebootdrm":
        kind, own, below = "coreboot", "coreboot-framebuffer.0", gpu.path
    # It was busy as long as it was removed, so simpledrm could not reserve a part of it.
    reservation = 0 if symbols else PICTURE
    firmware = Firmware(
        f"{kind}-framebuffer.0", driver, gpu.bars[0][1], PICTURE, reservation, bound=bound,
        below=below, coreboot=own,
    )  # fmt: skip
    consoles = ("0 (S) dummy device", "1 (M) frame buffer device")
    return Machine(
        "coreboot", (), kernel, (gpu,), (firmware,), symbols=symbols,
        consoles=consoles if bound else ("1 (S) dummy device",),
    )  # fmt: skip


def run_vm(host: FakeHost) -> list[int]:
    """Start a VM and end it, up to release; the BARs that QEMU could not have."""
    libvirt, log = FakeLibvirt(host), Log(host, "win11")
    events.prepare(host, VM, NOW, log)
    libvirt.detach(GPU)
    events.start(host, UUID, log)
    blocked = open_device(host, GPU)
    close_device(host, GPU)
    libvirt.reattach(GPU)
    return blocked


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


WORKS = [
    # its remove function unregisters the device, with or without a driver
    ("5.10", "simplefb", VGA, True, REMOVES),
    ("6.1", "simpledrm", VGA, True, REMOVES),
    ("6.1", "simpledrm", DISPLAY, True, REMOVES),
    ("6.12.74", "simpledrm", VGA, True, REMOVES),
    ("6.12.74", "simpledrm", VGA, False, REMOVES),
    ("6.12.74", "simpledrm", DISPLAY, False, REMOVES),
    # it has none: vfio-pci removes the device of a driver that is bound
    ("6.12.105+deb13-amd64", "simpledrm", VGA, True, ()),
    ("7.3", "corebootdrm", VGA, True, ()),
]


@pytest.mark.parametrize(("kernel", "driver", "pci_class", "bound", "symbols"), WORKS)
def test_the_console_comes_back_after_the_vm(
    machine: MachineFactory,
    kernel: str,
    driver: str,
    pci_class: int,
    bound: bool,
    symbols: tuple[str, ...],
) -> None:
    host = machine(coreboot(kernel, driver, pci_class, bound=bound, symbols=symbols))
    before = machine_text(host)
    made = plan.plan_for(host, VM, NOW)

    blocked = run_vm(host)
    during = [name for _, name in reserved_ranges(host)]
    release(host)

    assert (made.verdict, blocked) == (plan.START, [])
    assert made.after.startswith("the firmware console comes back on ")
    assert not RESERVATION_NAMES.intersection(during)
    assert difference(before, machine_text(host)) == ""


@pytest.mark.parametrize(
    ("kernel", "driver", "pci_class", "bound"),
    [
        ("6.12.105+deb13-amd64", "simpledrm", VGA, False),  # as Debian, which has no simpledrm
        ("6.12.105+deb13-amd64", "simpledrm", DISPLAY, True),
        ("5.15.200", "simpledrm", VGA, True),
        ("7.3", "corebootdrm", DISPLAY, True),
        ("7.3", "corebootdrm", VGA, False),
    ],
)
def test_what_nothing_in_the_kernel_removes_is_refused(
    machine: MachineFactory, kernel: str, driver: str, pci_class: int, bound: bool
) -> None:
    host = machine(coreboot(kernel, driver, pci_class, bound=bound))
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, NOW, Log(host, "win11"))

    assert "does not free it for vfio-pci" in caught.value.text
    assert caught.value.hint == "try to boot with modprobe.blacklist=framebuffer_coreboot"
    assert snapshot(host) == before


def test_without_the_coreboot_bus_the_loss_is_announced(machine: MachineFactory) -> None:
    host = machine(coreboot("7.3", "corebootdrm"))
    host.tree.remove("sys/bus/coreboot")

    handover, steps = events.look(host, VM, NOW)

    assert "will not come back before a reboot" in outlook(handover, steps)


def test_a_device_that_the_kernel_has_freed_is_never_unregistered_again(
    machine: MachineFactory,
) -> None:
    host = machine(coreboot("6.1", symbols=REMOVES))
    undos = [step.undo for step in events.look(host, VM, NOW)[1]]
    again = next(undo for undo in undos if isinstance(undo, RegisterCoreboot))
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)  # without prepare: vfio-pci removes it, bound as it is
    libvirt.reattach(GPU)

    with pytest.raises(LostError, match="before a reboot"):
        again.apply(host)


@pytest.mark.parametrize("symbols", [REMOVES, ()])
def test_a_prepare_that_fails_gives_it_back(
    machine: MachineFactory, symbols: tuple[str, ...]
) -> None:
    made = coreboot("6.12.74", symbols=symbols)
    first = machine(made)
    events.prepare(first, VM, NOW, Log(first, "win11"))

    for change in range(1, len(first.changes) + 1):
        host = machine(made, refuse=change)
        before = machine_text(host)
        with pytest.raises(HookError):
            events.prepare(host, VM, NOW, Log(host, "win11"))
        assert difference(before, machine_text(host)) == ""


@pytest.mark.parametrize("kernel", ["6.1.30-arch1-1", "6.1.47", "6.9.0", "6.12"])
def test_coreboots_console_on_a_gpu_that_stays_is_no_reason_to_refuse(
    machine: MachineFactory, kernel: str
) -> None:
    lit = coreboot(kernel)
    second = replace(lab_gpu(SECOND, base=0xD0000000), boot_vga=False, shadow=True, native="")
    host = machine(replace(lit, pci=(*lit.pci, second)))
    vm = Domain("win11", UUID, (Hostdev(SECOND, True, "hostdev", 0),))

    events.prepare(host, vm, NOW, Log(host, "win11"))
    FakeLibvirt(host).detach(SECOND)

    assert host.link_name("sys/bus/platform/devices/simple-framebuffer.0/driver") is not None


def test_a_snapshot_has_what_the_plan_needs(machine: MachineFactory, tmp_path: Path) -> None:
    host = machine(coreboot("6.12.74", symbols=REMOVES))
    root = tmp_path / "again"
    root.mkdir()

    again = unpack(machine_text(host), str(root))

    assert plan.plan_for(again, VM, NOW) == plan.plan_for(host, VM, NOW)


# -- the fake kernel


def test_the_fake_bus_unregisters_and_registers_the_platform_device(
    machine: MachineFactory,
) -> None:
    host = machine(coreboot("6.1", symbols=REMOVES))
    before = machine_text(host)

    host.write("sys/bus/coreboot/drivers/framebuffer/unbind", "coreboot5")
    gone = host.real(DEVICE)
    host.write("sys/bus/coreboot/drivers/framebuffer/bind", "coreboot5")

    assert (gone, difference(before, machine_text(host))) == (None, "")


def test_without_a_remove_function_the_fake_bus_leaves_the_platform_device(
    machine: MachineFactory,
) -> None:
    host = machine(coreboot("6.12"))

    host.write("sys/bus/coreboot/drivers/framebuffer/unbind", "coreboot5")

    assert host.link_name(f"{DEVICE}/driver") == "simple-framebuffer"
    with pytest.raises(HostError):  # its name is taken
        host.write("sys/bus/coreboot/drivers/framebuffer/bind", "coreboot5")


def test_the_fake_kernel_faults_when_a_freed_device_is_unregistered(
    machine: MachineFactory,
) -> None:
    host = machine(coreboot("6.1", symbols=REMOVES))
    FakeLibvirt(host).detach(GPU)

    with pytest.raises(KernelFault, match="unregistered twice"):
        host.write("sys/bus/coreboot/drivers/framebuffer/unbind", "coreboot5")


@pytest.mark.parametrize("bound", [True, False])
def test_vfio_pci_of_the_fake_kernel_removes_only_what_a_driver_draws_on(
    machine: MachineFactory, bound: bool
) -> None:
    host = machine(coreboot("6.12", bound=bound))

    FakeLibvirt(host).detach(GPU)

    assert (host.real(DEVICE) is None) is bound
