"""Checks of the host, the installation and the VMs, as `doctor` prints them.

Each module of this package has checks for one thing, in CHECKS; areas() brings them
in the order in which they are told.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import HookError, HostError, StuckError
from .finding import FAIL, PASS, WARN, Check, Finding, Subject
from .unknown import unknown

__all__ = [
    "FAIL",
    "PASS",
    "WARN",
    "Check",
    "Finding",
    "Subject",
    "areas",
    "cannot_look",
    "checks",
    "examine",
    "examine_area",
]

# In the name of a check, which is its title when it cannot look.
_AS_WRITTEN = {"bootfb": "BOOTFB", "gpus": "GPUs", "iommu": "IOMMU", "vms": "VMs"}


def areas() -> tuple[tuple[str, tuple[Check, ...]], ...]:
    """Each area by its heading, with its checks, in the order in which they are told."""
    # Not everybody who needs a Finding needs them all.
    from . import (
        claims,
        command_line,
        configuration,
        confinement,
        consoles,
        daemon,
        installation,
        iommu,
        vms,
    )

    return (
        ("the hook", installation.CHECKS),
        ("libvirt's daemon", daemon.CHECKS),
        ("SELinux and AppArmor", confinement.CHECKS),
        ("VMs", vms.CHECKS),
        ("configuration", configuration.CHECKS),
        ("IOMMU and vfio-pci", iommu.CHECKS),
        ("the kernel and the host's console", consoles.CHECKS),
        ("kernel command line", command_line.CHECKS),
        ("what VMs hold", claims.CHECKS),
    )


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they are told."""
    return tuple(check for _, those in areas() for check in those)


def examine(subject: Subject) -> tuple[Finding, ...]:
    """What all checks find."""
    return tuple(one for area, those in areas() for one in examine_area(subject, area, those))


def examine_area(subject: Subject, area: str, those: tuple[Check, ...]) -> tuple[Finding, ...]:
    """What these checks find. One that cannot look says so, and the others go on."""
    found = (finding for check in those for finding in _found(check, subject))
    return tuple(replace(finding, area=area) for finding in found)


def _found(check: Check, subject: Subject) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check(subject):
            found.append(finding)  # what came before an error counts
    except HostError as error:
        found.append(unknown(_title(check), error))
    except HookError as error:
        found.append(cannot_look(_title(check), error))
    return found


def cannot_look(what: str, error: HookError) -> Finding:
    """The finding for something that could not be looked at."""
    level = FAIL if isinstance(error, StuckError) else WARN
    return Finding(level, what, f"cannot look: {error.text}", error.hint)


def _title(check: Check) -> str:
    words = check.__name__.split("_")
    return " ".join(_AS_WRITTEN.get(word, word) for word in words)
