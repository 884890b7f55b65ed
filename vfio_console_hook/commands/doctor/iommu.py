"""Whether the host can give PCI devices to VMs at all: the IOMMU, its groups, vfio-pci."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import gpu
from ...machine.host import Host
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Given, Subject, unrecorded

_PCI = "sys/bus/pci/devices"
_UNITS, _GROUPS = "sys/class/iommu", "sys/kernel/iommu_groups"
_BRIDGE = "0x0604"
_VFIO_PCI = re.compile(rb"/vfio[-_]pci\.ko")
# NixOS has no /lib/modules.
_MODULE_TREES = ("lib/modules", "usr/lib/modules", "run/booted-system/kernel-modules/lib/modules")


def iommu(subject: Subject) -> Iterator[Finding]:
    """Whether the kernel drives an IOMMU: it makes groups then (Linux drivers/iommu/iommu.c)."""
    host = subject.host
    units = host.list(_UNITS)
    groups = set(host.list(_GROUPS)) | {_group(host, one) for one in host.list(_PCI)} - {None}
    if groups:
        which = f" ({', '.join(units)})" if units else ""
        word = "group" if len(groups) == 1 else "groups"
        yield Finding(PASS, "IOMMU", f"on{which}, with {len(groups)} {word} of devices")
    elif unrecorded(host, _UNITS, _GROUPS):
        yield Finding(WARN, "IOMMU", NOT_RECORDED)
    else:
        text = "off, and without it no PCI device can be given to a VM"
        yield Finding(FAIL, "IOMMU", text, _how_to_switch_on(host))


def _how_to_switch_on(host: Host) -> str:
    """By the processor's vendor, and by whether the firmware tells the kernel of one.

    Source: Linux drivers/iommu/intel/dmar.c (DMAR), drivers/iommu/amd/init.c (IVRS).
    """
    words = (host.read("proc/cmdline") or "").split()
    processor = host.read("proc/cpuinfo") or ""
    if "GenuineIntel" in processor:
        if "intel_iommu=on" in words and not host.exists("sys/firmware/acpi/tables/DMAR"):
            return "switch VT-d on in the firmware setup (often below chipset or processor)"
        if host.exists("sys/firmware/acpi/tables/DMAR"):
            return "boot with intel_iommu=on on the kernel command line"
        return (
            "switch VT-d on in the firmware setup, and boot with intel_iommu=on on the kernel"
            " command line"
        )
    if "AuthenticAMD" in processor:
        if host.exists("sys/firmware/acpi/tables/IVRS"):
            return "take amd_iommu=off or iommu=off out of the kernel command line"
        return "switch the IOMMU (AMD-Vi) on in the firmware setup, often below NBIO or chipset"
    return "switch the IOMMU on in the firmware setup"


def _group(host: Host, address: str) -> str | None:
    return host.link_name(f"{_PCI}/{address}/iommu_group")


def iommu_groups(subject: Subject) -> Iterator[Finding]:
    """Whether what is in a GPU's group goes to the VM with it, for each GPU."""
    for given in subject.given():
        yield _judge_group(subject.host, given)


def _judge_group(host: Host, given: Given) -> Finding:
    title = f"IOMMU group of {given.whose}"
    group = _group(host, given.address)
    if group is None:
        return Finding(given.bad, title, "it has none", "see what is said of the IOMMU")
    members = [one for one in _members(host, group) if one != given.address]
    left = [one for one in members if not _may_stay(host, one, given)]
    if not left:
        beside = f", with {' and '.join(_told(host, one) for one in members)}" if members else ""
        return Finding(PASS, title, f"group {group}{beside or ', alone'}")
    names = " and ".join(_told(host, one) for one in left)
    text = f"group {group} is not viable: it also has {names}"
    return Finding(given.bad, title, text, _how_to_part(given, left))


def _members(host: Host, group: str) -> list[str]:
    linked = {one for one in host.list(_PCI) if _group(host, one) == group}
    return sorted(linked | set(host.list(f"{_GROUPS}/{group}/devices")))


def _may_stay(host: Host, address: str, given: Given) -> bool:
    """Whether a device in the group of a VM's GPU does not keep vfio from opening the group.

    Source: up to Linux 5.18 vfio_dev_viable() and vfio_dev_driver_allowed()
    (drivers/vfio/vfio.c) want a bridge, pci-stub, vfio or no driver; later the
    drivers with driver_managed_dma, which are the same.
    """
    if given.domain and address in {one.address for one in given.domain.hostdevs}:
        return True
    pci_class = host.read(f"{_PCI}/{address}/class")
    driver = host.link_name(f"{_PCI}/{address}/driver")
    return (
        pci_class is None  # of a recorded machine, which does not have all devices
        or pci_class.startswith(_BRIDGE)
        or driver in (None, "pci-stub", "pcieport")
        or gpu.is_vfio(host, address)
    )


def _told(host: Host, address: str) -> str:
    driver = host.link_name(f"{_PCI}/{address}/driver")
    return f"{address} (on {driver})" if driver else address


def _how_to_part(given: Given, left: list[str]) -> str:
    vm = given.domain.name if given.domain else "the VM"
    if all(gpu.slot(one) == gpu.slot(given.address) for one in left):
        return (
            f"give {vm} {' and '.join(left)} too, of the same card: a <hostdev managed='yes'> for"
            " each"
        )
    return (
        f"give {vm} all of them, or put the card into another slot: which slots are apart is up to"
        " the mainboard"
    )


def vfio_pci(subject: Subject) -> Iterator[Finding]:
    """Whether the driver that gives a device to QEMU is there for the running kernel."""
    host = subject.host
    release = host.read("proc/sys/kernel/osrelease") or ""
    trees = [f"{tree}/{release}" for tree in _MODULE_TREES]
    if host.exists("sys/bus/pci/drivers/vfio-pci"):
        yield Finding(PASS, "vfio-pci", "loaded")
    elif any(_holds_vfio_pci(host, tree) for tree in trees):
        yield Finding(PASS, "vfio-pci", "installed; libvirt loads it when it needs it")
    elif unrecorded(host, *trees):
        yield Finding(WARN, "vfio-pci", f"not loaded, and the kernel's modules are {NOT_RECORDED}")
    elif not any(host.exists(tree) for tree in trees):
        text = f"not loaded, and the modules of the running kernel {release} are gone"
        yield Finding(FAIL, "vfio-pci", text, "reboot, if the kernel was updated since boot")
    else:
        text = f"not there for the running kernel {release}"
        advice = "install a kernel with CONFIG_VFIO_PCI, or the package with all its modules"
        yield Finding(FAIL, "vfio-pci", text, advice)


def _holds_vfio_pci(host: Host, tree: str) -> bool:
    # depmod writes modules.dep, the kernel's build modules.builtin (man 5 modules.dep).
    lists = (host.read_bytes(f"{tree}/modules.{name}") or b"" for name in ("dep", "builtin"))
    return any(_VFIO_PCI.search(content) for content in lists)


CHECKS: tuple[Check, ...] = (iommu, iommu_groups, vfio_pci)
