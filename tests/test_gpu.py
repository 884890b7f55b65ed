"""What the program reads of a machine: GPUs, their memory, consoles and the kernel.

Expected values come from hosts as users reported them, not from the code.
"""

from __future__ import annotations

import errno
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.building import K, M, Machine
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.hosts import DISPLAY, firmware_on, lab_gpu
from vfio_console_hook.errors import HostError
from vfio_console_hook.machine import console, firmware, gpu, iomem, kernel, memory, pci
from vfio_console_hook.machine.console import Framebuffer, Vtconsole
from vfio_console_hook.machine.firmware import FirmwareDevice
from vfio_console_hook.machine.gpu import Gpu
from vfio_console_hook.machine.iomem import Reservation
from vfio_console_hook.machine.memory import Bar, Range
from vfio_console_hook.machine.snapshot import SnapshotHost, unpack

GPU = "0000:01:00.0"
AMDGPU_CARDS = ("card0", "renderD128")
OTHER_CARDS = ("card1", "renderD129")


def bars(sizes: Mapping[int, tuple[int, int]]) -> tuple[Bar, ...]:
    """{number: (first address, size)} as BARs."""
    return tuple(Bar(number, sized(*place)) for number, place in sizes.items())


def sized(first: int, size: int) -> Range:
    return Range(first, first + size - 1)


def expected(
    address: str, pci_class: int, memory_bars: Mapping[int, tuple[int, int]], **rest: object
) -> Gpu:
    """A GPU with the given properties and no others."""
    plain = Gpu(
        address=address, pci_class=pci_class, bars=bars(memory_bars), driver=None, vfio=False,
        virtual=False, boot_vga=False, framebuffers=(), cards=(), firmware=(), reservations=(),
    )  # fmt: skip
    return replace(plain, **rest)  # type: ignore[arg-type]  # fields of any kind


def lit(
    name: str, parent: str | None, where: Range, reserved_as: str, *, card: bool = False
) -> FirmwareDevice:
    """A firmware framebuffer that is bound and draws fb0."""
    return FirmwareDevice(
        name, name.rpartition(".")[0], parent, ("fb0",), ("card0",) if card else (), where,
        reserved_as, "BOOTFB" if name.startswith("simple") else None,
    )  # fmt: skip


BAR1_PICTURE = sized(0xC0000000, 23040 * K)
BAR3_PICTURE = sized(0x91000000, 5120 * K)
PLYMOUTH_PICTURE = sized(0xC0000000, 1280 * 800 * 4)
LIT_SECOND_PICTURE = sized(0xD0000000, 1280 * 800 * 4)
STRIX_PICTURE = Range(0x2800000000, 0x2801FA3FFF)
BOOTFB_BAR3 = sized(0x51000000, 3 * M)
BOOTFB_INTEL = Range(0xE0000000, 0xE02FFFFF)
T400 = {0: (0x9A000000, 16 * M), 1: (0x383FE0000000, 256 * M)}
OTHER_T400 = {0: (0xA0000000, 16 * M), 1: (0x387FE0000000, 256 * M)}
INTEL = {0: (0xDD000000, 16 * M), 2: (0xB0000000, 256 * M)}

