"""GPUs: PCI functions that compute or display, and what the host uses them for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..value import Value
from . import accelerators, console, firmware, iomem, memory, pci
from .console import Framebuffer
from .firmware import FirmwareDevice
from .host import Host
from .iomem import Reservation
from .memory import Bar


@dataclass(frozen=True, eq=False, repr=False)
class Gpu(Value):
    """One PCI function of display class, or an accelerator, as it is at this moment.

    pci_class is base class and subclass, such as 0x0300. driver is None when none is
    bound. framebuffers (names as in console.framebuffers()) and cards are those of any
    driver, firmware drivers included.
    reservations are those inside its BARs.
    """

    address: str
    pci_class: int
    bars: tuple[Bar, ...]
    driver: str | None
    vfio: bool
    virtual: bool
    boot_vga: bool
    framebuffers: tuple[str, ...]
    cards: tuple[str, ...]
    firmware: tuple[FirmwareDevice, ...]
    reservations: tuple[Reservation, ...]

    @property
    def displays(self) -> bool:
        """Whether it can own a console; an accelerator cannot."""
        return self.pci_class >> 8 == pci.VGA >> 8

    @property
    def native(self) -> bool:
        """Whether a driver other than vfio's is bound to it."""
        return self.driver is not None and not self.vfio

    @property
    def native_framebuffers(self) -> tuple[str, ...]:
        """Those of its framebuffers that are not the firmware driver's."""
        firmwares = {name for device in self.firmware for name in device.framebuffers}
        return tuple(name for name in self.framebuffers if name not in firmwares)

    @property
    def drawing_firmware(self) -> tuple[FirmwareDevice, ...]:
        """Its firmware devices on which a driver draws, maybe beside a native driver."""
        return tuple(one for one in self.firmware if one.driver is not None and not one.dead)

    @property
    def foreign_reservations(self) -> tuple[Reservation, ...]:
        """The reservations in its BARs that are in vfio's way."""
        return tuple(one for one in self.reservations if not one.vfio and not one.around)


def gpus_among(host: Host, addresses: tuple[str, ...]) -> tuple[Gpu, ...]:
    """The GPUs among PCI devices, in the order given. Raises HostError."""
    return gpus_at(host, tuple(one for one in addresses if accelerators.is_gpu(host, one)))


def gpus_at(host: Host, addresses: tuple[str, ...]) -> tuple[Gpu, ...]:
    """PCI functions that are known to be GPUs, in the order given. Raises HostError."""
    classes = {address: pci.pci_class_of(host, address) for address in addresses}
    if not classes:
        return ()
    # Read once for all of them.
    reserved = iomem.reserved_ranges(host)
    framebuffers = console.framebuffers(host)
    cards = _cards(host)
    return tuple(
        _gpu(host, address, pci_class, reserved, framebuffers, cards)
        for address, pci_class in classes.items()
        if pci_class is not None
    )


def framebuffers_of(host: Host, addresses: Iterable[str]) -> set[str]:
    """The framebuffers of the GPUs among PCI devices, if they are still there. Raises HostError.

    Before Linux 6.9 the parent of a firmware framebuffer in sysfs does not show which GPU it is
    on, so the GPUs are asked.
    """
    present = tuple(one for one in addresses if host.exists(f"sys/bus/pci/devices/{one}"))
    return {name for one in gpus_among(host, present) for name in one.framebuffers}


def _cards(host: Host) -> tuple[tuple[str, str | None], ...]:
    """The DRM nodes, such as "card0" and "renderD128", each with its PCI device."""
    names = [name for name in host.list("sys/class/drm") if name.startswith(("card", "renderD"))]
    return tuple(
        (name, console.pci_ancestor(host, f"sys/class/drm/{name}"))
        for name in names
        if "-" not in name  # or it is a connector
    )


def _gpu(
    host: Host,
    address: str,
    pci_class: int,
    reserved: tuple[tuple[memory.Range, str], ...],
    framebuffers: tuple[Framebuffer, ...],
    cards: tuple[tuple[str, str | None], ...],
) -> Gpu:
    device = f"sys/bus/pci/devices/{address}"
    bars = memory.memory_bars(host, address)
    reservations = iomem.reservations(reserved, address, bars)
    driver = host.link_name(f"{device}/driver")
    vfio = pci.has_vfio(host, address, driver)
    found = firmware.devices_of(host, address, bars, reservations, driver is not None and not vfio)
    own = {name for one in found for name in (one.name, *one.framebuffers, *one.cards)}
    return Gpu(
        address=address,
        pci_class=pci_class,
        bars=bars,
        driver=driver,
        vfio=vfio,
        virtual=pci.is_virtual(host, address),
        boot_vga=pci_class == pci.VGA and host.read(f"{device}/boot_vga") == "1",
        framebuffers=tuple(fb.name for fb in framebuffers if fb.pci == address or fb.name in own),
        cards=tuple(name for name, parent in cards if parent == address or name in own),
        firmware=found,
        reservations=reservations,
    )
