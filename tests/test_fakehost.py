"""FakeHost behaves as real kernels did.

Each test is a row, or a cell, of the table of runs on Debian's kernels 5.10, 6.1, 6.12 and
7.3 in QEMU, from which its expected values come. These tests do not run the hook.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.building import DUMMY_AND_FBCON, Machine
from tests.conftest import MachineFactory
from tests.fakehost import (
    Crash,
    FakeHost,
    FakeLibvirt,
    KernelFault,
    LibvirtError,
    close_device,
    hold,
    let_go,
    open_device,
    snapshot,
)  # fmt: skip
from tests.hosts import DISPLAY, VGA, lab, lab_gpu, text_mode, two_native, unshadowed_boot
from tests.snapshots import FOLDER
from vfio_console_hook.commands.snapshot.writer import SEEN
from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.snapshot import entries

GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
EFI = "efi-framebuffer"
EFI_DEVICE = "sys/bus/platform/devices/efi-framebuffer.0"
KERNELS = ("5.10", "6.1", "6.12", "7.3")
REMOVERS = ("6.1", "6.12", "7.3")


def unbind(host: FakeHost, driver: str = EFI) -> None:
    host.write(f"sys/bus/platform/drivers/{driver}/unbind", f"{driver}.0")


def bind(host: FakeHost, driver: str = EFI) -> None:
    host.write(f"sys/bus/platform/drivers/{driver}/bind", f"{driver}.0")


def to_vfio(host: FakeHost, address: str = GPU) -> FakeLibvirt:
    libvirt = FakeLibvirt(host)
    libvirt.detach(address)
    return libvirt


def load_native(host: FakeHost) -> None:
    host.load_module("bochs")


def detach_native(host: FakeHost, address: str = GPU) -> None:
    host.write(f"sys/bus/pci/devices/{address}/driver/unbind", address)


def reserved(host: FakeHost) -> list[str]:
    """The names in /proc/iomem that are neither RAM, nor bridges, nor BARs."""
    names = [line.split(" : ")[1] for line in (host.read("proc/iomem") or "").splitlines()]
    return [name for name in names if not name.startswith(("System RAM", "PCI Bus", "0000:"))]


def consoles(host: FakeHost) -> list[str]:
    """ "vtcon0 (S) dummy device 1": each console driver, with what its bind reads."""
    shown = []
    for node in host.list("sys/class/vtconsole"):
        name, bound = (host.read(f"sys/class/vtconsole/{node}/{one}") for one in ("name", "bind"))
        shown.append(f"{node} {name} {bound}")
    return shown


def failure(act: Callable[[], None]) -> str:
    """The name of the errno that the kernel returns."""
    with pytest.raises(HostError) as caught:
        act()
    return errno.errorcode[caught.value.errno]


# -- unbinding and binding firmware drivers


def test_efifb_unbound_while_fb0_is_held_faults_on_5_10(machine: MachineFactory) -> None:
    host = machine(lab("5.10", "efifb"))
    hold(host, "dev/fb0", pid=412, command="plymouthd")

    with pytest.raises(KernelFault):
        unbind(host)

    assert "general protection fault in efifb_destroy" in (host.fault or "")


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_efifb_unbound_while_fb0_is_held_stays_in_iomem_until_close(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(lab(kernel, "efifb"))
    hold(host, "dev/fb0", pid=412, command="plymouthd")

    unbind(host)
    assert reserved(host) == ["efifb"]
    let_go(host, 412)

    assert reserved(host) == []


def test_efidrm_unbound_while_fb0_is_held_frees_its_memory_at_once(machine: MachineFactory) -> None:
    host = machine(lab("7.3", "efidrm", DISPLAY))
    hold(host, "dev/fb0", pid=412, command="plymouthd")

    unbind(host)

    assert reserved(host) == []


@pytest.mark.parametrize(
    ("kernel", "bound", "gone"),
    [("5.10", "ENODEV", "ENODEV"), ("6.1", "EBUSY", "ENODEV"), ("7.3", "EBUSY", "ENODEV")],
)
def test_bind_is_refused_with_the_errno_of_the_kernel(
    machine: MachineFactory, kernel: str, bound: str, gone: str
) -> None:
    host = machine(lab(kernel, "efifb"))

    already = failure(lambda: bind(host))
    nowhere = failure(lambda: host.write(f"sys/bus/platform/drivers/{EFI}/bind", "nothing.0"))
    unbind(host)
    twice = failure(lambda: unbind(host))

    assert (already, nowhere, twice) == (bound, gone, "ENODEV")


# -- native drivers


def test_native_on_5_10_leaves_efi_framebuffer_bound_but_dead(machine: MachineFactory) -> None:
    host = machine(lab("5.10", "efifb"))

    load_native(host)

    assert host.link_name(f"{EFI_DEVICE}/driver") == EFI
    assert host.list(f"{EFI_DEVICE}/graphics") == ()
    assert host.read("proc/fb") == "0 bochs-drmdrmfb"
    assert reserved(host) == ["bochs-drm", "bochs-drm"]


def test_native_on_5_10_then_unbinding_efi_framebuffer_is_a_kernel_bug(
    machine: MachineFactory,
) -> None:
    host = machine(lab("5.10", "efifb"))
    load_native(host)

    with pytest.raises(KernelFault):
        unbind(host)

    assert "mm/slub.c" in (host.fault or "")


@pytest.mark.parametrize("kernel", REMOVERS)
def test_native_removes_the_firmware_device(machine: MachineFactory, kernel: str) -> None:
    host = machine(lab(kernel, "efifb"))

    load_native(host)

    assert not host.exists(EFI_DEVICE)
    assert failure(lambda: unbind(host)) == "ENODEV"


def test_native_does_not_free_bootfb_on_5_10(machine: MachineFactory) -> None:
    host = machine(lab("5.10", "simplefb"))
    load_native(host)

    to_vfio(host)

    assert reserved(host) == ["BOOTFB"]
    assert open_device(host, GPU) == [0]


# -- vfio-pci


def test_vfio_on_5_10_leaves_efifb_and_bar_0_is_busy(machine: MachineFactory) -> None:
    host = machine(lab("5.10", "efifb"))

    to_vfio(host)

    assert reserved(host) == ["efifb"]
    assert open_device(host, GPU) == [0]
    assert host.log == [
        "vfio-pci 0000:01:00.0: BAR 0: can't reserve [mem 0xc0000000-0xc0ffffff pref]"
    ]


@pytest.mark.parametrize("kernel", REMOVERS)
def test_vfio_removes_efifb_of_class_0300_for_good(machine: MachineFactory, kernel: str) -> None:
    host = machine(lab(kernel, "efifb"))

    libvirt = to_vfio(host)
    blocked = open_device(host, GPU)
    close_device(host, GPU)
    libvirt.reattach(GPU)

    assert blocked == []
    assert not host.exists(EFI_DEVICE)
    assert failure(lambda: bind(host)) == "ENODEV"


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_vfio_with_fb0_held_leaves_the_region_until_close(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(lab(kernel, "efifb"))
    hold(host, "dev/fb0", pid=412, command="plymouthd")

    to_vfio(host)
    while_held = open_device(host, GPU)
    close_device(host, GPU)
    let_go(host, 412)
    afterwards = open_device(host, GPU)

    assert not host.exists(EFI_DEVICE)
    assert (while_held, afterwards) == ([0], [])


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_vfio_does_not_remove_efifb_of_class_0380(machine: MachineFactory, kernel: str) -> None:
    host = machine(lab(kernel, "efifb", DISPLAY))

    to_vfio(host)

    assert reserved(host) == ["efifb"]
    assert open_device(host, GPU) == [0]


@pytest.mark.parametrize("kernel", REMOVERS)
def test_efifb_unbound_then_vfio_unregisters_the_device_all_the_same(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(lab(kernel, "efifb"))

    unbind(host)
    to_vfio(host)

    assert open_device(host, GPU) == []
    assert failure(lambda: bind(host)) == "ENODEV"


def test_memory_decode_off_does_not_help_on_6_1(machine: MachineFactory) -> None:
    host = machine(lab("6.1", "efifb"))

    unbind(host)
    host.poke(f"sys/bus/pci/devices/{GPU}/config", 4, b"\1\0")
    to_vfio(host)

    assert not host.exists(EFI_DEVICE)


def test_lockdown_refuses_writes_to_config_space(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.put("sys/kernel/security/lockdown", "none [integrity] confidentiality")

    refused = failure(lambda: host.poke(f"sys/bus/pci/devices/{GPU}/config", 4, b"\1\0"))

    assert refused == "EPERM"


@pytest.mark.parametrize(("kernel", "kept"), [("6.1", False), ("7.3", True)])
def test_vfio_on_a_second_vga_takes_the_hosts_efifb_on_6_1(
    machine: MachineFactory, kernel: str, kept: bool
) -> None:
    base = lab(kernel, "efifb")
    second = replace(lab_gpu(SECOND, base=0xD0000000), boot_vga=False)
    host = machine(replace(base, pci=(*base.pci, second)))

    to_vfio(host, SECOND)

    assert host.exists(EFI_DEVICE) is kept
    assert reserved(host) == (["efifb"] if kept else [])
    assert consoles(host)[0] == f"vtcon0 (S) dummy device {int(not kept)}"


# By release: whether the boot GPU, whose ROM is not shadowed, takes the firmware's device, and
# whether a second GPU does whose ROM is. drivers/video/aperture.c and drivers/firmware/sysfb.c
# were read in 6.1.176, 6.2, 6.3, 6.6.87, 6.8.1, 6.11.11 and 6.12; 6.8.1 was run too.
SELECTED = {
    "6.0.12": (True, True), "6.1.46": (True, True), "6.1.47": (False, True),
    "6.1.176": (False, True), "6.2.16": (True, True), "6.3.7": (True, True),
    "6.4.0": (True, True), "6.5.13": (True, False), "6.6.87": (True, False),
    "6.8.1": (True, False), "6.9.0": (True, False), "6.10.7": (True, False),
    "6.10.8": (True, False), "6.11.11": (True, False), "6.12.107": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("kernel", SELECTED)
def test_vfio_unregisters_an_unbound_firmware_device_with_the_gpu_that_the_release_selects(
    machine: MachineFactory, kernel: str
) -> None:
    gone = []
    for address in (GPU, "0000:00:02.0"):
        host = machine(unshadowed_boot(kernel))
        unbind(host)
        to_vfio(host, address)
        gone.append(not host.exists(EFI_DEVICE))

    assert tuple(gone) == SELECTED[kernel]


@pytest.mark.parametrize("kernel", ["6.1.176", "6.8.1", "6.12.107"])
def test_vfio_unregisters_a_bound_firmware_device_in_a_bar_of_its_gpu_whatever_is_selected(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(unshadowed_boot(kernel))

    to_vfio(host)

    assert not host.exists(EFI_DEVICE)


@pytest.mark.parametrize(
    ("kernel", "kept"), [("6.9.0", False), ("6.10.7", False), ("6.10.8", True)]
)
def test_memory_decoding_that_is_off_saves_the_firmware_device_from_6_10_8_on(
    machine: MachineFactory, kernel: str, kept: bool
) -> None:
    host = machine(unshadowed_boot(kernel))
    unbind(host)
    host.poke(f"sys/bus/pci/devices/{GPU}/config", 4, b"\1\0")

    to_vfio(host)

    assert host.exists(EFI_DEVICE) is kept


@pytest.mark.parametrize(("kernel", "removed"), [("6.1.176", False), ("6.8.1", True)])
def test_vgacon_goes_with_the_default_vga_device_and_in_6_1_only_if_its_rom_is_shadowed(
    machine: MachineFactory, kernel: str, removed: bool
) -> None:
    text = text_mode(kernel)
    host = machine(replace(text, pci=(replace(text.pci[0], shadow=False),)))

    to_vfio(host)

    assert ("vtcon0 (S) VGA+ 1" not in consoles(host)) is removed


# -- BOOTFB


@pytest.mark.parametrize(
    ("kernel", "driver", "pci_class"),
    [("5.10", "simplefb", VGA), ("6.1", "simpledrm", DISPLAY), ("7.3", "simpledrm", DISPLAY)],
)
def test_bootfb_outlives_the_driver_and_blocks_the_bar(
    machine: MachineFactory, kernel: str, driver: str, pci_class: int
) -> None:
    host = machine(lab(kernel, driver, pci_class))
    before = snapshot(host)

    unbind(host, "simple-framebuffer")
    libvirt = to_vfio(host)
    left, blocked = reserved(host), open_device(host, GPU)
    close_device(host, GPU)
    libvirt.reattach(GPU)
    bind(host, "simple-framebuffer")

    assert (left, blocked) == (["BOOTFB"], [0])
    assert snapshot(host) == before


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_bootfb_of_class_0300_goes_with_vfio(machine: MachineFactory, kernel: str) -> None:
    host = machine(lab(kernel, "simpledrm"))

    unbind(host, "simple-framebuffer")
    to_vfio(host)

    assert open_device(host, GPU) == []
    assert failure(lambda: bind(host, "simple-framebuffer")) == "ENODEV"


def test_a_bootfb_that_covers_the_whole_bar_does_not_block_it(machine: MachineFactory) -> None:
    base = lab("6.1", "simpledrm", DISPLAY, bound=False)
    whole = replace(base.firmware[0], size=0x1000000)
    host = machine(replace(base, firmware=(whole,)))

    to_vfio(host)

    assert reserved(host) == ["BOOTFB"]
    assert open_device(host, GPU) == []


# -- what a VM does to its device


def attributes(host: FakeHost) -> tuple[str | None, str]:
    """enable, and COMMAND as the register's bytes."""
    device = f"sys/bus/pci/devices/{GPU}"
    return host.read(f"{device}/enable"), host.peek(f"{device}/config", 4, 2).hex()


