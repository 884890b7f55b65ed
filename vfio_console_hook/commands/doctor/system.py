"""What doctor checks: this host, its VMs, and the GPUs that they have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ... import domain
from ...domain import Domain, Hostdev
from ...errors import HookError, InstallationError
from ...machine import card, libvirtd, pci
from ...machine.accelerators import gpus_of_host, is_gpu
from ...machine.host import Host
from ...machine.libvirtd import Vm

NO_VM = "00000000-0000-0000-0000-000000000000"
"""The uuid of imagined_vm()."""


@dataclass(frozen=True)
class Assignment:
    """A GPU of this host and a VM that has it; vm is None when no VM has any GPU."""

    address: str
    vm: Domain | None

    @property
    def title(self) -> str:
        """The GPU, and its VM if it has one."""
        return f"{self.address} ({self.vm.name})" if self.vm else self.address


@dataclass(frozen=True)
class System:
    """The host and its VMs.

    domains are the VMs of vms whose XML can be read, in the same order. libvirt_error is
    why libvirt did not list them, "" when it did; libvirt_hint what to do about it.
    without_lxml is whether the reason is that their XML cannot be read at all.
    """

    host: Host
    vms: tuple[Vm, ...] = ()
    domains: tuple[Domain, ...] = ()
    libvirt_error: str = ""
    libvirt_hint: str = ""
    without_lxml: bool = False

    @classmethod
    def with_vms(cls, host: Host, vms: tuple[Vm, ...] | HookError) -> System:
        """The host with these VMs, their XML parsed, or with the reason why there are none."""
        if isinstance(vms, HookError):
            return cls(host, libvirt_error=vms.text, libvirt_hint=vms.hint)
        try:
            return cls(host, vms, tuple(parsed for one in vms if (parsed := _domain(one))))
        except InstallationError as error:
            return cls(
                host, libvirt_error=error.text, libvirt_hint=error.hint, without_lxml=True
            )

    @property
    def without_libvirt(self) -> bool:
        """Whether this host has no libvirt, so that people or its platform take GPUs by hand.

        False for a snapshot that may lack it only because it is no record of the whole host.
        """
        return self.host.complete and not libvirtd.is_here(self.host)

    def vm(self, uuid: str) -> Vm | None:
        """The VM with this uuid, as libvirt reported it."""
        return next((one for one in self.vms if one.uuid.lower() == uuid.lower()), None)

    def gpus_of(self, one: Domain) -> tuple[str, ...]:
        """The GPUs of this host that a VM has, without virtual functions. Raises HostError."""
        return gpus_among(self.host, tuple(hostdev.address for hostdev in one.hostdevs))

    def assignments(self) -> tuple[Assignment, ...]:
        """Each GPU of each VM; each GPU of the host without a VM when no VM has one.

        Raises HostError.
        """
        assigned = tuple(
            Assignment(address, one) for one in self.domains for address in self.gpus_of(one)
        )
        return assigned or tuple(
            Assignment(address, None)
            for address in gpus_of_host(self.host)
            if not pci.is_virtual(self.host, address)
        )

    def taker(self, address: str) -> Domain:
        """Who would have a GPU that no VM has: a VM, or without libvirt a person with `take`.

        It has what else of the card must leave, too. Raises HostError.
        """
        leaving = card.leaving_with(self.host, (address,))
        if not self.without_libvirt:
            return replace(imagined_vm(address), hostdevs=tuple(map(_of_a_vm, leaving)))
        hostdevs = tuple(Hostdev(one, True, "take", 0) for one in leaving)
        return Domain(address, NO_VM, hostdevs, by_hand=True, bind_vfio=True)

    def gpus(self) -> tuple[str, ...]:
        """The GPUs of assignments(), each once. Raises HostError."""
        return tuple(dict.fromkeys(one.address for one in self.assignments()))


def _domain(vm: Vm) -> Domain | None:
    try:
        return domain.parse(vm.xml.encode("utf-8", "surrogateescape"))
    except InstallationError:
        raise
    except HookError:
        return None


def gpus_among(host: Host, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs of this host among PCI addresses, without virtual functions and absent devices.

    Raises HostError.
    """
    return tuple(
        address
        for address in addresses
        if host.exists(f"sys/bus/pci/devices/{address}/class")
        and is_gpu(host, address)
        and not pci.is_virtual(host, address)
    )


def imagined_vm(address: str) -> Domain:
    """A VM that would have this GPU, for one that no VM has."""
    return Domain(address, NO_VM, (_of_a_vm(address),))


def _of_a_vm(address: str) -> Hostdev:
    return Hostdev(address, True, "hostdev", 0)


def driver_of(host: Host, address: str) -> str | None:
    """The name of the driver that a PCI device is bound to."""
    return host.link_name(f"sys/bus/pci/devices/{address}/driver")
