"""The file that a VM has in place of its GPU's own option ROM."""

from __future__ import annotations

import stat

from .host import Host

SIGNATURE = b"\x55\xaa"
"""What an option ROM begins with (PCI Firmware Specification, "PCI Expansion ROM Header")."""


def why_missing(host: Host, path: str) -> str:
    """Why QEMU cannot load a ROM file, as a clause; "" if it can, as far as root sees.

    Source: QEMU hw/pci/pci.c, pci_add_option_rom.
    """
    status = host.stat(path.lstrip("/"))
    if status is None:
        return "does not exist"
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    return "" if status.st_size else "is empty"