SEEN = (
    ("nvidia-efifb-bar1", expected(
        GPU, 0x0300, {0: (0xF6000000, 16 * M), 1: (0xC0000000, 256 * M), 3: (0xD0000000, 32 * M)},
        boot_vga=True, framebuffers=("fb0",),
        firmware=(lit("efi-framebuffer.0", None, BAR1_PICTURE, "efifb"),),
        reservations=(Reservation("efifb", BAR1_PICTURE, 1),),
    )),
    ("nvidia-efifb-bar3", expected(
        "0000:42:00.0", 0x0300,
        {0: (0x92000000, 16 * M), 1: (0x80000000, 256 * M), 3: (0x90000000, 32 * M)},
        boot_vga=True, framebuffers=("fb0",),
        firmware=(lit("efi-framebuffer.0", None, BAR3_PICTURE, "efifb"),),
        reservations=(Reservation("efifb", BAR3_PICTURE, 3),),
    )),
    ("amd-single", expected(
        "0000:09:00.0", 0x0300, {0: (0xD0000000, 256 * M), 2: (0xE0000000, 2 * M)},
        driver="amdgpu", boot_vga=True, framebuffers=("fb0",), cards=AMDGPU_CARDS,
    )),
    ("intel-and-nvidia", expected(
        GPU, 0x0300, {0: (0xDC000000, 16 * M), 1: (0xC0000000, 256 * M), 3: (0xD0000000, 32 * M)},
        driver="nouveau", framebuffers=("fb1",), cards=OTHER_CARDS,
    )),
    ("intel-and-nvidia", expected(
        "0000:00:02.0", 0x0300, INTEL,
        driver="i915", boot_vga=True, framebuffers=("fb0",), cards=AMDGPU_CARDS,
    )),
    ("laptop-3d-controller", expected(
        GPU, 0x0302, {0: (0xDC000000, 16 * M), 1: (0xC0000000, 256 * M), 3: (0xD0000000, 32 * M)},
        driver="nouveau",
    )),
    ("nvidia-bootfb-bar3", expected(
        GPU, 0x0300, {0: (0x52000000, 16 * M), 1: (0x40000000, 256 * M), 3: (0x50000000, 32 * M)},
        driver="vfio-pci", vfio=True, boot_vga=True,
        firmware=(
            FirmwareDevice("simple-framebuffer.0", None, None, (), (), BOOTFB_BAR3, None, "BOOTFB"),
        ),
        reservations=(Reservation("BOOTFB", BOOTFB_BAR3, 3),),
    )),
    ("two-amd", expected(
        "0000:13:00.0", 0x0300,
        {0: (0x8020000000, 256 * M), 2: (0x8030000000, 2 * M), 5: (0xFC500000, 512 * K)},
        driver="amdgpu", framebuffers=("fb1",), cards=OTHER_CARDS,
    )),
    ("bmc-and-two-nvidia", expected(
        "0000:17:00.0", 0x0300, T400, driver="vfio-pci", vfio=True,
    )),
    ("bmc-and-two-nvidia", expected("0000:65:00.0", 0x0300, OTHER_T400, driver="nvidia")),
    ("intel-sriov-vf", expected(
        "0000:00:02.1", 0x0300, {0: (0x4010000000, 16 * M), 2: (0x4020000000, 512 * M)},
        driver="vfio-pci", vfio=True, virtual=True,
    )),
    ("intel-bootfb-no-driver", expected(
        "0000:00:02.0", 0x0300, {0: (0xC8000000, 16 * M), 2: (0xE0000000, 256 * M)}, boot_vga=True,
        firmware=(
            FirmwareDevice(
                "simple-framebuffer.0", None, None, (), (), BOOTFB_INTEL, None, "BOOTFB"
            ),
        ),
        reservations=(Reservation("BOOTFB", BOOTFB_INTEL, 2),),
    )),
    ("fb0-held-by-plymouth", expected(
        "0000:00:02.0", 0x0300, {0: (0xC0000000, 16 * M), 2: (0xFEBF0000, 4 * K)},
        boot_vga=True, framebuffers=("fb0",),
        firmware=(lit("efi-framebuffer.0", None, PLYMOUTH_PICTURE, "efifb"),),
        reservations=(Reservation("efifb", PLYMOUTH_PICTURE, 0),),
    )),
    ("amd-strix-halo-0380", expected(
        "0000:c3:00.0", 0x0380,
        {0: (0x2800000000, 32 << 30), 5: (0xB4400000, 512 * K)},
        framebuffers=("fb0",), cards=("card0",),
        firmware=(
            lit("simple-framebuffer.0", "0000:c3:00.0", STRIX_PICTURE, "simpledrm", card=True),
        ),
        reservations=(
            Reservation("BOOTFB", STRIX_PICTURE, 0),
            Reservation("simpledrm", STRIX_PICTURE, 0),
        ),
    )),
    ("two-gpus-lit-second-6.12", expected(
        "0000:02:00.0", 0x0380, {0: (0xD0000000, 16 * M), 2: (0xFEC00000, 4 * K)},
        framebuffers=("fb0",),
        firmware=(lit("efi-framebuffer.0", "0000:02:00.0", LIT_SECOND_PICTURE, "efifb"),),
        reservations=(Reservation("efifb", LIT_SECOND_PICTURE, 0),),
    )),
    ("two-gpus-lit-second-6.12", expected(
        GPU, 0x0300, {0: (0xC0000000, 16 * M), 2: (0xFEB00000, 4 * K)},
        driver="bochs-drm", boot_vga=True, framebuffers=("fb1",),
        cards=("card0",),
        reservations=(
            Reservation("bochs-drm", sized(0xC0000000, 16 * M), 0),
            Reservation("bochs-drm", sized(0xFEB00000, 4 * K), 2),
        ),
    )),
)  # fmt: skip