def test_changes_of_config_space_by_a_guest_end_with_the_vm(machine: MachineFactory) -> None:
    host = machine("lab-efifb-0380")
    config = f"sys/bus/pci/devices/{GPU}/config"
    to_vfio(host)
    open_device(host, GPU)
    before = host.peek(config, 0, 64)

    host.poke(config, 4, b"\3\1")
    host.poke(config, 0x30, b"\0\x80\0\xc1")
    close_device(host, GPU)

    assert host.peek(config, 0, 64) == before


def test_a_device_that_is_not_enabled_cannot_be_disabled(machine: MachineFactory) -> None:
    host = machine("lab-efifb-6.12")
    enable = f"sys/bus/pci/devices/{GPU}/enable"

    host.write(enable, "1")
    host.write(enable, "0")

    assert failure(lambda: host.write(enable, "0")) == "EIO"
    assert attributes(host) == ("0", "0300")


def test_a_connector_gets_the_lowest_number_that_is_free_on_all_cards(
    machine: MachineFactory,
) -> None:
    host = machine("lab-dual-second-leaves-6.12")
    driver = f"sys/bus/pci/drivers/{host.link_name(f'sys/bus/pci/devices/{GPU}/driver')}"
    for address in (GPU, SECOND):
        host.tree.put(
            f"fake/native/{address}", "driver=bochs-drm fb=bochs-drmdrmfb connectors=Virtual-1"
        )
        detach_native(host, address)

    for address in (SECOND, GPU):
        host.write(f"{driver}/bind", address)

    names = [name for name in host.list("sys/class/drm") if "Virtual" in name]
    assert names == ["card0-Virtual-1", "card1-Virtual-2"]


