"""Firmware framebuffers: the platform devices for the display that the firmware set up.

Linux drivers/firmware/sysfb.c registers one of them at boot; kernels before 5.15
do it in arch/x86/kernel/sysfb.c. efifb and efidrm share the driver name
"efi-framebuffer", and so do the vesa and simple pairs. Which one draws is seen from the
nodes below the device and from the reservation in /proc/iomem. With coreboot the module
framebuffer_coreboot registers one instead (drivers/firmware/google/framebuffer-coreboot.c).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..value import Value
from . import pci
from .host import Host
from .iomem import BOOTFB, Reservation
from .memory import Bar, Range

_DEVICE = re.compile(
    r"(?:(?:efi|vesa|simple|coreboot|vga|ega)-framebuffer|vga16fb|of-display)\.\d+"
)

COREBOOT_NAMES = frozenset(
    ("Coreboot Framebuffer", "coreboot-framebuffer.0", "simple-framebuffer.0")
)
"""The resource of coreboot's device itself: named by its driver, and after the device in 7.1."""
COREBOOT_DRIVER = "sys/bus/coreboot/drivers/framebuffer"

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
# Legacy VGA memory is in no BAR: what draws there belongs to the boot VGA device.
_LEGACY_VGA = "vga"
RESERVATION_NAMES = (
    frozenset(name for names in _RESERVED_AS.values() for name in names) | COREBOOT_NAMES | {BOOTFB}
)


@dataclass(frozen=True, eq=False, repr=False)
class FirmwareDevice(Value):
    """A platform device such as efi-framebuffer.0 whose memory lies in a GPU's BAR.

    parent is the PCI device above it in sysfs (Linux 6.9 and later), None in older
    kernels. driver is None when none is bound. range is None without a reservation.
    owned_as is the name of what the device itself reserves. registered_by is the device on
    the coreboot bus for which its driver has registered this one.
    """

    name: str
    driver: str | None
    parent: str | None
    framebuffers: tuple[str, ...]
    cards: tuple[str, ...]
    range: Range | None
    reserved_as: str | None
    owned_as: str | None = None
    registered_by: str | None = None

    @property
    def kind(self) -> str:
        """A key of _RESERVED_AS, such as "efi"."""
        return _kind(self.name)

    @property
    def drm(self) -> bool:
        """Whether a DRM driver draws on it, instead of an fbdev driver."""
        return bool(self.cards) or (self.reserved_as or "").endswith("drm")

    @property
    def owns_memory(self) -> bool:
        """Whether the device itself reserves its memory (BOOTFB), so an unbind frees nothing."""
        return self.kind in ("simple", "coreboot")

    @property
    def coreboots(self) -> bool:
        """Whether coreboot's driver has registered it, and not the kernel at boot."""
        return self.owned_as in COREBOOT_NAMES

    @property
    def dead(self) -> bool:
        """Whether a driver is bound but its framebuffer was removed by a native driver.

        Linux 5.10 then unregisters only the framebuffer, and an unbind of the rest is a
        double free (kernel BUG in mm/slub.c).
        """
        return self.driver is not None and not (self.framebuffers or self.cards or self.reserved_as)

    @property
    def draws_as(self) -> str:
        """The kernel's name of the driver that draws on it: "efifb", "simpledrm"..."""
        return self.reserved_as or (_RESERVED_AS[self.kind][-1 if self.drm else 0])


def is_coreboots(host: Host, name: str) -> bool:
    """Whether a platform device without a PCI device above it is below one of coreboot's."""
    above = os.path.dirname(host.real(f"sys/bus/platform/devices/{name}") or "")
    return host.link_name(f"{above}/subsystem") == "coreboot"


def is_firmware_node(path: str) -> bool:
    """Whether a device, by its real path in sysfs, is below a firmware framebuffer's."""
    return any(_DEVICE.fullmatch(part) for part in path.split("/"))


def _kind(name: str) -> str:
    kind = name.split("-", 1)[0]
    return _LEGACY_VGA if kind.startswith(("vga", "ega")) else kind


def fbdev_driver(name: str) -> str:
    """The fbdev driver of a firmware device, such as "efifb" for "efi-framebuffer.0"."""
    kind = _kind(name)
    return next((one for one in _RESERVED_AS[kind] if one.endswith("fb")), kind)


def devices(host: Host) -> tuple[str, ...]:
    """The names of all firmware framebuffer devices of this machine."""
    return tuple(name for name in host.list("sys/bus/platform/devices") if _DEVICE.fullmatch(name))


def devices_of(
    host: Host,
    address: str,
    bars: tuple[Bar, ...],
    reservations: tuple[Reservation, ...],
    native: bool,
) -> tuple[FirmwareDevice, ...]:
    """The firmware framebuffers of one GPU, by sysfs parent or else by address.

    native: a native driver is bound to the GPU. It may have taken over, or, as nvidia
    without a framebuffer of its own, have left the firmware's driver alone.
    """
    found = (_device(host, name, reservations, native) for name in devices(host))
    return tuple(device for device in found if _belongs(host, device, address, bars))


def _device(
    host: Host, name: str, reservations: tuple[Reservation, ...], native: bool
) -> FirmwareDevice:
    link = f"sys/bus/platform/devices/{name}"
    above = os.path.basename(os.path.dirname(host.real(link) or ""))
    kind = _kind(name)
    reservation = next((one for one in reservations if one.name in _RESERVED_AS[kind]), None)
    owned = _owned(name, kind, reservations)
    own = owned or reservation
    framebuffers = host.list(f"{link}/graphics")
    cards = tuple(card for card in host.list(f"{link}/drm") if card.startswith("card"))
    # Without fb devices nothing but the reservation shows an fbdev driver. Such kernels remove
    # the whole device when a native driver takes over, so a bound one draws.
    draws = reservation is not None and (
        bool(framebuffers or cards) or not native or not host.exists("proc/fb")
    )
    return FirmwareDevice(
        name=name,
        driver=host.link_name(f"{link}/driver"),
        parent=pci.nearest(above),
        framebuffers=framebuffers,
        cards=cards,
        range=own.range if own else None,
        reserved_as=reservation.name if reservation and draws else None,
        owned_as=owned.name if owned else None,
        registered_by=_on_coreboot_bus(host) if owned and owned.name in COREBOOT_NAMES else None,
    )


def _owned(name: str, kind: str, reservations: tuple[Reservation, ...]) -> Reservation | None:
    """What the device itself reserves."""
    names = {"simple": (BOOTFB, *COREBOOT_NAMES), "coreboot": (name,)}.get(kind, ())
    return next((one for one in reservations if one.name in names), None)


def _on_coreboot_bus(host: Host) -> str | None:
    """The device on the coreboot bus that the driver of framebuffers is bound to."""
    bus = "sys/bus/coreboot/devices"
    driver = COREBOOT_DRIVER.rpartition("/")[2]
    return next(
        (one for one in host.list(bus) if host.link_name(f"{bus}/{one}/driver") == driver), None
    )


def _belongs(host: Host, device: FirmwareDevice, address: str, bars: tuple[Bar, ...]) -> bool:
    if device.parent is not None:
        return device.parent == address
    if device.kind == _LEGACY_VGA:
        return pci.is_boot_vga(host, address)
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
    """Where the firmware's framebuffer is according to the boot loader; None for text modes.

    The kernel does not update it when a BAR moves later, so it is the last resort.
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
