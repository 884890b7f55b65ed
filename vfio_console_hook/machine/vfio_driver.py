"""The driver that gives a PCI device to QEMU: vfio-pci, or a variant of it; is there one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .host import Host
from .pci import VFIO

# NixOS has no /lib/modules.
_MODULE_TREES = ("lib/modules", "usr/lib/modules", "run/booted-system/kernel-modules/lib/modules")
# These are compiled where they are used, which takes 0.4 ms.
_VFIO_PCI = rb"/vfio[-_]pci\.ko"
_FIELD = r"([0-9A-F]+|\*)"
_IDS = rf"v{_FIELD}d{_FIELD}sv{_FIELD}sd{_FIELD}bc{_FIELD}sc{_FIELD}i{_FIELD}"
_ALIAS = rb"^alias vfio_pci:(\S+) (\S+)$"


def driver_for(host: Host, address: str) -> str:
    """The name of the driver that libvirt would bind to a device, such as "vfio-pci".

    Of the aliases with the prefix vfio_pci: that match the device, the one with the fewest
    wildcards counts, and of several the first (libvirt src/util/virpci.c,
    virPCIDeviceFindBestVFIOVariant). The drivers of these modules have their names
    (KBUILD_MODNAME), but for vfio-pci itself.
    """
    text = host.read(f"sys/bus/pci/devices/{address}/modalias") or ""
    mine = re.fullmatch(_IDS, text.partition("pci:")[2])
    if mine is None:
        return VFIO
    found = [
        (fields.count("*"), module)
        for fields, module in _aliases(host)
        if all(wanted in ("*", own) for wanted, own in zip(fields, mine.groups()))
    ]
    best = min(found, default=(0, "vfio_pci"), key=lambda one: one[0])[1]
    return VFIO if best == "vfio_pci" else best


def is_loaded(host: Host) -> bool:
    """Whether vfio-pci is loaded, or built in."""
    return host.exists(f"sys/bus/pci/drivers/{VFIO}")


def is_installed(host: Host) -> bool:
    """Whether the running kernel's modules have vfio-pci, which modprobe would load."""
    return any(_holds_vfio_pci(host, tree) for tree in trees(host))


def why_missing(host: Host) -> tuple[str, str]:
    """Why vfio-pci can neither be there nor be loaded, and what to do, as clauses."""
    release = host.read("proc/sys/kernel/osrelease") or ""
    if not any(host.exists(tree) for tree in trees(host)):
        text = f"not loaded, and the modules of the running kernel {release} are not installed"
        return text, "reboot if the kernel was updated since boot"
    text = f"not available for the running kernel {release}"
    return text, "install a kernel with CONFIG_VFIO_PCI, or the package with all its modules"


def trees(host: Host) -> tuple[str, ...]:
    """Where the modules of the running kernel may be."""
    release = host.read("proc/sys/kernel/osrelease") or ""
    return tuple(f"{tree}/{release}" for tree in _MODULE_TREES)


def _holds_vfio_pci(host: Host, tree: str) -> bool:
    # depmod writes modules.dep, the kernel's build modules.builtin (man 5 modules.dep).
    lists = (host.read_bytes(f"{tree}/modules.{name}") or b"" for name in ("dep", "builtin"))
    return any(re.search(_VFIO_PCI, content) for content in lists)


def _aliases(host: Host) -> Iterator[tuple[tuple[str, ...], str]]:
    """The ids of each alias of vfio's own, and its module, from the running kernel's list."""
    for tree in trees(host):
        content = host.read_bytes(f"{tree}/modules.alias")
        if content is not None:
            for alias, module in re.findall(_ALIAS, content, re.MULTILINE):
                ids = re.fullmatch(_IDS, alias.decode("ascii", "replace"))
                if ids is not None:
                    yield ids.groups(), module.decode("ascii", "replace").replace("-", "_")
            return
