"""Cards: the PCI functions that belong to one GPU, and which of them leave the host with it."""

from __future__ import annotations

from collections.abc import Collection

from . import iommu
from .accelerators import gpus_of_host
from .host import Host
from .pci import is_sound, is_virtual, pci_class_of, slot

_DISPLAYS = range(0x0300, 0x0400)


def same_card(host: Host, gpu: str, address: str) -> bool:
    """Whether a device is on the card of a GPU, itself included.

    The functions of its slot are: sound, USB, UCSI. Intel's Arc have a PCIe switch, and their
    sound in a slot of its own below that.
    """
    if slot(address) == slot(gpu):
        return True
    return (
        is_sound(host, address)
        and pci_class_of(host, f"{slot(address)}.0") not in _DISPLAYS
        and _vendor(host, address) == _vendor(host, gpu)
        and _switch(host, address) == _switch(host, gpu) != ""
    )


def gpus_of(host: Host, address: str) -> tuple[str, ...]:
    """The GPUs of the card that a function is on, itself included. Raises HostError."""
    return tuple(
        one
        for one in gpus_of_host(host)
        if same_card(host, one, address) and not is_virtual(host, one)
    )


def functions(host: Host, gpu: str) -> tuple[str, ...]:
    """The addresses of all functions of the card of a GPU, itself included."""
    return tuple(one for one in host.list("sys/bus/pci/devices") if same_card(host, gpu, one))


def leaving_with(host: Host, addresses: Collection[str]) -> tuple[str, ...]:
    """PCI devices, and what else of their cards has to leave for vfio to open their groups."""
    found = dict.fromkeys(addresses)
    for address in addresses:
        group = iommu.group_of(host, address)
        blocking = iommu.blocking(host, group, found) if group else ()
        found.update(dict.fromkeys(one for one in blocking if same_card(host, address, one)))
    return tuple(found)


def _vendor(host: Host, address: str) -> str | None:
    return host.read(f"sys/bus/pci/devices/{address}/vendor")


def _switch(host: Host, address: str) -> str:
    """The upstream port of the switch that a device is behind; "" behind a root port.

    A device is below a downstream port of the switch, and that is below the upstream port.
    """
    above = (host.real(f"sys/bus/pci/devices/{address}") or "").split("/")
    bridges = [one for one in above[:-1] if one.count(":") == 2]
    return bridges[-2] if len(bridges) > 1 else ""