@pytest.mark.parametrize(("name", "seen"), SEEN, ids=lambda v: getattr(v, "address", v))
def test_a_gpu_is_read_as_users_reported_it(machine: MachineFactory, name: str, seen: Gpu) -> None:
    host = machine(name)

    assert gpu.gpus_among(host, (seen.address,)) == (seen,)


def test_gpus_are_in_the_order_of_the_xml_and_other_devices_are_left_out(
    machine: MachineFactory,
) -> None:
    host = machine("two-in-one-6.12")
    host.tree.put("sys/bus/pci/devices/0000:01:00.1/class", "0x040300")

    found = gpu.gpus_among(host, ("0000:02:00.0", "0000:01:00.1", GPU))

    assert [one.address for one in found] == ["0000:02:00.0", GPU]


def test_iomem_is_not_read_if_no_device_is_a_gpu(machine: MachineFactory) -> None:
    host = machine("iomem-without-root")
    host.tree.put("sys/bus/pci/devices/0000:01:00.1/class", "0x040300")

    assert gpu.gpus_among(host, ("0000:01:00.1",)) == ()


def test_iomem_without_addresses_is_an_error_and_does_not_mean_free(
    machine: MachineFactory,
) -> None:
    host = machine("iomem-without-root")

    with pytest.raises(HostError) as caught:
        gpu.gpus_among(host, (GPU,))

    assert str(caught.value) == (
        "cannot tell who has reserved the GPU's memory: /proc/iomem shows no addresses"
        " (hint: run it as root, in the host's own user namespace)"
    )


def test_a_device_that_is_not_there_is_named(machine: MachineFactory) -> None:
    host = machine("amd-single")

    with pytest.raises(HostError) as caught:
        gpu.gpus_among(host, ("0000:0a:00.0",))

    assert str(caught.value) == (
        "no PCI device 0000:0a:00.0 on this machine (hint: compare with `lspci -D`)"
    )


@pytest.mark.parametrize(
    ("text", "seen"),
    [("0x030000", 0x0300), ("0x030200", 0x0302), ("0x038000", 0x0380), ("0x030100", 0x0301),
     ("0x040300", None), ("0x130000", None), ("0x000300", None)],
)  # fmt: skip
def test_the_display_classes_are_those_of_base_class_3(
    tmp_path: Path, text: str, seen: int | None
) -> None:
    host = unpack(f"f sys/bus/pci/devices/{GPU}/class = {text}", str(tmp_path))

    assert pci.display_class(host, GPU) == seen


