"""The functions of a card that a VM does not get, and whether that matters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ...machine import card, iommu, pci
from ...machine.gpu import Gpu
from ...machine.host import Host


@dataclass(frozen=True)
class LeftFunction:
    """A function of the card of a GPU that is not assigned to the VM.

    driver is the host's, or None. matters: QEMU could not open the GPU for it. why is a clause
    for people about what follows.
    """

    address: str
    pci_class: int
    driver: str | None
    matters: bool
    why: str

    @property
    def kind(self) -> str:
        """The name of its class, such as "audio device"."""
        return pci.kind(self.pci_class)


def left_functions(
    host: Host, gpus: Collection[Gpu], assigned: Collection[str]
) -> tuple[LeftFunction, ...]:
    """The functions of the cards of these GPUs that are not assigned. Raises HostError."""
    physical = (gpu for gpu in gpus if not gpu.virtual)
    found = {one.address: one for gpu in physical for one in _left_of(host, gpu, assigned)}
    return tuple(found[address] for address in sorted(found))


def _left_of(host: Host, gpu: Gpu, assigned: Collection[str]) -> Iterator[LeftFunction]:
    group = iommu.group_of(host, gpu.address)
    blocking = iommu.blocking(host, group, assigned) if group else ()
    for address in card.functions(host, gpu.address):
        if address in assigned or pci.is_virtual(host, address):
            continue
        driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
        if address in blocking:
            why = "it is in the GPU's IOMMU group, so QEMU could not open that"
        elif group and iommu.group_of(host, address) == group:
            has = f"{driver} lets QEMU open that" if driver else "no driver has it"
            why = f"it is in the GPU's IOMMU group, and {has}, so that does not matter"
        else:
            sound = "; the VM has no sound on its monitors" if pci.is_sound(host, address) else ""
            why = f"it stays on the host, which does not matter{sound}"
        yield LeftFunction(
            address,
            pci.pci_class_of(host, address) or 0,
            driver,
            address in blocking,
            why,
        )
