"""The areas of doctor: each heading, and the modules with its checks.

The checks of a module are its CHECKS; they run in this order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import (
    apparmor,
    claims,
    command_line,
    configuration,
    consoles,
    daemon,
    installation,
    iommu,
    other_hooks,
    selinux,
    vms,
)
from .finding import Check, Finding
from .system import System


@dataclass(frozen=True)
class Area:
    """Checks below one heading."""

    heading: str
    checks: tuple[Check, ...]

    def findings(self, system: System) -> tuple[Finding, ...]:
        """What the checks of this area find."""
        found = (one for check in self.checks for one in check(system))
        return tuple(replace(one, area=self.heading) for one in found)


AREAS = (
    Area("the hook", installation.CHECKS + other_hooks.CHECKS),
    Area("libvirt's daemon", daemon.CHECKS),
    Area("SELinux and AppArmor", selinux.CHECKS + apparmor.CHECKS),
    Area("VMs", vms.CHECKS),
    Area("configuration", configuration.CHECKS),
    Area("IOMMU and vfio-pci", iommu.CHECKS),
    Area("the kernel and the host's console", consoles.CHECKS),
    Area("kernel command line", command_line.CHECKS),
    Area("what VMs hold", claims.CHECKS),
)