def test_a_variant_of_vfio_pci_is_known_by_its_vfio_dev_directory(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    device = host.tree.where(f"sys/bus/pci/devices/{GPU}")
    host.tree.link(f"{device}/driver", "sys/bus/pci/drivers/nvgrace_gpu_vfio_pci")
    host.tree.make_directory(f"{device}/vfio-dev/vfio0")

    (found,) = gpu.gpus_among(host, (GPU,))

    assert (found.driver, found.vfio, found.native) == ("nvgrace_gpu_vfio_pci", True, False)


# -- the GPU of the firmware's framebuffer


def two_gpus(kernel_series: str, lit_one: int) -> Machine:
    """Two GPUs of class 0380, one of them lit by the firmware, none on a driver of its own."""
    first = lab_gpu(pci_class=DISPLAY)
    second = lab_gpu("0000:02:00.0", DISPLAY, 0xD0000000)
    device = firmware_on((first, second)[lit_one], "efifb", kernel_series)
    return Machine("two", (), kernel_series, (first, second), (device,))


@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12"])
@pytest.mark.parametrize("number", [0, 1])
def test_only_the_gpu_that_is_lit_has_the_firmware_device(
    machine: MachineFactory, series: str, number: int
) -> None:
    host = machine(two_gpus(series, number))

    found = gpu.gpus_among(host, (GPU, "0000:02:00.0"))

    assert [len(one.firmware) for one in found] == [int(number == 0), int(number == 1)]
    assert [one.framebuffers for one in found] == [("fb0",), ()][:: -1 if number else 1]


def without_reservation(host: FakeHost) -> FakeHost:
    """efifb could not reserve its region, and only logged a warning (efifb_probe)."""
    lines = (host.read("proc/iomem") or "").splitlines()
    host.tree.put("proc/iomem", "\n".join(line for line in lines if "efifb" not in line))
    return host


def owner(host: FakeHost) -> list[str]:
    found = gpu.gpus_among(host, (GPU, "0000:02:00.0"))
    return [one.address for one in found if one.firmware]


def test_without_a_reservation_the_ioctl_of_the_framebuffer_decides(
    machine: MachineFactory,
) -> None:
    host = without_reservation(machine(two_gpus("6.1", 1)))
    host.tree.remove("sys/kernel/boot_params/data")

    assert owner(host) == ["0000:02:00.0"]


def test_without_a_reservation_and_an_ioctl_the_boot_parameters_decide(
    machine: MachineFactory,
) -> None:
    host = without_reservation(machine(two_gpus("6.1", 1)))
    host.tree.put("ioctl/fb0/memory", "0x0 4096000")

    assert owner(host) == ["0000:02:00.0"]


def test_a_framebuffer_at_an_unknown_address_belongs_to_no_gpu(
    machine: MachineFactory,
) -> None:
    host = without_reservation(machine(two_gpus("6.1", 1)))
    host.tree.put("ioctl/fb0/memory", "0x0 4096000")
    host.tree.remove("sys/kernel/boot_params/data")

    assert owner(host) == []


def test_the_parent_in_sysfs_overrides_the_boot_parameters(machine: MachineFactory) -> None:
    host = without_reservation(machine(two_gpus("6.12", 1)))
    data = bytearray(host.read_bytes("sys/kernel/boot_params/data") or b"")
    struct.pack_into("<I", data, 0x18, 0xC0000000)
    host.tree.poke("sys/kernel/boot_params/data", 0, bytes(data))

    assert owner(host) == ["0000:02:00.0"]


def test_a_device_whose_framebuffer_a_native_driver_took_is_dead(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    host.load_module("bochs")

    (found,) = gpu.gpus_among(host, (GPU,))

    assert [(one.name, one.driver, one.dead) for one in found.firmware] == [
        ("efi-framebuffer.0", "efi-framebuffer", True)
    ]


@pytest.mark.parametrize(
    ("name", "drm", "owns_memory", "draws_as"),
    [
        ("efifb-6.12", False, False, "efifb"),
        ("vesafb-5.10", False, False, "vesafb"),
        ("efidrm-7", True, False, "efidrm"),
        ("simpledrm-0380-6.12", True, True, "simpledrm"),
    ],
)
def test_nodes_and_reservation_show_which_driver_draws(
    machine: MachineFactory, name: str, drm: bool, owns_memory: bool, draws_as: str
) -> None:
    address = "0000:00:05.0" if name == "vesafb-5.10" else GPU

    (found,) = gpu.gpus_among(machine(name), (address,))

    (device,) = found.firmware
    assert (device.drm, device.owns_memory, device.draws_as) == (drm, owns_memory, draws_as)


def screen_info(
    kind: int, base: int, size: int, *, capabilities: int = 0, high: int = 0, length: int = 64
) -> bytes:
    """struct screen_info as the boot loader fills it in."""
    data = bytearray(64)
    data[0x0F] = kind
    struct.pack_into("<II", data, 0x18, base, size)
    struct.pack_into("<II", data, 0x36, capabilities, high)
    return bytes(data[:length])


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (screen_info(0x70, 0xC0000000, 4096000), sized(0xC0000000, 4096000)),
        (screen_info(0x70, 0, 4096000, capabilities=2, high=0x28), sized(0x2800000000, 4096000)),
        (screen_info(0x70, 0xC0000000, 4096, capabilities=1, high=0x28), sized(0xC0000000, 4096)),
        (screen_info(0x23, 0xFD000000, 0x100), sized(0xFD000000, 16 * M)),
        (screen_info(0x70, 0, 4096000), None),
        (screen_info(0x70, 0xC0000000, 0), None),
        (screen_info(0x01, 0xB8000, 0x8000), None),
        (screen_info(0x22, 0xA0000, 0x10000), None),
        (screen_info(0x70, 0xC0000000, 4096, length=0x20), None),
        (b"", None),
    ],
    ids=["efi", "64-bit", "skip-quirks-only", "vlfb-units", "no-base", "no-size", "text", "vgac",
         "cut-off", "empty"],
)  # fmt: skip
def test_the_boot_parameters_have_the_address_of_the_framebuffer(
    tmp_path: Path, data: bytes, where: Range | None
) -> None:
    host = unpack(f"x sys/kernel/boot_params/data = {data.hex()}", str(tmp_path))

    assert firmware.screen_memory(host) == where


