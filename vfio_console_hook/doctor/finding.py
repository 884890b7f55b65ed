"""What a check of doctor looks at, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass

from ..domain import Domain
from ..host import Host
from ..vms import Vm

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of doctor.

    level is PASS, WARN or FAIL. subject is what was looked at ("IOMMU group of
    0000:01:00.0"), text what was found there, advice what to do about it.
    """

    level: str
    subject: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """The host and its VMs.

    domains are the VMs of vms whose XML can be read, in the same order. unasked is
    why libvirt could not be asked for them, "" when it answered.
    """

    host: Host
    vms: tuple[Vm, ...] = ()
    domains: tuple[Domain, ...] = ()
    unasked: str = ""
