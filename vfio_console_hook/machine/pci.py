"""PCI functions: their class and slot, and whether vfio has them."""

from __future__ import annotations

import re

from ..errors import HostError
from .host import Host

# Compiled when it is asked for, which most events do not.
_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_CLASS = re.compile("0x[0-9a-f]{6}")  # Linux drivers/pci/pci-sysfs.c, class_show
# Linux include/linux/pci_ids.h, with the names of pci.ids.
_KINDS = {
    0x0104: "RAID controller", 0x0106: "SATA controller", 0x0108: "NVMe controller",
    0x0200: "Ethernet controller", 0x0280: "network controller", 0x0300: "VGA controller",
    0x0302: "3D controller", 0x0380: "display controller", 0x0401: "audio device",
    0x0403: "audio device", 0x0601: "ISA bridge", 0x0805: "SD host controller",
    0x0B40: "co-processor", 0x0C03: "USB controller", 0x0C05: "SMBus controller",
    0x0C80: "serial bus controller", 0x1080: "encryption controller",
    0x1200: "processing accelerator",
}  # fmt: skip
_BASES = {0x01: "storage controller", 0x02: "network controller", 0x03: "display device",
          0x04: "multimedia device", 0x06: "bridge", 0x12: "processing accelerator"}  # fmt: skip
_DISPLAY = 0x03
VGA = 0x0300
VFIO, VFIO_DIRECTORY = "vfio-pci", "vfio-dev"


def full_address(text: str) -> str | None:
    """A PCI address in the form that the kernel uses; the domain 0000 may be left out.

    None when it is none.
    """
    address = text.lower()
    whole = address if address.count(":") == 2 else f"0000:{address}"
    return whole if re.fullmatch(_ADDRESS, whole) else None


def nearest(path: str) -> str | None:
    """The address of the last PCI function in a path of sysfs, or None."""
    parts = reversed(path.split("/"))
    return next((part for part in parts if re.fullmatch(_ADDRESS, part)), None)


def no_device(address: str) -> HostError:
    """The error for a PCI device that is not there."""
    return HostError(f"no PCI device {address} on this machine", hint="compare with `lspci -D`")


def display_class(host: Host, address: str) -> int | None:
    """The class of a PCI device as 0xBBSS if it is a display controller, else None.

    Raises HostError when there is no such device.
    """
    pci_class = pci_class_of(host, address)
    if pci_class is None:
        raise no_device(address)
    return pci_class if pci_class >> 8 == _DISPLAY else None


def pci_class_of(host: Host, address: str) -> int | None:
    """The class of a PCI device as 0xBBSS, or None when there is no such device.

    Raises HostError when it cannot be understood.
    """
    path = f"sys/bus/pci/devices/{address}/class"
    text = host.read(path)
    if text is None:
        return None
    if not _CLASS.fullmatch(text):
        raise HostError.unclear(f"/{path}", text)
    return int(text, 16) >> 8


def any_display(host: Host, addresses: tuple[str, ...]) -> bool:
    """Whether one of these functions can own a console, or one of them is gone."""
    found = (pci_class_of(host, one) for one in addresses)
    return any(one is None or one >> 8 == _DISPLAY for one in found)


def kind(pci_class: int) -> str:
    """The name of a class as 0xBBSS, such as "VGA controller"."""
    return _KINDS.get(pci_class) or _BASES.get(pci_class >> 8, "PCI device")


def is_sound(host: Host, address: str) -> bool:
    """Whether the device is a sound card: PCI_CLASS_MULTIMEDIA_AUDIO or _HD_AUDIO."""
    pci_class = host.read(f"sys/bus/pci/devices/{address}/class") or ""
    return pci_class.startswith(("0x0401", "0x0403"))


def displays(host: Host) -> tuple[str, ...]:
    """The addresses of all PCI functions of display class. Raises HostError."""
    return tuple(
        address
        for address in host.list("sys/bus/pci/devices")
        if display_class(host, address) is not None
    )


def on_module(host: Host, module: str) -> list[str]:
    """The PCI devices on any driver of a module: nvidia has one for its switches, too.

    A driver is its module's if nothing shows that (snapshots).
    """
    found = []
    for address in host.list("sys/bus/pci/devices"):
        driver = f"sys/bus/pci/devices/{address}/driver"
        if (host.link_name(f"{driver}/module") or host.link_name(driver)) == module:
            found.append(address)
    return found


def is_boot_vga(host: Host, address: str) -> bool:
    """Whether the device is the kernel's default VGA device, which only class 0300 can be.

    Source: pci-sysfs.c, boot_vga_show. Patches in discussion show the file for other classes.
    """
    shown = host.read(f"sys/bus/pci/devices/{address}/boot_vga") == "1"
    return shown and pci_class_of(host, address) == VGA


def slot(address: str) -> str:
    """The slot that a PCI function is in: its address without the function number."""
    return address.rpartition(".")[0]


def is_virtual(host: Host, address: str) -> bool:
    """Whether the device is a virtual function (SR-IOV), which has no display."""
    return host.exists(f"sys/bus/pci/devices/{address}/physfn")


def is_vfio(host: Host, address: str) -> bool:
    """Whether vfio-pci or one of its variants is bound to the device.

    Source: libvirt looks for the vfio-dev directory too
    (virPCIDeviceGetCurrentDriverNameAndType); kernels before 6.1 have none, and their variants
    are known by name (mlx5_vfio_pci, hisi_acc_vfio_pci).
    """
    return has_vfio(host, address, host.link_name(f"sys/bus/pci/devices/{address}/driver"))


def has_vfio(host: Host, address: str, driver: str | None) -> bool:
    """The same, if this is the driver that is bound to the device."""
    if driver is not None and driver.endswith(("vfio-pci", "vfio_pci")):
        return True
    return host.exists(f"sys/bus/pci/devices/{address}/{VFIO_DIRECTORY}")