def test_without_boot_parameters_the_address_of_the_framebuffer_is_unknown(tmp_path: Path) -> None:
    assert firmware.screen_memory(SnapshotHost(str(tmp_path))) is None


# -- memory


def with_iomem(directory: Path, *lines: str) -> SnapshotHost:
    return unpack("\n".join(["f proc/iomem", *("|" + line for line in lines)]), str(directory))


WINDOW = "c0000000-dfffffff : PCI Bus 0000:00"
OWN = f"    d0000000-d0ffffff : {GPU}"
BAR0 = Bar(0, Range(0xD0000000, 0xD0FFFFFF))


@pytest.mark.parametrize(
    ("lines", "reserved"),
    [
        ((WINDOW, "  d0000000-d0ffffff : PCI Bus 0000:01", OWN), []),
        ((WINDOW, OWN, "      d0000000-d0ffffff : vesafb"),
         ["vesafb at d0000000-d0ffffff (BAR 0)"]),
        ((WINDOW, OWN, "      d0000000-d02fffff : BOOTFB", "        d0000000-d02fffff : simpledrm"),
         ["BOOTFB at d0000000-d02fffff (BAR 0)", "simpledrm at d0000000-d02fffff (BAR 0)"]),
        # MAX_IORES_LEVEL: lines below that level have the same indentation.
        ((WINDOW, OWN, "    d0000000-d02fffff : efifb"), ["efifb at d0000000-d02fffff (BAR 0)"]),
        # The BAR's own line is missing, as in an excerpt.
        ((WINDOW, "  d0000000-d02fffff : efifb"), ["efifb at d0000000-d02fffff (BAR 0)"]),
        ((WINDOW, OWN, "  d1000000-d1ffffff : 0000:02:00.0", "    d1000000-d12fffff : efifb"), []),
        ((WINDOW, OWN, "      d0fff000-d0ffffff : last"), ["last at d0fff000-d0ffffff (BAR 0)"]),
        ((WINDOW, OWN, "      d0000000-d0ffffff : vfio-pci"),
         ["vfio-pci at d0000000-d0ffffff (BAR 0)"]),
    ],
    ids=["window-of-the-same-size", "whole-bar", "nested", "not-indented", "no-own-line",
         "neighbour", "last-page", "vfio"],
)  # fmt: skip
def test_a_line_inside_a_bar_is_a_reservation_and_one_that_holds_the_bar_is_not(
    tmp_path: Path, lines: tuple[str, ...], reserved: list[str]
) -> None:
    host = with_iomem(tmp_path, *lines)

    found = iomem.reservations(iomem.reserved_ranges(host), GPU, (BAR0,))

    assert [str(one) for one in found] == reserved


def test_only_reservations_of_vfio_are_not_foreign(machine: MachineFactory) -> None:
    host = machine("efifb-0380-6.12")
    text = (host.read("proc/iomem") or "").replace(": efifb", ": vfio-pci")
    host.tree.put("proc/iomem", text)

    (found,) = gpu.gpus_among(host, (GPU,))

    assert ([one.name for one in found.reservations], found.foreign_reservations) == (
        ["vfio-pci"],
        (),
    )


def test_addresses_above_4_gib_are_not_truncated(tmp_path: Path) -> None:
    host = with_iomem(
        tmp_path,
        "2800000000-2fffffffff : 0000:c3:00.0",
        "  2800000000-2801fa3fff : BOOTFB",
    )

    assert iomem.reserved_ranges(host) == (
        (Range(0x2800000000, 0x2FFFFFFFFF), "0000:c3:00.0"),
        (STRIX_PICTURE, "BOOTFB"),
    )


