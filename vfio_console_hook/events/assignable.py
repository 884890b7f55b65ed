"""What libvirt would not assign to a VM: told before the console goes for nothing."""

from __future__ import annotations

from ..domain import Domain
from ..errors import RefusedError
from ..machine import gpu
from ..machine.gpu import Gpu
from ..machine.host import Host


def check(host: Host, domain: Domain, gpus: tuple[Gpu, ...]) -> None:
    """Raise RefusedError with what libvirt would not start the VM with, the GPUs being its own.

    Source: libvirt src/util/virhostdev.c, virHostdevPreparePCIDevices for managed='no';
    src/util/virpci.c, virPCIDeviceAddressGetIOMMUGroupNum for the group.
    """
    if domain.by_hand:
        return
    for hostdev in domain.hostdevs:
        unmanaged = hostdev.origin == "hostdev" and not hostdev.managed
        if unmanaged and not gpu.is_vfio(host, hostdev.address):
            raise RefusedError(
                f"{hostdev.address} is managed='no' and not on vfio-pci, so libvirt does not"
                " assign it",
                hint="write managed='yes' in the <hostdev>, or bind it to vfio-pci yourself",
            )
    for one in gpus:
        if host.link_name(f"sys/bus/pci/devices/{one.address}/iommu_group") is None:
            off = "the IOMMU is off" if not host.list("sys/kernel/iommu_groups") else "no IOMMU"
            raise RefusedError(
                f"{off}: {one.address} is in no IOMMU group, so libvirt cannot assign it",
                hint="switch VT-d (Intel) or AMD-Vi on in the firmware's setup; Intel also needs"
                " intel_iommu=on on the kernel's command line",
            )
