"""What vfio has of a PCI device, and the files by which QEMU gets it."""

from __future__ import annotations

from .holders import holders_of
from .host import Host
from .pci import is_vfio

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from .holder import Holder


def vfio_nodes(host: Host, address: str) -> list[str]:
    """What QEMU opens of a device on vfio-pci, such as "dev/vfio/1".

    Source: the group file, or with iommufd the device file (Linux
    Documentation/driver-api/vfio.rst, "Group and Container Example", "VFIO Device cdev").
    """
    device = f"sys/bus/pci/devices/{address}"
    group = host.link_name(f"{device}/iommu_group")
    nodes = [f"dev/vfio/devices/{name}" for name in host.list(f"{device}/vfio-dev")]
    return [*nodes, f"dev/vfio/{group}"] if group else nodes


def users(host: Host, address: str) -> list[Holder]:
    """The processes that have a device open through vfio; none when it is not on vfio-pci."""
    return holders_of(host, vfio_nodes(host, address)) if is_vfio(host, address) else []


def users_of_group(host: Host, address: str) -> list[Holder]:
    """The processes that have a device of the same IOMMU group open, or the device itself.

    A group is open for one VM at a time (Linux drivers/vfio/group.c, vfio_group_fops_open).
    """
    group = host.link_name(f"sys/bus/pci/devices/{address}/iommu_group")
    if group is None or not host.exists(f"dev/vfio/{group}"):
        return users(host, address)
    every = host.list(f"sys/kernel/iommu_groups/{group}/devices") or (address,)
    nodes = dict.fromkeys(node for one in every for node in vfio_nodes(host, one))
    return holders_of(host, [*nodes])
