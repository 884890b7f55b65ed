"""The check of the kernel's release against bugs that break what this hook is for.

Only bugs that were reported with the release are here, each with the report or the
commit; they are not predicted from a range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...machine import kernel
from .finding import Finding, check, need_recorded, passed, warning
from .system import System

_RELEASE = "proc/sys/kernel/osrelease"


@dataclass(frozen=True)
class _Bug:
    """A bug: in which releases, what happens, where it is described, and what to do.

    vendor is a pattern of the full release, for a bug of one distribution.
    """

    releases: tuple[tuple[int, int, int], ...]
    what: str
    source: str
    advice: str
    vendor: str = ".*"


_BUGS = (
    _Bug(
        ((7, 2, 2),),
        "unbinding vfio-pci crashes the kernel, so libvirt cannot give a GPU back to the host",
        "https://github.com/CachyOS/linux-cachyos/issues/1023",
        "boot another kernel before you start a VM with a GPU",
        vendor=r".*-cachyos.*",
    ),
    # "PCI: Avoid reset when disabled via sysfs" (479380efe162) and its backports, until the
    # revert (bc0b828ef6e5, in v6.15-rc3, 6.14.4 and 6.12.25).
    _Bug(
        ((6, 14, 2), (6, 14, 3), (6, 12, 23), (6, 12, 24)),
        "many GPUs cannot be reset, so a VM hangs when it starts with the GPU for a second time",
        "https://github.com/zen-kernel/zen-kernel/issues/380",
        "upgrade the kernel: 6.12.25 and 6.14.4 are right again",
    ),
)


@check("known bugs of the kernel")
def known_bugs(system: System) -> Iterator[Finding]:
    """Whether the running kernel is one that is known to break VMs with a GPU."""
    host = system.host
    full = host.read(_RELEASE)
    if full is None:
        need_recorded(host, _RELEASE)
    running = kernel.release(host)
    found = [
        one for one in _BUGS if running in one.releases and re.fullmatch(one.vendor, full or "")
    ]
    for one in found:
        yield warning(f"{full}: {one.what} ({one.source})", one.advice)
    if not found:
        yield passed(f"none of Linux {full} concerns VMs with a GPU, as far as reported")
