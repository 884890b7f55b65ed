"""Firmware framebuffers: the platform devices that the kernel made of what the firmware lit.

Linux drivers/firmware/sysfb.c registers one of them at boot; kernels before 5.15
do it in arch/x86/kernel/sysfb.c. efifb and efidrm share the driver name
"efi-framebuffer", likewise the vesa and simple pairs, so the name does not tell
which one draws: the nodes below the device and the reservation in /proc/iomem do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .host import Host
from .memory import Bar, Range, Reservation

_DEVICE = re.compile(
    r"(?:(?:efi|vesa|simple|coreboot|vga|ega)-framebuffer|vga16fb|of-display)\.\d+"
)
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

BOOTFB = "BOOTFB"
"""The resource of a simple-framebuffer device itself; it outlives the driver
(Linux drivers/firmware/sysfb_simplefb.c, sysfb_create_simplefb)."""

# Names in /proc/iomem by kind of device (Linux efifb.c, vesafb.c, simplefb.c,
# drivers/gpu/drm/sysfb/*.c).
_RESERVED_AS = {
    "efi": ("efifb", "efidrm"),
    "vesa": ("vesafb", "vesadrm"),
    "simple": ("simplefb", "simpledrm"),
    "coreboot": ("corebootdrm",),
    "of": ("ofdrm", "offb"),
    "vga": ("vga16fb",),
}
# What draws on legacy VGA memory, which is in no BAR: it belongs to the boot VGA device.
_LEGACY_VGA = "vga"
RESERVATION_NAMES = frozenset(name for names in _RESERVED_AS.values() for name in names) | {BOOTFB}


@dataclass(frozen=True)
class FirmwareDevice:
    """A platform device such as efi-framebuffer.0 whose memory lies in a GPU's BAR.

    parent is the PCI address it hangs below in sysfs (Linux 6.9 and later), None
    in older kernels. driver is None when none is bound. range is None when
    nothing tells where it draws.
    """

    name: str
    driver: str | None
    parent: str | None
    framebuffers: tuple[str, ...]
    cards: tuple[str, ...]
    range: Range | None
    reserved_as: str | None

    @property
    def kind(self) -> str:
        """A key of _CLAIMS, such as "efi"."""
        return _kind(self.name)

    @property
    def drm(self) -> bool:
        """Whether a DRM driver draws on it, not an fbdev one."""
        return bool(self.cards) or (self.reserved_as or "").endswith("drm")

    @property
    def owns_memory(self) -> bool:
        """Whether the device itself holds BOOTFB, so that an unbind frees nothing."""
        return self.kind == "simple"

    @property
    def dead(self) -> bool:
        """A driver is bound but draws nothing: a native driver took the framebuffer away.

        Linux 5.10 unregisters only the framebuffer then, and an unbind of what
        is left is a double free (kernel BUG in mm/slub.c).
        """
        return self.driver is not None and not (self.framebuffers or self.cards or self.reserved_as)

    @property
    def draws_as(self) -> str:
        """What draws on it, in the kernel's word: "efifb", "simpledrm"..."""
        return self.reserved_as or (_RESERVED_AS[self.kind][-1 if self.drm else 0])


def _kind(name: str) -> str:
    kind = name.split("-", 1)[0]
    return _LEGACY_VGA if kind.startswith(("vga", "ega")) else kind


def devices(host: Host) -> tuple[str, ...]:
    """The names of all firmware framebuffer devices of this machine."""
    return tuple(name for name in host.list("sys/bus/platform/devices") if _DEVICE.fullmatch(name))


def in_bars(
    host: Host,
    address: str,
    bars: tuple[Bar, ...],
    reservations: tuple[Reservation, ...],
    native: bool,
) -> tuple[FirmwareDevice, ...]:
    """The firmware framebuffers of one GPU, by sysfs parent or else by address.

    native: a native driver is bound to the GPU; what reservations are left then do not
    show that the firmware driver still draws.
    """
    found = (_inspect(host, name, reservations, native) for name in devices(host))
    return tuple(device for device in found if _belongs(host, device, address, bars))


def _inspect(
    host: Host, name: str, reservations: tuple[Reservation, ...], native: bool
) -> FirmwareDevice:
    link = f"sys/bus/platform/devices/{name}"
    above = os.path.basename(os.path.dirname(host.real(link) or ""))
    kind = _kind(name)
    reservation = next(
        (reservation for reservation in reservations if reservation.name in _RESERVED_AS[kind]),
        None,
    )
    own = next(
        (
            reservation
            for reservation in reservations
            if reservation.name == BOOTFB and kind == "simple"
        ),
        reservation,
    )
    framebuffers = host.list(f"{link}/graphics")
    cards = tuple(card for card in host.list(f"{link}/drm") if card.startswith("card"))
    draws = reservation is not None and (bool(framebuffers or cards) or not native)
    return FirmwareDevice(
        name=name,
        driver=host.link_name(f"{link}/driver"),
        parent=above if PCI_ADDRESS.fullmatch(above) else None,
        framebuffers=framebuffers,
        cards=cards,
        range=own.range if own else None,
        reserved_as=reservation.name if reservation and draws else None,
    )


def _belongs(host: Host, device: FirmwareDevice, address: str, bars: tuple[Bar, ...]) -> bool:
    if device.parent is not None:
        return device.parent == address
    if device.kind == _LEGACY_VGA:
        return host.read(f"sys/bus/pci/devices/{address}/boot_vga") == "1"
    if device.range is not None:
        return True  # its reservation lies in a BAR of this GPU
    where = _drawn_at(host, device) or screen_memory(host)
    return where is not None and any(bar.range.overlaps(where) for bar in bars)


def _drawn_at(host: Host, device: FirmwareDevice) -> Range | None:
    for fb in device.framebuffers:
        start, size = host.framebuffer_memory(fb) or (0, 0)
        if start:
            return Range(start, start + size - 1)
    return None


# struct screen_info at the start of boot_params (Linux include/uapi/linux/screen_info.h).
_VIDEO_TYPE, _LFB_BASE, _LFB_SIZE, _CAPABILITIES, _EXT_LFB_BASE = 0x0F, 0x18, 0x1C, 0x36, 0x3A
_TYPE_VLFB, _TYPE_EFI = 0x23, 0x70
_CAPABILITY_64BIT_BASE = 2
_VLFB_UNIT = 65536


def screen_memory(host: Host) -> Range | None:
    """Where the boot loader said the firmware's framebuffer is; None for text modes.

    Not updated when a BAR moves later, so it is asked last.
    """
    data = host.read_bytes("sys/kernel/boot_params/data") or b""
    if len(data) < _EXT_LFB_BASE + 4 or data[_VIDEO_TYPE] not in (_TYPE_VLFB, _TYPE_EFI):
        return None
    base = int.from_bytes(data[_LFB_BASE : _LFB_BASE + 4], "little")
    if int.from_bytes(data[_CAPABILITIES : _CAPABILITIES + 4], "little") & _CAPABILITY_64BIT_BASE:
        base |= int.from_bytes(data[_EXT_LFB_BASE : _EXT_LFB_BASE + 4], "little") << 32
    size = int.from_bytes(data[_LFB_SIZE : _LFB_SIZE + 4], "little")
    if data[_VIDEO_TYPE] == _TYPE_VLFB:
        size *= _VLFB_UNIT
    return Range(base, base + size - 1) if base and size else None