@pytest.mark.parametrize(
    "lines", [(), ("",), ("not a line",), ("00000000-00000000 : efifb",)],
    ids=["none", "empty", "garbage", "zeros"],
)  # fmt: skip
def test_an_iomem_without_ranges_is_an_error(tmp_path: Path, lines: tuple[str, ...]) -> None:
    host = with_iomem(tmp_path, *lines)

    with pytest.raises(HostError) as caught:
        iomem.reserved_ranges(host)

    assert caught.value.text == (
        "cannot tell who has reserved the GPU's memory: /proc/iomem shows no addresses"
    )


RESOURCE_LINES = (
    ("0xd0000000 0xd0ffffff 0x42208", (Range(0xD0000000, 0xD0FFFFFF),)),
    ("0x2800000000 0x2fffffffff 0x14220c", (Range(0x2800000000, 0x2FFFFFFFFF),)),
    ("0xe000 0xe0ff 0x40101", ()),
    ("0x0 0x0 0x0", ()),
    ("0x0 0xffffff 0x20042208", ()),
)


@pytest.mark.parametrize(("line", "ranges"), RESOURCE_LINES,
                         ids=["memory", "64-bit", "ports", "unused", "unset"])  # fmt: skip
def test_a_resource_line_is_a_bar_if_it_is_memory_with_an_address(
    tmp_path: Path, line: str, ranges: tuple[Range, ...]
) -> None:
    host = unpack(f"f sys/bus/pci/devices/{GPU}/resource\n|{line}", str(tmp_path))

    assert tuple(bar.range for bar in memory.memory_bars(host, GPU)) == ranges


def test_lines_from_the_expansion_rom_on_are_not_bars(tmp_path: Path) -> None:
    lines = ["|0x0 0x0 0x0"] * 5 + ["|0xb4400000 0xb447ffff 0x40200"]
    lines += ["|0xc0000 0xdffff 0x40212"] + ["|0x4010000000 0x4016ffffff 0x140204"] * 6
    host = unpack("\n".join([f"f sys/bus/pci/devices/{GPU}/resource", *lines]), str(tmp_path))

    assert memory.memory_bars(host, GPU) == bars({5: (0xB4400000, 512 * K)})


# -- consoles


def test_console_drivers_are_read_with_their_names(machine: MachineFactory) -> None:
    assert console.vtconsoles(machine("efifb-6.12")) == (
        Vtconsole("vtcon0", "dummy device", static=True, bound=False),
        Vtconsole("vtcon1", "frame buffer device", static=False, bound=True),
    )


def test_framebuffers_belong_to_the_pci_device_above_them(machine: MachineFactory) -> None:
    assert console.framebuffers(machine("two-gpus-lit-second-6.12")) == (
        Framebuffer("fb0", 0, "EFI VGA", "0000:02:00.0"),
        Framebuffer("fb1", 1, "bochs-drmdrmfb", GPU),
    )


def test_framebuffers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = "\n".join(f"d sys/class/graphics/{fb}" for fb in ("fb10", "fb2", "fbcon", "fb0"))
    host = unpack(names, str(tmp_path))

    assert [fb.name for fb in console.framebuffers(host)] == ["fb0", "fb2", "fb10"]


def test_a_framebuffer_below_a_virtio_device_belongs_to_the_pci_device(tmp_path: Path) -> None:
    path = "sys/devices/pci0000:00/0000:00:02.0/virtio0/graphics/fb0"
    host = unpack(
        f"f {path}/name = virtio_gpudrmfb\n"
        "l sys/class/graphics/fb0 -> ../../devices/pci0000:00/0000:00:02.0/virtio0/graphics/fb0",
        str(tmp_path),
    )

    assert console.framebuffers(host) == (Framebuffer("fb0", 0, "virtio_gpudrmfb", "0000:00:02.0"),)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efifb-6.12", "framebuffer console on fb0 (EFI VGA)"),
        ("two-amd", "framebuffer console on fb0 (amdgpudrmfb)"),
        ("vgacon-5.10", "VGA+"),
        ("intel-bootfb-no-driver", "dummy device"),
    ],
)
def test_the_current_display_is_described_in_words(
    machine: MachineFactory, name: str, words: str
) -> None:
    assert console.current_display(machine(name)) == words


