"""IOMMU groups: what has to leave the host together.

vfio opens a group only if every device in it is on a vfio driver or pci-stub, is a bridge,
or has no driver: up to Linux 5.18 vfio_dev_viable() and vfio_dev_driver_allowed()
(drivers/vfio/vfio.c); later the drivers with driver_managed_dma, which are the same
(drivers/iommu/iommu.c, iommu_device_use_default_domain). QEMU says "group N is not viable".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from . import kernel
from .host import Host
from .pci import is_vfio, kind, pci_class_of

_PCI, _GROUPS = "sys/bus/pci/devices", "sys/kernel/iommu_groups"
_UNITS = "sys/class/iommu"
_BRIDGE = "0x0604"


def group_of(host: Host, address: str) -> str | None:
    """The number of the group of a PCI device; None if it is in none."""
    return host.link_name(f"{_PCI}/{address}/iommu_group")


def comes_with_driver(host: Host, address: str) -> bool:
    """Whether a PCI device that is in no group may get one when a driver is bound to it.

    Where a device's IOMMU is in the device tree, IORT or VIOT, as on arm64, only dma_configure()
    reads that, before the first probe: of_iommu_configure(), acpi_iommu_configure_id(). From
    "iommu: Get DT/ACPI parsing into the proper probe path" (bcb81ac6ae3c, 6.15) on, as always
    with Intel's and AMD's, a device has its group when it appears.
    """
    units = host.list(_UNITS)
    return (
        bool(units)
        and not any(one.startswith(("dmar", "ivhd")) for one in units)
        and kernel.release(host) < (6, 15, 0)
        and host.link_name(f"{_PCI}/{address}/driver") is None
    )


def why_none(host: Host, address: str) -> tuple[str, str]:
    """Why a PCI device is in no group, and what to do, as clauses."""
    # The devices in the domain of a VMD are behind one requester id, so they have no group
    # that the host could give away (Linux drivers/pci/controller/vmd.c, vmd_enable_domain).
    above = (host.real(f"{_PCI}/{address}") or "").split("/")
    vmd = next((one for one in above if host.link_name(f"{_PCI}/{one}/driver") == "vmd"), None)
    if vmd is not None:
        return f"it is behind the VMD {vmd}", (
            "switch Intel VMD off in the firmware's setup, also called RST or RAID mode; a host"
            " that boots from a disk behind it must have the driver nvme in its initramfs"
        )
    if host.list(_GROUPS):
        return "no IOMMU has it", "another slot may have a group; see the mainboard's manual"
    return "the IOMMU is off", how_to_switch_on(host)


def how_to_switch_on(host: Host) -> str:
    """What to do, by the processor's vendor and by whether the firmware describes an IOMMU.

    Source: Linux drivers/iommu/intel/dmar.c (DMAR), drivers/iommu/amd/init.c (IVRS).
    """
    switched_on = "on" in (kernel.parameter(host, "intel_iommu") or ())
    processor = host.read("proc/cpuinfo") or ""
    if "GenuineIntel" in processor:
        if switched_on and not host.exists("sys/firmware/acpi/tables/DMAR"):
            return "enable VT-d in the firmware setup, often below chipset or processor"
        if host.exists("sys/firmware/acpi/tables/DMAR"):
            return "add intel_iommu=on to the kernel command line and reboot"
        return (
            "enable VT-d in the firmware setup, and add intel_iommu=on to the kernel command line"
        )
    if "AuthenticAMD" in processor:
        if host.exists("sys/firmware/acpi/tables/IVRS"):
            return "remove amd_iommu=off or iommu=off from the kernel command line and reboot"
        return "enable the IOMMU (AMD-Vi) in the firmware setup, often below NBIO or chipset"
    return "enable the IOMMU in the firmware setup"


def is_optional(host: Host) -> bool:
    """Whether vfio gives devices away without an IOMMU (drivers/vfio, vfio_noiommu)."""
    return host.read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y"


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


def described(host: Host, addresses: Collection[str]) -> str:
    """The addresses, each with what it is and its driver, for people."""
    found = []
    for one in addresses:
        driver = host.link_name(f"{_PCI}/{one}/driver")
        what = kind(pci_class_of(host, one) or 0)
        found.append(f"{one} ({what}{f', on {driver}' if driver else ''})")
    return " and ".join(found)


def how_to_separate(host: Host, address: str, others: Sequence[str], vm: str = "") -> str:
    """What to do about the devices that keep vfio from opening the group of one, as a hint.

    vm is the VM that would get it; "" if a person takes it. What the host itself uses is
    never offered.
    """
    # Only for a refusal.
    from .card import same_card
    from .host_use import host_use, may_be_used

    own = [one for one in others if same_card(host, address, one)]
    strangers = [one for one in others if one not in own]
    uses = {one: use for one in others if (use := host_use(host, one))}
    beside = [one for one in own if one not in uses]
    too = f", and add {' and '.join(beside)} of the same card to {vm} too" if beside and vm else ""
    elsewhere = f"move the card to another slot{too}"
    mainboard = "which slots have separate groups depends on the mainboard"
    if uses:
        these = " and ".join(f"{use} {one}" for one, use in uses.items())
        if not strangers:
            add = f", then add {' and '.join(others)} of the same card to {vm} too" if vm else ""
            return f"{these}, a function of the card: have that elsewhere first{add}"
        return f"{these}, so the host cannot give it away: {elsewhere}; {mainboard}"
    if any(may_be_used(host, one) for one in strangers):
        return f"{elsewhere}; {mainboard}"
    these = " and ".join(others)
    if strangers:
        add = f"add {these} to {vm} too" if vm else f"name {these} too"
        return f"{elsewhere}, or {add}, if the host can do without; {mainboard}"
    if not vm:
        return f"name {these} too"
    each = "each " if others[1:] else ""
    return f"add {these} of the same card to {vm} too, {each}as <hostdev managed='yes'>"
