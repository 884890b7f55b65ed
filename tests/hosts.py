"""Machines as the lab has them, for tests that vary one thing: QEMU's q35 with its display devices.

Snapshots, and hosts that users described, are files in tests/machines.
"""

from __future__ import annotations

from dataclasses import replace

from tests import natives
from tests.building import (
    DUMMY_AND_FBCON,
    MEM,
    PREF,
    VGA_TEXT,
    Firmware,
    K,
    M,
    Machine,
    Pci,
)  # fmt: skip

VGA, DISPLAY, AUDIO = 0x0300, 0x0380, 0x0403
AMD, NVIDIA, INTEL, QEMU = 0x1002, 0x10DE, 0x8086, 0x1234
OWN_BUILD = "an own build with SYSFB_SIMPLEFB, bochs not loaded"

_PICTURE = 1280 * 800 * 4
LAB = "QEMU q35, {what}."
BLACKLISTED = ("f fake/blacklist = bochs",)


def lab_gpu(
    address: str = "0000:01:00.0",
    pci_class: int = VGA,
    base: int = 0xC0000000,
    *,
    bound: bool = False,
) -> Pci:
    """QEMU's VGA (0300) or bochs-display (0380) behind a root port."""
    vga = pci_class == VGA
    bus = int(address[5:7], 16)
    return Pci(
        address, pci_class, (QEMU, 0x1111),
        bars=((0, base, 16 * M, PREF), (2, 0xFEA00000 + bus * M, 4 * K, MEM)),
        bridge=f"0000:00:{bus:02x}.0", group=bus, boot_vga=vga if vga else None, shadow=vga,
        native=natives.BOCHS, bound=bound,
    )  # fmt: skip


def firmware_on(gpu: Pci, driver: str, kernel: str, *, bound: bool = True) -> Firmware:
    """The picture that OVMF leaves in BAR 0, and the platform device for it."""
    kind = {"ef": "efi", "ve": "vesa", "si": "simple"}[driver[:2]]
    major, minor = (int(word) for word in kernel.split(".")[:2])
    quiet = driver in ("simplefb", "simpledrm") and (major, minor) < (5, 18)
    return Firmware(
        f"{kind}-framebuffer.0", driver, gpu.bars[0][1], _PICTURE, 0 if quiet else _PICTURE,
        bound=bound, below=gpu.path if (major, minor) >= (6, 9) else "",
    )  # fmt: skip


def lab(kernel: str, driver: str, pci_class: int = VGA, *, bound: bool = True) -> Machine:
    """One GPU lit by the firmware; its native driver is not loaded, and mostly blacklisted."""
    gpu = lab_gpu(pci_class=pci_class)
    short = {VGA: "0300", DISPLAY: "0380"}[pci_class]
    simple = driver.startswith("simple")
    own = f", {OWN_BUILD}" if simple else ""
    return Machine(
        f"{driver}-{short}-{kernel}",
        (LAB.format(what=f"{driver} on class {short}, Linux {kernel}{own}"),),
        kernel,
        (gpu,),
        (firmware_on(gpu, driver, kernel, bound=bound),),
        extra=() if simple else BLACKLISTED,
    )


def text_mode(kernel: str) -> Machine:
    """A BIOS boot: vgacon on the VGA card, no framebuffer."""
    what = f"SeaBIOS, text mode, Linux {kernel}"
    return Machine(
        f"vgacon-{kernel}", (LAB.format(what=what),), kernel, (lab_gpu(),),
        consoles=VGA_TEXT, extra=BLACKLISTED,
    )  # fmt: skip


def two_native(kernel: str, consoles: tuple[str, ...] = DUMMY_AND_FBCON) -> Machine:
    """The host's boot GPU and one more, both on the native driver, consoles on the first."""
    second = replace(lab_gpu("0000:02:00.0", base=0xD0000000, bound=True), boot_vga=False)
    return Machine(
        f"two-gpus-{kernel}",
        (LAB.format(what=f"two VGA cards, both on bochs-drm, Linux {kernel}"),),
        kernel, (lab_gpu(bound=True), second), consoles=consoles,
    )  # fmt: skip


def lit_second(kernel: str) -> Machine:
    """The host's GPU on its native driver, and one that the firmware lit and no driver supports."""
    host = lab_gpu(bound=True)
    leaving = replace(lab_gpu("0000:02:00.0", DISPLAY, 0xD0000000), native="")
    return Machine(
        f"two-gpus-lit-second-{kernel}",
        (
            LAB.format(
                what=f"boot_vga on the first GPU, the firmware lit the second, Linux {kernel}"
            ),
            "The console moved to the first when bochs-drm bound it (fb_is_primary_device).",
        ),
        kernel, (host, leaving), (firmware_on(leaving, "efifb", kernel),), console_fb=1,
    )  # fmt: skip


def unshadowed_boot(kernel: str, driver: str = "efifb", pci_class: int = VGA) -> Machine:
    """The boot GPU, lit, behind a bridge without VGA routing, and one on the root bus.

    The kernel marks the ROM of the second as shadowed and not that of the first
    (arch/x86/pci/fixup.c, pci_fixup_video). Nothing drives either.
    """
    boot = replace(lab_gpu(pci_class=pci_class), shadow=False, native="")
    second = replace(
        lab_gpu("0000:00:02.0", base=0xD0000000), bridge="", boot_vga=False, shadow=True, native=""
    )
    lit = firmware_on(boot, driver, kernel)
    return Machine(f"unshadowed-boot-{kernel}", (), kernel, (boot, second), (lit,))
