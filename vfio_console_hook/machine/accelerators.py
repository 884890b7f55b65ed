"""Which PCI functions count as GPUs: displays, and accelerators that cannot own a console.

A compute card such as AMD's Instinct MI300X has another class than a display controller, but
the same driver, with the same nodes and the same remove function.
"""

from __future__ import annotations

from . import pci
from .host import Host

_PROCESSING = 0x12  # PCI_BASE_CLASS_ACCELERATOR
# AMD, NVIDIA, Intel, Habana Labs: FPGAs of others are no accelerators that we know.
_VENDORS = ("0x1002", "0x10de", "0x8086", "0x1da3")


def is_gpu(host: Host, address: str) -> bool:
    """Whether a PCI function is a display controller, or an accelerator that we know.

    An accelerator is known by its driver, whatever its class. Without one, or on vfio-pci, it
    is by class and vendor. Raises HostError when there is no such device.
    """
    if pci.display_class(host, address) is not None:
        return True
    driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
    if driver is not None and not pci.is_vfio(host, address):
        from .drivers import driver_named  # takes 1 ms to load

        return driver_named(driver).accelerates
    pci_class = pci.pci_class_of(host, address) or 0
    vendor = host.read(f"sys/bus/pci/devices/{address}/vendor")
    return pci_class >> 8 == _PROCESSING and vendor in _VENDORS


def gpus_of_host(host: Host) -> tuple[str, ...]:
    """The addresses of all GPUs and accelerators of the host. Raises HostError."""
    return tuple(one for one in host.list("sys/bus/pci/devices") if is_gpu(host, one))
