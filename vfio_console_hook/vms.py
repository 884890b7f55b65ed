"""The VMs that libvirt knows, by its own word, asked read-only."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM = "qemu:///system"
"""The connection whose VMs run the hook as root."""


@dataclass(frozen=True)
class Vm:
    """A VM of libvirt's.

    xml is what it starts with next time; live is what it runs with now, "" when it
    does not run. xml is that of the run for a VM that exists only while it runs.
    """

    name: str
    uuid: str
    xml: str
    live: str
    autostart: bool
