"""What libvirt or QEMU would refuse: found before the console goes for nothing."""

from __future__ import annotations

from ..errors import RefusedError, StepError
from ..machine import pci
from ..machine.host import Host
from ..machine.iomem import Reservation

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from .assignment import Assignment


def refuse_unassignable(host: Host, assignment: Assignment) -> None:
    """Raise RefusedError with what libvirt or QEMU would not start the VM with.

    Source: libvirt src/util/virhostdev.c, virHostdevPreparePCIDevices for managed='no';
    src/util/virpci.c, virPCIDeviceAddressGetIOMMUGroupNum for the group; QEMU
    hw/vfio/container.c, vfio_group_get, for what else is in it.
    """
    if assignment.by_hand:
        return  # what binds the rest of the group is not known then
    for hostdev in assignment.hostdevs:
        unmanaged = hostdev.origin == "hostdev" and not hostdev.managed
        if unmanaged and not pci.is_vfio(host, hostdev.address):
            raise RefusedError(
                f"{hostdev.address} is managed='no' and not on vfio-pci, so libvirt does not"
                " assign it",
                hint="write managed='yes' in the <hostdev>, or bind it to vfio-pci yourself",
            )
    from ..machine import iommu  # takes 1 ms to load, and only prepare needs it

    for address in assignment.gpus:
        group = iommu.group_of(host, address)
        if group is None:
            off = "the IOMMU is off" if not host.list("sys/kernel/iommu_groups") else "no IOMMU"
            raise RefusedError(
                f"{off}: {address} is in no IOMMU group, so libvirt cannot assign it",
                hint="switch VT-d (Intel) or AMD-Vi on in the firmware's setup; Intel also needs"
                " intel_iommu=on on the kernel's command line",
            )
        others = iommu.blocking(host, group, assignment.addresses)
        if others:
            stay = "stay" if others[1:] else "stays"
            raise RefusedError(
                f"the IOMMU group of {address} is not viable, so QEMU could not open it:"
                f" {iommu.with_drivers(host, others)} {stay} on the host",
                hint=iommu.how_to_separate(host, address, others, assignment.name),
            )


def still_reserved(address: str, reservation: Reservation) -> StepError:
    """The error for a GPU of which not all memory is free: QEMU could not map it."""
    return StepError(
        f"{reservation.name} still reserves {reservation.range} in BAR {reservation.bar} of"
        f" {address}, so QEMU could not map it",
        hint=f"look for what uses {reservation.name}, with `vfio-console-hook plan`",
    )