# -- remove and rescan


def rescan(host: FakeHost) -> None:
    host.write(f"sys/bus/pci/devices/{GPU}/remove", "1")
    host.write("sys/bus/pci/rescan", "1")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("driver", ["efifb", "simpledrm"])
def test_rescan_frees_the_bar(machine: MachineFactory, kernel: str, driver: str) -> None:
    name = {"efifb": EFI, "simpledrm": "simple-framebuffer"}[driver]
    host = machine(lab(kernel, driver, DISPLAY))
    unbind(host, name)

    rescan(host)
    to_vfio(host)

    assert reserved(host) == []
    assert open_device(host, GPU) == []


def places(host: FakeHost, address: str) -> list[str]:
    """Where the BARs and the ROM of a device are, in their order."""
    text = host.read(f"sys/bus/pci/devices/{address}/resource") or ""
    words = (line.split() for line in text.splitlines()[:7])
    return [hex(int(first, 16)) for first, last, _ in words if int(last, 16)]


def test_a_rescan_moves_a_bar_of_the_root_bus(machine: MachineFactory) -> None:
    host = machine("vesafb-5.10")
    device = "sys/bus/pci/devices/0000:00:05.0"
    before = places(host, "0000:00:05.0")[0]

    host.write(f"{device}/remove", "1")
    host.write("sys/bus/pci/rescan", "1")

    assert (before, places(host, "0000:00:05.0")[0]) == ("0xfd000000", "0xf0000000")


