"""What libvirt or QEMU would refuse: found before the console goes for nothing."""

from __future__ import annotations

from ..errors import RefusedError, StepError
from ..machine import pci
from ..machine.host import Host
from ..machine.iomem import Reservation

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..domain import Hostdev
    from .assignment import Assignment


def refuse_unassignable(host: Host, assignment: Assignment) -> None:
    """Raise RefusedError with what libvirt or QEMU would not start the VM with.

    Source: libvirt src/util/virhostdev.c, virHostdevPreparePCIDevices for managed='no';
    src/util/virpci.c, virPCIDeviceAddressGetIOMMUGroupNum for the group; QEMU
    hw/vfio/container.c, vfio_group_get, for what else is in it.
    """
    _refuse_silent(host, assignment.gpus)
    for hostdev in assignment.hostdevs:
        if not hostdev.managed and not pci.is_vfio(host, hostdev.address):
            raise _not_bound(hostdev)
    _refuse_without_vfio(host)
    from ..machine import iommu  # takes 1 ms to load, and only prepare needs it

    for address in assignment.addresses:
        group = iommu.group_of(host, address)
        if group is None:
            if assignment.by_hand and iommu.is_optional(host):
                continue
            if iommu.comes_with_driver(host, address):
                continue
            why, hint = iommu.why_none(host, address)
            raise RefusedError(
                f"{why}: {address} is in no IOMMU group, so libvirt cannot assign it", hint=hint
            )
        others = iommu.blocking(host, group, (*assignment.addresses, *assignment.spared))
        if others:
            stay = "stay" if others[1:] else "stays"
            # doctor imagines a VM for a GPU that none has, under its address.
            name = "the VM" if assignment.name in assignment.addresses else assignment.name
            vm = "" if assignment.by_hand else name
            raise RefusedError(
                f"the IOMMU group of {address} is not viable, so QEMU could not open it:"
                f" {iommu.described(host, others)} {stay} on the host",
                hint=iommu.how_to_separate(host, address, others, vm),
            )


def _refuse_without_vfio(host: Host) -> None:
    """Raise RefusedError if neither libvirt nor anybody can bind a device to vfio-pci.

    Nothing is known where no modules are in any place that we know, as in a snapshot.
    """
    if host.exists(f"sys/bus/pci/drivers/{pci.VFIO}"):
        return
    from ..machine import vfio_driver  # only for the first VM after a boot

    folders = {tree.rpartition("/")[0] for tree in vfio_driver.trees(host)}
    if any(map(host.exists, folders)) and not vfio_driver.is_installed(host):
        why, hint = vfio_driver.why_missing(host)
        raise RefusedError(f"vfio-pci is {why}, so no VM can have a PCI device", hint=hint)


def _not_bound(hostdev: Hostdev) -> RefusedError:
    """The error for a device that nothing binds to vfio-pci."""
    if hostdev.origin != "hostdev":
        return RefusedError(
            f"{hostdev.address} is not on vfio-pci, and is in <{hostdev.origin}>, where libvirt"
            " binds nothing to vfio-pci",
            hint="bind it to vfio-pci before the VM starts, for example with vfio-pci.ids= on the"
            f" kernel's command line or `driverctl set-override {hostdev.address} vfio-pci`",
        )
    return RefusedError(
        f"{hostdev.address} is managed='no' and not on vfio-pci, so libvirt does not assign it",
        hint="write managed='yes' in the <hostdev>, or bind it to vfio-pci yourself",
    )


# Below what a disk can be: storage and serial bus controllers, and readers of cards.
_WITH_DISKS = ("0x01", "0x0c", "0x0805")


def refuse_mounted(host: Host, assignment: Assignment) -> None:
    """Raise RefusedError for a device that would take a file system of the host along.

    libvirt unbinds the driver without a look at what is mounted.
    """
    for address in assignment.siblings:
        pci_class = host.read(f"sys/bus/pci/devices/{address}/class") or ""
        if not pci_class.startswith(_WITH_DISKS):
            continue
        from ..machine.host_use import file_system_on  # few VMs have such a device

        use = file_system_on(host, address)
        if use:
            raise RefusedError(
                f"{use} {address}, which {assignment.name} would take away from the host",
                hint="unmount it, or swapoff; or remove the device from the VM",
            )


def refuse_missing_rom(host: Host, assignment: Assignment) -> None:
    """Raise RefusedError for a ROM file without which QEMU would not start."""
    for hostdev in assignment.hostdevs:
        # A snapshot may lack it.
        if not hostdev.rom or not (host.complete or host.exists(hostdev.rom.lstrip("/"))):
            continue
        from ..machine import rom  # few VMs have one

        missing = rom.why_missing(host, hostdev.rom)
        if missing:
            raise RefusedError(
                f"the ROM file {hostdev.rom} of {hostdev.address} {missing}, so QEMU would not"
                " start",
                hint=f"correct the file of its <rom> in the <{hostdev.origin}>, or remove it",
            )


def _refuse_silent(host: Host, addresses: tuple[str, ...]) -> None:
    """Raise RefusedError for a GPU that a guest has left so that it does not answer.

    Source: libvirt src/util/virpci.c, virPCIDeviceReadHeaderType: "Unknown PCI header type '127'".
    """
    from ..machine import power  # takes 1 ms to load, and only prepare needs it

    for address in addresses:
        if power.is_silent(host, address):
            raise RefusedError(
                f"{address} does not answer: its config space reads as ones, so no VM can have it",
                hint=f"{power.advice(host, address)}; if nothing wakes it, reboot the host",
            )


def still_reserved(address: str, reservation: Reservation) -> StepError:
    """The error for a GPU of which not all memory is free: QEMU could not map it."""
    return StepError(
        f"{reservation.name} still reserves {reservation.range} in BAR {reservation.bar} of"
        f" {address}, so QEMU could not map it",
        hint=f"look for what uses {reservation.name}, with `vfio-console-hook plan`",
    )