@pytest.mark.parametrize(
    ("mapped", "words"),
    [
        ("1-6 0\n7-63 1\n", "fb0 (amdgpudrmfb), fb1 (amdgpudrmfb)"),
        ("1-63 1\n", "fb1 (amdgpudrmfb)"),
        (None, "fb0 (amdgpudrmfb) or fb1 (amdgpudrmfb)"),
    ],
)
def test_of_two_framebuffers_those_with_consoles_are_named(
    machine: MachineFactory, mapped: str | None, words: str
) -> None:
    host = machine("two-amd")
    if mapped is None:
        host.tree.put("refused/dev/fb0", str(errno.EACCES))
    else:
        host.tree.put("ioctl/con2fbmap", mapped)

    assert console.current_display(host) == f"framebuffer console on {words}"


def test_a_kernel_without_virtual_terminals_has_no_console_driver(tmp_path: Path) -> None:
    shown = console.current_display(SnapshotHost(str(tmp_path)))

    assert shown == "none, because this kernel has no virtual terminals"


# -- the kernel


@pytest.mark.parametrize(
    ("symbols", "release", "removes"),
    [
        ("|0 T aperture_remove_conflicting_pci_devices", "5.14.0-503.el9.x86_64", True),
        ("|0 t aperture_remove_conflicting_pci_devices\t[video]", "6.12.1", True),
        ("|0 T aperture_remove_conflicting_pci_devices_x\n|0 T _text", "6.12.1", False),
        ("|0 T _text", "6.1.0-49-amd64", False),
        ("", "6.0.0", True),
        ("", "5.19.17", False),
        ("", "unknown", False),
    ],
    ids=["backport", "module", "longer-name", "absent", "no-table-6.0", "no-table-5.19", "no-idea"],
)
def test_the_symbol_decides_whether_the_kernel_removes_consoles_and_else_the_version(
    tmp_path: Path, symbols: str, release: str, removes: bool
) -> None:
    text = f"f proc/kallsyms\n{symbols}\nf proc/sys/kernel/osrelease = {release}"
    host = unpack(text, str(tmp_path))

    assert kernel.removes_consoles(host) is removes


def cached(host: FakeHost, text: str) -> FakeHost:
    host.tree.put("run/vfio-console-hook/kernel", text)
    return host


BOOT = "5c3a7f0e-2c52-4b61-9d7e-0d5d7a1f9b42"


def test_a_cached_answer_of_this_boot_is_used(machine: MachineFactory) -> None:
    found = {"boot": BOOT, "removes_consoles": False, "vga_helper": None}
    host = cached(machine("efifb-6.12"), json.dumps(found))

    assert (kernel.removes_consoles(host), kernel.has_vga_helper(host)) == (False, None)


@pytest.mark.parametrize(
    "text",
    ['{"boot": "other", "removes_consoles": false, "vga_helper": false}', "", "{", "[]", "null",
     "\udcff", f'{{"boot": "{BOOT}"}}', f'{{"boot": "{BOOT}", "removes_consoles": false}}',
     f'{{"boot": "{BOOT}", "removes_consoles": "no", "vga_helper": false}}',
     f'{{"boot": "{BOOT}", "removes_consoles": [], "vga_helper": false}}'],
)  # fmt: skip
def test_a_cached_answer_of_another_boot_or_garbage_is_not_used(
    machine: MachineFactory, text: str
) -> None:
    host = machine("efifb-6.12")
    Path(host.path("run/vfio-console-hook")).mkdir()
    Path(host.path("run/vfio-console-hook/kernel")).write_bytes(
        text.encode("utf-8", "surrogateescape")
    )

    assert kernel.removes_consoles(host) is True
    assert json.loads(host.read("run/vfio-console-hook/kernel") or "") == {
        "boot": BOOT, "removes_consoles": True, "vga_helper": False,
    }  # fmt: skip


