"""Which of the host's PCI devices a VM gets: resolved once, for everything that follows."""

from __future__ import annotations

from dataclasses import dataclass

from ..domain import Domain, Hostdev
from ..machine import pci
from ..machine.accelerators import is_gpu
from ..machine.host import Host
from ..value import Value


@dataclass(frozen=True, eq=False, repr=False)
class Assignment(Value):
    """The PCI devices of the host that a VM gets, or that a person takes.

    gpus are the addresses of the GPUs and accelerators among them, without virtual
    functions, on which the host has nothing. siblings are the addresses of all others.
    configured_as is whose configuration applies. until and spared are those of a rehearsal
    (domain.Domain).
    """

    name: str
    uuid: str
    hostdevs: tuple[Hostdev, ...]
    gpus: tuple[str, ...]
    siblings: tuple[str, ...]
    by_hand: bool = False
    bind_vfio: bool = False
    configured_as: str = ""
    until: float = 0.0
    spared: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(one.address for one in self.hostdevs)

    @property
    def unmanaged(self) -> frozenset[str]:
        """The addresses of what libvirt does not detach by itself (managed='no')."""
        return frozenset(one.address for one in self.hostdevs if not one.managed)


def assignment_of(host: Host, domain: Domain) -> Assignment:
    """What a domain assigns on this machine. Raises HostError for a device that is not there."""
    addresses = tuple(one.address for one in domain.hostdevs)
    gpus = tuple(
        address
        for address in addresses
        if is_gpu(host, address) and not pci.is_virtual(host, address)
    )
    return Assignment(
        name=domain.name,
        uuid=domain.uuid,
        hostdevs=domain.hostdevs,
        gpus=gpus,
        siblings=tuple(address for address in addresses if address not in gpus),
        by_hand=domain.by_hand,
        bind_vfio=domain.bind_vfio,
        configured_as=domain.configured_as or domain.name,
        until=domain.until,
        spared=domain.spared,
    )
