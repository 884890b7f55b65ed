"""IOMMU groups: what has to leave the host together, and what the host needs of it.

vfio opens a group only if every device in it is on a vfio driver or pci-stub, is a bridge,
or has no driver: up to Linux 5.18 vfio_dev_viable() and vfio_dev_driver_allowed()
(drivers/vfio/vfio.c); later the drivers with driver_managed_dma, which are the same
(drivers/iommu/iommu.c, iommu_device_use_default_domain). QEMU says "group N is not viable".
"""

from __future__ import annotations

from collections.abc import Collection

from .host import Host
from .pci import is_vfio, slot

_PCI, _GROUPS = "sys/bus/pci/devices", "sys/kernel/iommu_groups"
_BRIDGE = "0x0604"


def group_of(host: Host, address: str) -> str | None:
    """The number of the group of a PCI device; None if it is in none."""
    return host.link_name(f"{_PCI}/{address}/iommu_group")


def others_in(host: Host, group: str, leaving: Collection[str]) -> tuple[str, ...]:
    """The addresses of the devices in a group, without those that leave."""
    linked = host.list(f"{_GROUPS}/{group}/devices")
    # Old snapshots have only the links of the devices.
    found = linked or [one for one in host.list(_PCI) if group_of(host, one) == group]
    return tuple(sorted(set(found) - set(leaving)))


def blocking(host: Host, group: str, leaving: Collection[str]) -> tuple[str, ...]:
    """The devices that stay and keep vfio from opening their group."""
    return tuple(one for one in others_in(host, group, leaving) if not _may_stay(host, one))


def _may_stay(host: Host, address: str) -> bool:
    pci_class = host.read(f"{_PCI}/{address}/class")
    return (
        pci_class is None  # in a snapshot, which does not have all devices
        or pci_class.startswith(_BRIDGE)
        or host.link_name(f"{_PCI}/{address}/driver") in (None, "pci-stub", "pcieport")
        or is_vfio(host, address)
    )


def with_drivers(host: Host, addresses: Collection[str]) -> str:
    """The addresses, each with its driver: for people."""
    drivers = ((one, host.link_name(f"{_PCI}/{one}/driver")) for one in addresses)
    return " and ".join(f"{one} (on {driver})" if driver else one for one, driver in drivers)


def how_to_separate(host: Host, address: str, others: Collection[str], vm: str) -> str:
    """What to do about the devices that keep a VM from getting the group, as a hint.

    What the host itself uses is never offered to a VM.
    """
    needed = [one for one in others if host_use(host, one)]
    if needed:
        uses = " and ".join(f"{host_use(host, one)} {one}" for one in needed)
        return (
            f"{uses}, so the host cannot give it away: move the card to another slot; which slots"
            " have separate groups depends on the mainboard"
        )
    if all(slot(one) == slot(address) for one in others):
        return (
            f"add {' and '.join(others)} of the same card to {vm} too, each as"
            " <hostdev managed='yes'>"
        )
    return (
        f"move the card to another slot, or add {' and '.join(others)} to {vm} too, if the host"
        " can do without; which slots have separate groups depends on the mainboard"
    )


# -- what the host uses


def host_use(host: Host, address: str) -> str:
    """What the host uses a PCI device for, as a clause before its address; "" if nothing shows."""
    base = (host.read(f"{_PCI}/{address}/class") or "")[:4]
    if base == "0x01":
        return _disk_use(host, address)
    if base == "0x02":
        names = [one for one in _below(host, "sys/class/net", address) if _is_up(host, one)]
        return f"the network interface {names[0]}, which is up, is on" if names else ""
    if base == "0x0c" and _below(host, "sys/class/input", address):
        return "a keyboard or mouse is on"
    return ""


def _below(host: Host, folder: str, address: str) -> list[str]:
    """The devices of a class that are below a PCI device in sysfs."""
    names = host.list(folder)
    return [one for one in names if f"/{address}/" in f"{host.real(f'{folder}/{one}') or ''}/"]


def _is_up(host: Host, interface: str) -> bool:
    return host.read(f"sys/class/net/{interface}/operstate") in ("up", "unknown")


def _disk_use(host: Host, address: str) -> str:
    """Source: proc(5) for mountinfo and swaps; /sys/block/X/holders has LVM, RAID and dm-crypt."""
    mounted = {line.split()[2] for line in (host.read("proc/self/mountinfo") or "").splitlines()}
    swaps = {line.split()[0] for line in (host.read("proc/swaps") or "").splitlines()[1:]}
    for disk in _below(host, "sys/block", address):
        path = f"sys/block/{disk}"
        parts = [one for one in host.list(path) if one.startswith(disk)]
        for place in (path, *(f"{path}/{part}" for part in parts)):
            name = place.rpartition("/")[2]
            if host.read(f"{place}/dev") in mounted:
                return f"{name}, which is mounted, is on"
            if f"/dev/{name}" in swaps:
                return f"{name}, which the host swaps to, is on"
            if host.list(f"{place}/holders"):
                return f"{name}, which the host uses, is on"
    return ""