def test_before_the_first_claim_no_cache_is_written(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    kernel.removes_consoles(host)

    assert host.list("run") == ()


@pytest.mark.parametrize(
    ("text", "release"),
    [("6.12.107+deb13-amd64", (6, 12, 107)), ("5.10.0-41-amd64", (5, 10, 0)),
     ("7.3.0-rc1", (7, 3, 0)), ("6.18.48-talos", (6, 18, 48)), ("6.1-rc2", (6, 1, 0)),
     ("", (0, 0, 0)), ("rolling", (0, 0, 0)), ("6", (0, 0, 0))],
)  # fmt: skip
def test_the_kernel_release_is_three_numbers_or_zeros(
    tmp_path: Path, text: str, release: tuple[int, int, int]
) -> None:
    host = unpack(f"f proc/sys/kernel/osrelease = {text}", str(tmp_path))

    assert kernel.release(host) == release


@pytest.mark.parametrize(
    ("text", "version", "release"),
    [
        ("6.1.0-50-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)", (6, 1, 176)),
        ("5.10.0-41-rt-amd64", "#1 SMP PREEMPT_RT Debian 5.10.223-1 (2024-08-10)", (5, 10, 223)),
        ("6.1.0-50-amd64", "#1 SMP Debian 6.12.107-1~bpo12+1 (2026-01-01)", (6, 1, 0)),
        ("6.8.0-31-generic", "#31-Ubuntu SMP PREEMPT_DYNAMIC Sat Apr 20 00:40:06 UTC", (6, 8, 0)),
        ("6.12.107+deb13-amd64", "#1 SMP Debian 6.12.9-1 (2026-01-01)", (6, 12, 107)),
    ],
    ids=["debian", "realtime", "another-series", "ubuntu", "known"],
)
def test_the_version_of_debians_package_completes_the_kernel_release(
    tmp_path: Path, text: str, version: str, release: tuple[int, int, int]
) -> None:
    lines = f"f proc/sys/kernel/osrelease = {text}\nf proc/sys/kernel/version = {version}"

    assert kernel.release(unpack(lines, str(tmp_path))) == release


@pytest.mark.parametrize(
    ("state", "locked"),
    [("[none] integrity confidentiality", False), ("none [integrity] confidentiality", True),
     ("none integrity [confidentiality]", True), (None, False)],
)  # fmt: skip
def test_the_lockdown_level_is_the_word_in_brackets(
    tmp_path: Path, state: str | None, locked: bool
) -> None:
    text = f"f sys/kernel/security/lockdown = {state}" if state else ""
    host = unpack(text, str(tmp_path))

    assert kernel.locked_down(host) is locked


def test_a_symbol_exists_or_not_or_is_unknown(tmp_path: Path) -> None:
    host = unpack("f proc/kallsyms\n|0 t radeon_pci_remove\t[radeon]", str(tmp_path))

    found = [
        kernel.has_symbol(host, "radeon_pci_remove"),
        kernel.has_symbol(host, "radeon_pci"),
        kernel.has_symbol(SnapshotHost(str(tmp_path / "none")), "radeon_pci_remove"),
    ]

    assert found == [True, False, None]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("class", ""), ("class", "VGA"), ("class", "-1"), ("class", "0x" + "9" * 5000),
        ("resource", "0x0"), ("resource", "0x0 0x1 0x2 0x3"), ("resource", "zz zz zz"),
        ("resource", "0x" + "f" * 17 + " 0x0 0x0"), ("resource", "\0"),
    ],
)  # fmt: skip
def test_content_that_no_kernel_writes_is_one_short_error(
    machine: MachineFactory, path: str, content: str
) -> None:
    host = machine("efifb-6.12")
    host.tree.put(f"sys/bus/pci/devices/0000:01:00.0/{path}", content)

    with pytest.raises(HostError) as caught:
        gpu.gpus_among(host, ("0000:01:00.0",))

    start = f"cannot understand /sys/bus/pci/devices/0000:01:00.0/{path}: "
    assert caught.value.text.startswith(start)
    assert len(caught.value.text) < len(start) + 200


def test_a_link_may_disappear_while_it_is_resolved(tmp_path: Path) -> None:
    host = SnapshotHost(str(tmp_path))
    (tmp_path / "card0").mkdir()
    link = tmp_path / "link"
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            link.symlink_to("card0")
            link.unlink()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        seen = {host.real("link") for _ in range(20_000)}
    finally:
        done.set()
        other.join()

    # "link" itself: it was away, and is back already.
    assert "card0" in seen
    assert seen <= {"card0", "link", None}
