"""Checks of what PCI passthrough needs: the IOMMU, its groups, and vfio-pci."""

from __future__ import annotations

from collections.abc import Iterator

from ...machine import iommu as machine_iommu
from ...machine import vfio_driver
from .finding import (
    FAIL,
    NOT_RECORDED,
    WARN,
    Finding,
    check,
    failure,
    need_recorded,
    passed,
    unrecorded,
    warning,
)
from .system import Assignment, System, imagined_vm

_PCI = "sys/bus/pci/devices"
_UNITS, _GROUPS = "sys/class/iommu", "sys/kernel/iommu_groups"


@check("IOMMU")
def iommu(system: System) -> Iterator[Finding]:
    """Whether the kernel drives an IOMMU: it makes groups then (Linux drivers/iommu/iommu.c)."""
    host = system.host
    units = host.list(_UNITS)
    linked = {machine_iommu.group_of(host, one) for one in host.list(_PCI)}
    groups = {*host.list(_GROUPS), *linked} - {None}
    if groups:
        which = f" ({', '.join(units)})" if units else ""
        word = "group" if len(groups) == 1 else "groups"
        yield passed(f"on{which}, with {len(groups)} {word} of devices")
    else:
        need_recorded(host, _UNITS, _GROUPS)
        advice = machine_iommu.how_to_switch_on(host)
        yield failure("off; without it no VM can have a PCI device", advice)


@check("IOMMU groups")
def iommu_groups(system: System) -> Iterator[Finding]:
    """Whether what is in a GPU's group goes to the VM with it, for each GPU."""
    for one in system.assignments():
        yield _group_finding(system, one)


def _group_finding(system: System, gpu_of_vm: Assignment) -> Finding:
    host = system.host
    title = f"IOMMU group of {gpu_of_vm.title}"
    # What would keep the VM from starting; without a VM it is only a warning.
    level = FAIL if gpu_of_vm.vm else WARN
    address, vm = gpu_of_vm.address, gpu_of_vm.vm
    group = machine_iommu.group_of(host, address)
    if group is None and machine_iommu.comes_with_driver(host, address):
        return passed(
            "not known yet: an IOMMU of this kind may give it one with its first driver", of=title
        )
    if group is None:
        why, hint = machine_iommu.why_none(host, address)
        return Finding(level, title, f"it is in no group: {why}", hint)
    # take finds the rest of the card; a VM gets it only if its XML says so.
    taker = vm or (system.taker(address) if system.without_libvirt else imagined_vm(address))
    leaving = {one.address for one in taker.hostdevs} | {address}
    blocking = machine_iommu.blocking(host, group, leaving)
    if blocking:
        which = machine_iommu.described(host, blocking)
        name = vm.name if vm else "" if system.without_libvirt else "the VM"
        return Finding(
            level,
            title,
            f"group {group} is not viable: it also contains {which}",
            machine_iommu.how_to_separate(host, address, blocking, name),
        )
    others = machine_iommu.others_in(host, group, {address})
    if others:
        which = machine_iommu.described(host, others)
        return passed(f"it shares group {group} with {which}", of=title)
    return passed(f"it is alone in group {group}", of=title)


@check("vfio-pci")
def vfio_pci(system: System) -> Iterator[Finding]:
    """Whether the running kernel has the driver that gives a device to QEMU."""
    host = system.host
    if vfio_driver.is_loaded(host):
        yield passed("loaded")
    elif vfio_driver.is_installed(host):
        loader = "`take --vfio`" if system.without_libvirt else "libvirt"
        yield passed(f"installed; {loader} loads it on demand")
    elif unrecorded(host, *vfio_driver.trees(host)):
        yield warning(f"not loaded, and the kernel's modules are {NOT_RECORDED}")
    else:
        yield failure(*vfio_driver.why_missing(host))
