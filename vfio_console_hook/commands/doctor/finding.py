"""What a check of doctor looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ... import domain
from ...domain import Domain
from ...errors import HookError
from ...machine import gpu
from ...machine.host import Host
from ...machine.libvirtd import Vm

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of doctor.

    level is PASS, WARN or FAIL. subject is what was looked at ("IOMMU group of
    0000:01:00.0"), text what was found there, advice what to do about it. area is
    what it belongs to, for the heading; examine() fills it in.
    """

    level: str
    subject: str
    text: str
    advice: str = ""
    area: str = ""


@dataclass(frozen=True)
class Given:
    """A GPU of this host and the VM that gets it; no VM for one that could be given."""

    address: str
    domain: Domain | None

    @property
    def whose(self) -> str:
        """The GPU, and its VM if it has one."""
        return f"{self.address} ({self.domain.name})" if self.domain else self.address

    @property
    def bad(self) -> str:
        """The level of what would keep the VM from starting; only a warning without a VM."""
        return FAIL if self.domain else WARN


@dataclass(frozen=True)
class Subject:
    """The host and its VMs.

    domains are the VMs of vms whose XML can be read, in the same order. unasked is
    why libvirt could not be asked for them, "" when it answered; remedy what may help.
    """

    host: Host
    vms: tuple[Vm, ...] = ()
    domains: tuple[Domain, ...] = ()
    unasked: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, host: Host, vms: tuple[Vm, ...]) -> Subject:
        """The host with these VMs, their XML read."""
        return cls(host, vms, tuple(one for one in map(_parsed, vms) if one))

    def vm(self, uuid: str) -> Vm | None:
        """The VM with this uuid, as libvirt told of it."""
        return next((one for one in self.vms if one.uuid.lower() == uuid.lower()), None)

    def gpus_of(self, one: Domain) -> tuple[str, ...]:
        """The GPUs of this host that a VM gets, without virtual functions."""
        return gpus_among(self.host, tuple(hostdev.address for hostdev in one.hostdevs))

    def given(self) -> tuple[Given, ...]:
        """Every GPU of a VM, once for each; all GPUs of the host when no VM has one.

        Raises HostError.
        """
        found = tuple(Given(address, one) for one in self.domains for address in self.gpus_of(one))
        every = (Given(address, None) for address in gpu.displays(self.host))
        return found or tuple(one for one in every if not gpu.is_virtual(self.host, one.address))


Check = Callable[[Subject], Iterator[Finding]]
"""Looks at a Subject and changes nothing. Its name is its title when it cannot look."""


def _parsed(vm: Vm) -> Domain | None:
    try:
        return domain.parse(vm.xml.encode())
    except HookError:
        return None


def gpus_among(host: Host, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs of this host among PCI addresses, without virtual functions and what is not there.

    Raises HostError.
    """
    return tuple(
        address
        for address in addresses
        if host.exists(f"sys/bus/pci/devices/{address}/class")
        and gpu.display_class(host, address) is not None
        and not gpu.is_virtual(host, address)
    )


def unrecorded(host: Host, *paths: str) -> bool:
    """Whether nothing can be told of these: they are not in the text of a recorded machine."""
    return not host.complete and not any(host.exists(path) for path in paths)


NOT_RECORDED = "not in this recorded machine"