@pytest.mark.parametrize("kernel", ["5.10", "6.1"])
def test_efifb_bound_after_a_rescan_faults_on_old_kernels(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(lab(kernel, "efifb", DISPLAY))
    unbind(host)
    rescan(host)

    with pytest.raises(KernelFault):
        bind(host)

    assert "general protection fault in efifb_probe" in (host.fault or "")


def test_removing_a_gpu_does_not_affect_efifb_on_another_one(machine: MachineFactory) -> None:
    host = machine("lab-second-vga-harmless")  # efifb draws in the memory of GPU
    unbind(host)
    host.write(f"sys/bus/pci/devices/{SECOND}/remove", "1")

    bind(host)

    assert host.read("proc/fb") == "0 EFI VGA"


@pytest.mark.parametrize("driver", ["efifb", "simpledrm"])
def test_a_firmware_device_below_the_gpu_cannot_be_bound_after_a_rescan(
    machine: MachineFactory, driver: str
) -> None:
    name = {"efifb": EFI, "simpledrm": "simple-framebuffer"}[driver]
    host = machine(lab("7.3", driver, DISPLAY))
    unbind(host, name)

    rescan(host)

    assert host.list("sys/bus/platform/devices") == (f"{name}.0",)
    assert failure(lambda: bind(host, name)) == "ENOENT"


def test_simpledrm_binds_after_a_rescan_on_6_1_at_the_old_address(machine: MachineFactory) -> None:
    host = machine(lab("6.1", "simpledrm", DISPLAY))
    unbind(host, "simple-framebuffer")
    rescan(host)

    bind(host, "simple-framebuffer")

    assert host.read("proc/fb") == "0 simpledrmdrmfb"


# -- vgacon


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", ["0", "1"])
def test_writing_to_the_static_vgacon_does_nothing(
    machine: MachineFactory, kernel: str, value: str
) -> None:
    host = machine(text_mode(kernel))

    host.write("sys/class/vtconsole/vtcon0/bind", value)

    assert consoles(host) == ["vtcon0 (S) VGA+ 1"]


@pytest.mark.parametrize("kernel", REMOVERS)
def test_vfio_puts_a_module_dummy_in_the_place_of_vgacon(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(text_mode(kernel))

    to_vfio(host)

    assert consoles(host) == ["vtcon1 (M) dummy device 1"]
    assert host.log == ["vfio-pci 0000:01:00.0: vgaarb: deactivate vga console"]


@pytest.mark.parametrize("kernel", REMOVERS)
def test_without_a_static_driver_only_the_ioctl_binds_fbcon(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(text_mode(kernel))
    load_native(host)
    after_native = consoles(host)

    host.write("sys/class/vtconsole/vtcon0/bind", "0")
    after_0, mapped = consoles(host), host.console_map("fb0")
    host.write("sys/class/vtconsole/vtcon0/bind", "1")
    after_1 = consoles(host)
    host.map_console("fb0", 1, 0)

    bound = ["vtcon0 (M) frame buffer device 1", "vtcon1 (M) dummy device 0"]
    unbound = ["vtcon0 (M) frame buffer device 0", "vtcon1 (M) dummy device 1"]
    assert after_native == bound
    assert (after_0, mapped, after_1) == (unbound, (None,) * 63, unbound)
    assert consoles(host) == bound
    assert host.console_map("fb0") == (0,) * 63


# -- several framebuffers


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_all_consoles_drop_to_dummy_although_another_framebuffer_stays(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(two_native(kernel))

    detach_native(host)
    dropped = consoles(host)
    host.map_console("fb1", 1, 1)
    after_ioctl = consoles(host)
    host.write("sys/class/vtconsole/vtcon1/bind", "1")

    assert host.console_map("fb1") == (1,) * 63
    assert dropped == ["vtcon0 (S) dummy device 1", "vtcon1 (M) frame buffer device 0"]
    assert after_ioctl == dropped
    assert consoles(host) == ["vtcon0 (S) dummy device 0", "vtcon1 (M) frame buffer device 1"]


def test_without_a_static_driver_nothing_brings_the_consoles_back(machine: MachineFactory) -> None:
    module_only = ("1 (M) frame buffer device", "0 (M) dummy device")
    host = machine(two_native("6.1", module_only))

    detach_native(host)
    host.write("sys/class/vtconsole/vtcon0/bind", "1")
    host.map_console("fb1", 1, 1)

    assert consoles(host) == ["vtcon0 (M) frame buffer device 0", "vtcon1 (M) dummy device 1"]


def test_all_consoles_move_when_one_was_mapped_to_the_other_framebuffer(
    machine: MachineFactory,
) -> None:
    host = machine(two_native("6.12"))
    host.map_console("fb0", 63, 1)

    detach_native(host)

    assert host.console_map("fb1") == (1,) * 63
    assert consoles(host)[1] == "vtcon1 (M) frame buffer device 1"


def test_without_a_boot_gpu_the_consoles_come_back_to_the_framebuffer_of_the_boot(
    machine: MachineFactory,
) -> None:
    both = two_native("7.3")
    gpus = tuple(replace(one, pci_class=DISPLAY, boot_vga=None, shadow=False) for one in both.pci)
    host = machine(replace(both, pci=gpus))
    detach_native(host)
    meanwhile = host.console_map("fb1")

    host.write("sys/bus/pci/drivers/bochs-drm/bind", GPU)

    assert (meanwhile, host.console_map("fb0")) == ((1,) * 63, (0,) * 63)


def text_mode_with_fbcon_on_the_second(kernel: str) -> Machine:
    """BIOS text boot: fbcon on GPU B has taken over from vgacon on the boot VGA A."""
    second = replace(lab_gpu(SECOND, base=0xD0000000, bound=True), boot_vga=False)
    return replace(
        text_mode(kernel), pci=(lab_gpu(), second), consoles=("0 (S) VGA+", DUMMY_AND_FBCON[1])
    )


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_the_last_framebuffer_below_the_only_console_driver_is_an_oops(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(text_mode_with_fbcon_on_the_second(kernel))
    to_vfio(host, GPU)
    alone = consoles(host)
    host.write("sys/class/vtconsole/vtcon1/bind", "0")
    after_0 = consoles(host)

    with pytest.raises(KernelFault):
        detach_native(host, SECOND)

    assert alone == after_0 == ["vtcon1 (M) frame buffer device 1"]
    assert "fbcon_cursor" in (host.fault or "")


def test_vgacon_bound_when_vfio_comes_leaves_a_dummy_behind(machine: MachineFactory) -> None:
    host = machine(text_mode_with_fbcon_on_the_second("6.1"))

    host.write("sys/class/vtconsole/vtcon1/bind", "0")
    to_vfio(host, GPU)
    host.map_console("fb0", 1, 0)
    detach_native(host, SECOND)

    assert consoles(host) == ["vtcon2 (M) dummy device 1"]
    assert host.fault is None


# -- ioctls


@pytest.mark.parametrize(("console", "index"), [(0, 0), (64, 0), (1, 32), (1, 5)])
def test_consoles_and_framebuffers_that_are_not_there_are_refused(
    machine: MachineFactory, console: int, index: int
) -> None:
    host = machine("efifb-6.12")

    assert failure(lambda: host.map_console("fb0", console, index)) == "EINVAL"


# -- a driver whose probe gives up after the aperture helper


def vmwgfx(host: FakeHost, address: str = GPU) -> FakeHost:
    """The machine once vmwgfx, a module of its kernel, has probed a device that it rejects."""
    host.tree.put("fake/modules", "vmwgfx\n")
    host.run("/sbin/modprobe", "-b", "vmwgfx")
    host.write(f"sys/bus/pci/devices/{address}/driver_override", "vmwgfx")
    host.write("sys/bus/pci/drivers_probe", address)
    host.write(f"sys/bus/pci/devices/{address}/driver_override", "\n")
    return host


def state(host: FakeHost, *names: str) -> list[str | None]:
    return [host.read(f"sys/bus/pci/devices/{GPU}/{name}") for name in names]


@pytest.mark.parametrize("kernel", ["5.18.0", "6.1", "6.12", "7.3"])
def test_a_probe_that_gives_up_frees_bootfb_of_class_0380(
    machine: MachineFactory, kernel: str
) -> None:
    host = machine(lab(kernel, "simpledrm", DISPLAY))
    attributes = ("enable", "power_state", "driver_override")
    before = state(host, *attributes)

    vmwgfx(host)

    assert reserved(host) == []
    assert host.list("sys/bus/platform/devices") == ()
    assert host.link_name(f"sys/bus/pci/devices/{GPU}/driver") is None
    assert state(host, *attributes) == before
    assert host.log[-1] == f"vmwgfx {GPU}: probe with driver vmwgfx failed with error -22"
    to_vfio(host)
    assert open_device(host, GPU) == []


@pytest.mark.parametrize(("kernel", "left"), [("6.1", ["BOOTFB"]), ("6.12", [])])
def test_that_probe_finds_a_device_without_a_driver_only_by_its_parent(
    machine: MachineFactory, kernel: str, left: list[str]
) -> None:
    # 6.1.47 to 6.10.7 look for a shadowed ROM or the default device, which 0380 never is.
    made = lab("6.1.176", "simpledrm", DISPLAY) if kernel == "6.1" else None
    host = machine(made or lab(kernel, "simpledrm", DISPLAY))

    unbind(host, "simple-framebuffer")
    vmwgfx(host)

    assert reserved(host) == left


def test_an_override_of_its_name_is_probed_as_soon_as_the_module_is_loaded(
    machine: MachineFactory,
) -> None:
    host = machine(lab("6.12", "simpledrm", DISPLAY))
    host.tree.put("fake/modules", "vmwgfx\n")

    host.write(f"sys/bus/pci/devices/{GPU}/driver_override", "vmwgfx")
    host.run("/sbin/modprobe", "vmwgfx")

    assert reserved(host) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("ro nomodeset", "could not insert 'vmwgfx': No such device"),
        ("module_blacklist=amdgpu,vmwgfx", "could not insert 'vmwgfx': Operation not permitted"),
    ],
)
def test_the_command_line_can_keep_vmwgfx_from_loading(
    machine: MachineFactory, words: str, why: str
) -> None:
    host = machine(lab("6.12", "simpledrm", DISPLAY))
    host.tree.put("fake/modules", "vmwgfx\n")
    host.tree.put("proc/cmdline", words)

    with pytest.raises(HostError) as caught:
        host.run("/sbin/modprobe", "-b", "vmwgfx")

    assert why in caught.value.text


# -- libvirt, modprobe


def test_libvirt_refuses_an_unmanaged_device_that_is_not_on_vfio(machine: MachineFactory) -> None:
    host = machine("native-6.1")

    with pytest.raises(LibvirtError) as caught:
        FakeLibvirt(host).detach(GPU, managed=False)

    assert str(caught.value) == (
        "Unmanaged PCI device 0000:01:00.0 must be manually detached from the host"
    )
    assert host.changes == []


def test_libvirt_leaves_a_device_alone_that_is_on_vfio_already(machine: MachineFactory) -> None:
    host = machine("nvidia-bootfb-bar3")

    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    libvirt.reattach(GPU)

    assert host.changes == []


def test_libvirt_writes_what_strace_showed(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    before = snapshot(host)

    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    libvirt.reattach(GPU)

    device = f"sys/bus/pci/devices/{GPU}"
    assert host.changes == [
        ("write", f"{device}/driver_override", "vfio-pci"),
        ("write", f"{device}/driver/unbind", GPU),
        ("write", "sys/bus/pci/drivers_probe", GPU),
        ("write", f"{device}/driver_override", ""),
        ("write", f"{device}/driver/unbind", GPU),
        ("write", "sys/bus/pci/drivers_probe", GPU),
    ]
    assert snapshot(host) == before


def test_modprobe_keeps_to_the_blacklist(machine: MachineFactory) -> None:
    host = machine("efifb-0380-6.12")
    modalias = host.read(f"sys/bus/pci/devices/{GPU}/modalias") or ""

    named = host.run("/sbin/modprobe", "--resolve-alias", modalias)
    settings = host.run("/sbin/modprobe", "--showconfig")
    host.run("/sbin/modprobe", "-b", modalias)
    kept_away = host.link_name(f"sys/bus/pci/devices/{GPU}/driver")
    host.tree.remove("fake/blacklist")
    host.run("/sbin/modprobe", "-b", modalias)

    assert (named, settings, kept_away) == ("bochs", "blacklist bochs", None)
    assert host.link_name(f"sys/bus/pci/devices/{GPU}/driver") == "bochs-drm"


def test_modprobe_fails_when_no_module_is_for_a_device(machine: MachineFactory) -> None:
    host = machine("efifb-0380-6.12")

    with pytest.raises(HostError) as caught:
        host.run("/sbin/modprobe", "--resolve-alias", "pci:v00008086d00000000")

    assert "Module pci:v00008086d00000000 not found in directory" in caught.value.text


# -- crashes, refusals and other helpers of tests


def test_another_object_for_the_same_directory_continues(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    unbind(host)

    second = FakeHost(host.root)
    bind(second)

    assert (len(host.changes), len(second.changes)) == (2, 1)
    assert second.read("proc/fb") == "0 EFI VGA"


def test_a_crash_comes_before_the_change(machine: MachineFactory) -> None:
    host = machine("efifb-6.12", crash_before=2)
    unbind(host)
    before = snapshot(host)

    with pytest.raises(Crash):
        bind(host)

    assert snapshot(host) == before


def test_a_refused_change_changes_nothing(machine: MachineFactory) -> None:
    host = machine("efifb-6.12", refuse=1)
    before = snapshot(host)

    refused = failure(lambda: unbind(host))
    unbind(host)

    assert refused == "EIO"
    assert snapshot(host) != before


def test_a_misspelt_attribute_is_not_made(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    refused = failure(lambda: host.write("sys/class/vtconsole/vtcon1/bound", "0"))

    assert refused == "ENOENT"


def test_a_dead_kernel_does_nothing(machine: MachineFactory) -> None:
    host = machine("fb0-held-by-plymouth")
    with pytest.raises(KernelFault):
        unbind(host)

    with pytest.raises(KernelFault):
        FakeHost(host.root).write("sys/bus/pci/rescan", "1")


# -- modules


def modprobe(host: FakeHost, *arguments: str) -> str:
    return host.run("/sbin/modprobe", *arguments)


def complaint(host: FakeHost, *arguments: str) -> str:
    with pytest.raises(HostError) as caught:
        modprobe(host, *arguments)
    return caught.value.text


def loaded(host: FakeHost) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """The use count of each module and who uses it."""
    return {
        name: (host.read(f"sys/module/{name}/refcnt"), host.list(f"sys/module/{name}/holders"))
        for name in host.list("sys/module")
    }


def test_a_module_that_is_in_use_is_not_unloaded(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    before = snapshot(host)

    printed = complaint(host, "-r", "nvidia")

    assert printed == "/sbin/modprobe -r nvidia failed: modprobe: FATAL: Module nvidia is in use."
    assert snapshot(host) == before


@pytest.mark.parametrize(
    ("node", "module"),
    [("dev/nvidia0", "nvidia"), ("dev/nvidia-modeset", "nvidia_modeset"),
     ("dev/nvidia-uvm", "nvidia_uvm"), ("dev/dri/card0", "nvidia_drm"), ("dev/fb0", "nvidia_drm")],
)  # fmt: skip
def test_an_open_node_keeps_its_module_in_use(
    machine: MachineFactory, node: str, module: str
) -> None:
    host = machine("nvidia-single-desktop")
    before = int(loaded(host)[module][0] or 0)

    hold(host, node, pid=9, command="x")

    assert int(loaded(host)[module][0] or 0) == before + 1


def test_fbcon_keeps_no_module_in_use(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")

    assert (fbcon_draws(host), loaded(host)["nvidia_drm"]) == (True, ("0", ()))


def fbcon_draws(host: FakeHost) -> bool:
    return host.read("sys/class/vtconsole/vtcon1/bind") == "1"


def test_rmmod_unloads_one_module_alone(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")

    host.run("/sbin/rmmod", "nvidia_drm")

    assert host.list("sys/module") == ("nvidia", "nvidia_modeset", "nvidia_uvm")
    with pytest.raises(HostError) as caught:
        host.run("/sbin/rmmod", "nvidia")
    assert caught.value.text == (
        "/sbin/rmmod nvidia failed: rmmod: ERROR: Module nvidia is in use by: nvidia_modeset"
        " nvidia_uvm"
    )


def test_what_a_module_has_brought_goes_and_comes_with_it(machine: MachineFactory) -> None:
    host = machine("lab-nvidia")
    before = (host.read("proc/kallsyms"), host.list("sys/module/nvidia_drm/parameters"))

    for module in ("nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidia"):
        host.run("/sbin/rmmod", module)
    gone = host.read("proc/kallsyms") or ""
    for module in ("nvidia_drm", "nvidia_uvm"):
        host.load_module(module)

    assert "nvidia_modeset_remove" not in gone
    assert (host.read("proc/kallsyms"), host.list("sys/module/nvidia_drm/parameters")) == before
    assert before[1] == ("fbdev",)


def test_modprobe_also_unloads_modules_that_are_no_longer_used(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.write("sys/class/vtconsole/vtcon1/bind", "0")

    modprobe(host, "-r", "nvidia_drm")

    assert loaded(host) == {"nvidia": ("1", ("nvidia_uvm",)), "nvidia_uvm": ("0", ())}
    assert (consoles(host), host.list("sys/class/drm")) == (["vtcon0 (S) dummy device 1"], ())


def test_a_driver_goes_with_its_module_and_comes_back_with_it(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    before = snapshot(host)
    host.write("sys/class/vtconsole/vtcon1/bind", "0")
    for module in ("nvidia_drm", "nvidia_uvm"):
        modprobe(host, "-r", module)
    gone = [path for path in before if "drivers/nvidia/" in path and host.exists(path)]
    modprobe(host, "nvidia_drm")
    modprobe(host, "nvidia_uvm")

    assert gone == []
    assert snapshot(host) == before


def test_nvidia_does_not_load_without_a_gpu_to_drive(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.write("sys/class/vtconsole/vtcon1/bind", "0")
    for module in ("nvidia_drm", "nvidia_uvm"):
        modprobe(host, "-r", module)
    host.write(f"sys/bus/pci/devices/{GPU}/driver_override", "vfio-pci")

    printed = complaint(host, "nvidia_drm")

    assert printed == (
        "/sbin/modprobe nvidia_drm failed: modprobe: ERROR: could not insert 'nvidia_drm': No such"
        " device"
    )
    assert host.list("sys/module") == ()


def test_nvidia_unbound_while_its_node_is_open_never_comes_back(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    hold(host, "dev/nvidia0", pid=9, command="Xorg")

    with pytest.raises(KernelFault):
        host.write("sys/bus/pci/drivers/nvidia/unbind", GPU)

    assert host.log[0] == (
        "NVRM: Attempting to remove device 0000:01:00.0 with non-zero usage count!"
    )


# -- the snapshots


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.tree")), ids=lambda path: path.stem)
def test_no_link_in_a_snapshot_dangles(machine: MachineFactory, path: Path) -> None:
    host = machine(path.stem)

    # Of some further paths that plan and doctor read a snapshot has only the names.
    machines_own = {one.path for one in entries(path.read_text().partition(SEEN)[0])}
    dangling = [
        name
        for name, what in snapshot(host).items()
        if what.startswith("-> ") and name.startswith("sys/") and not host.exists(name)
    ]

    # Only these point to paths that a snapshot leaves out.
    left_out = re.compile(r".*/(?:subsystem|module|iommu_group|fbcon)|sys/class/sound/\w+")
    assert [one for one in dangling if one in machines_own and not left_out.fullmatch(one)] == []
