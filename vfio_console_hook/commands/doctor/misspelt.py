"""Options of the kernel command line that are written almost like one that matters here.

The kernel never complains: it hands what it does not know to init (init/main.c,
unknown_bootoption), or to a module that there is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# With "_" for "-". What is not about the console, the GPU or the IOMMU is not looked at.
_NAMES = (
    "amd_iommu", "fbcon", "initcall_blacklist", "intel_iommu", "iommu", "iommu.passthrough",
    "kvm.ignore_msrs", "modprobe.blacklist", "module_blacklist", "nomodeset",
    "nvidia_drm.fbdev", "nvidia_drm.modeset", "pci_stub.ids", "pcie_acs_override",
    "rd.driver.blacklist", "rd.driver.pre", "vfio_iommu_type1.allow_unsafe_interrupts",
    "vfio_pci.disable_idle_d3", "vfio_pci.disable_vga", "vfio_pci.ids", "video",
)  # fmt: skip
# Options of the kernel that look like one of these.
_OTHERS = ("iomem", "rd.driver.post")
# What some of them take; those that are missing take names or numbers.
_VALUES = {
    "intel_iommu": (
        "on", "off", "igfx_off", "forcedac", "strict", "sp_off", "sm_on", "sm_off",
        "tboot_noforce",
    ),
    "amd_iommu": (
        "on", "off", "fullflush", "force_isolation", "force_enable", "pgtbl_v1", "pgtbl_v2",
        "irtcachedis", "nohugepages", "v2_pgsizes_only",
    ),
    "initcall_blacklist": ("sysfb_init", "simpledrm_platform_driver_init"),
    "nvidia_drm.fbdev": ("0", "1", "Y", "N", "y", "n"),
    "nvidia_drm.modeset": ("0", "1", "Y", "N", "y", "n"),
}  # fmt: skip
# "of" is as near to "off" as "vfio.ids" is to "vfio_pci.ids".
_NEAR = 0.8


def almost(word: str, known: Iterable[str]) -> str:
    """The known word that this one is almost; "" if it is one of them, or like none."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=_NEAR)
    return near[0] if near and word not in words else ""


def name_meant(name: str) -> str:
    """The option that was probably meant by a name which is none; "" for any other."""
    return "" if name in _OTHERS else almost(name, _NAMES)


def value_meant(name: str, value: str) -> str:
    """The value that was probably meant by one that the option does not take, or ""."""
    known = _VALUES.get(name, ())
    return next((meant for one in value.split(",") if (meant := almost(one, known))), "")
