"""Kernel modules: which ones are for a device, and whether they are blacklisted."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import HostError
from . import kernel
from .host import Host

_MODPROBE = "/sbin/modprobe"
NVIDIA_DRM = "nvidia_drm"
"""It shows a console only with modeset=1, the default from 595 on, and fbdev=1, from 570 on."""


@dataclass(frozen=True)
class Candidates:
    """The modules that modprobe finds for a device, and those of them that are blacklisted.

    silent: this modprobe tells of none, as busybox's does (modutils/modprobe.c, its options).
    """

    found: tuple[str, ...] = ()
    blacklisted: tuple[str, ...] = ()
    silent: bool = False

    @property
    def allowed(self) -> tuple[str, ...]:
        return tuple(module for module in self.found if module not in self.blacklisted)

    @property
    def console(self) -> str:
        """The one that shows a console, if possible one that is not blacklisted; "" for none.

        For nvidia that is nvidia_drm, which loads it. Both have the same aliases
        (open-gpu-kernel-modules, nv-pci-table.c), but Debian has one of its own for nvidia.
        """
        first = next(iter((*self.allowed, *self.found)), "")
        return NVIDIA_DRM if first == "nvidia" else first

    @property
    def why_none(self) -> str:
        """Why none is allowed: a clause for people."""
        if self.silent:
            return "busybox's modprobe does not tell which driver is for it, kmod's does"
        return f"{self.found[0]} is blacklisted" if self.found else "no driver for it is installed"


def modules_for(host: Host, address: str) -> Candidates:
    """The modules for a PCI device. Raises HostError."""
    return candidates(host, host.read(f"sys/bus/pci/devices/{address}/modalias") or "")


def candidates(host: Host, name: str) -> Candidates:
    """The modules for a modalias, or of this name. Raises HostError."""
    try:
        modules = tuple(host.run(_MODPROBE, "--resolve-alias", name).split())
    except HostError:
        # modprobe fails for a device without a module.
        return Candidates(silent=host.link_name(_MODPROBE.lstrip("/")) == "busybox")
    never = _blacklisted(host)
    return Candidates(modules, tuple(module for module in modules if module in never))


def is_installed(host: Host, module: str) -> bool:
    """Whether modprobe finds a module by its name; True where it does not say."""
    try:
        host.run(_MODPROBE, "--resolve-alias", module)
    except HostError as error:
        return f"{module} not found" not in error.text  # kmod, tools/modprobe.c
    return True


def _blacklisted(host: Host) -> set[str]:
    """The modules that modprobe -b or the kernel does not load. Raises HostError."""
    # Linux kernel/module/main.c, blacklisted().
    never = {one.replace("-", "_") for one in kernel.parameter(host, "module_blacklist") or ()}
    # --resolve-alias prints blacklisted modules too, even with -b.
    for line in host.run(_MODPROBE, "--showconfig").splitlines():
        words = line.split()
        refused = words[:1] == ["install"] and os.path.basename(words[-1]) in ("true", "false")
        if words[:1] == ["blacklist"] or (refused and len(words) == 3):
            never.add(words[1])
    return never


def why_none_loads(host: Host) -> str:
    """Why this kernel loads no DRM driver any more, as a clause; "" if it does."""
    if kernel.parameter(host, "nomodeset") is not None:
        # drm_firmware_drivers_only() (Linux include/drm/drm_module.h)
        return "nomodeset on the kernel command line keeps DRM drivers from loading"
    if host.read("proc/sys/kernel/modules_disabled") == "1":
        return "this kernel loads no more modules (kernel.modules_disabled)"
    return ""


def loaded(host: Host, module: str) -> bool:
    """Whether a module is loaded; one that is built into the kernel has no initstate."""
    return host.exists(f"sys/module/{module}/initstate")


def unload_order(host: Host, module: str) -> tuple[str, ...]:
    """A module and all modules that use it, each before what it uses; none if it is not loaded.

    Source: /sys/module/X/holders has a link for each module that uses X (Linux
    kernel/module/sysfs.c, add_usage_links).
    """
    if not loaded(host, module):
        return ()
    above = (unload_order(host, one) for one in host.list(f"sys/module/{module}/holders"))
    return (*dict.fromkeys(name for names in above for name in names), module)


def references(host: Host, module: str) -> int:
    """What keeps a module from being unloaded: open files, and modules that use it."""
    text = host.read(f"sys/module/{module}/refcnt") or ""
    return int(text) if text.isascii() and text.isdigit() else 0


def usage(host: Host, module: str) -> str:
    """The use count of a module and the modules that use it: a clause for people."""
    users = host.list(f"sys/module/{module}/holders")
    by = f", {' and '.join(users)} {'uses' if len(users) == 1 else 'use'} it" if users else ""
    return f"its use count is {references(host, module)}{by}"
