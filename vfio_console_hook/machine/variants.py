"""Which driver gives a PCI device to QEMU: vfio-pci, or a variant of it for this device."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .host import Host
from .pci import VFIO

# NixOS has no /lib/modules.
MODULE_TREES = ("lib/modules", "usr/lib/modules", "run/booted-system/kernel-modules/lib/modules")
_FIELD = r"([0-9A-F]+|\*)"
_IDS = re.compile(rf"v{_FIELD}d{_FIELD}sv{_FIELD}sd{_FIELD}bc{_FIELD}sc{_FIELD}i{_FIELD}")
_ALIAS = re.compile(rb"^alias vfio_pci:(\S+) (\S+)$", re.MULTILINE)


def driver_for(host: Host, address: str) -> str:
    """The name of the driver that libvirt would bind to a device, such as "vfio-pci".

    Of the aliases with the prefix vfio_pci: that match the device, the one with the fewest
    wildcards counts, and of several the first (libvirt src/util/virpci.c,
    virPCIDeviceFindBestVFIOVariant). The drivers of these modules have their names
    (KBUILD_MODNAME), but for vfio-pci itself.
    """
    text = host.read(f"sys/bus/pci/devices/{address}/modalias") or ""
    mine = _IDS.fullmatch(text.partition("pci:")[2])
    if mine is None:
        return VFIO
    found = [
        (fields.count("*"), module)
        for fields, module in _aliases(host)
        if all(wanted in ("*", own) for wanted, own in zip(fields, mine.groups()))
    ]
    best = min(found, default=(0, "vfio_pci"), key=lambda one: one[0])[1]
    return VFIO if best == "vfio_pci" else best


def _aliases(host: Host) -> Iterator[tuple[tuple[str, ...], str]]:
    """The ids of each alias of vfio's own, and its module, from the running kernel's list."""
    release = host.read("proc/sys/kernel/osrelease") or ""
    for tree in MODULE_TREES:
        content = host.read_bytes(f"{tree}/{release}/modules.alias")
        if content is not None:
            for alias, module in _ALIAS.findall(content):
                ids = _IDS.fullmatch(alias.decode("ascii", "replace"))
                if ids is not None:
                    yield ids.groups(), module.decode("ascii", "replace").replace("-", "_")
            return
