"""What older recipes put on the kernel command line, and whether it is still needed.

Most of it keeps the host's console off the GPU from boot on, so that there is none to
come back. Some of it does nothing: the kernel never complains about an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import console, firmware, kernel, pci
from ...machine.host import Host
from ...machine.pci import VGA
from . import misspelt
from .finding import PASS, WARN, Finding, check, need_recorded, passed, warning
from .system import System, driver_of

_CMDLINE = "proc/cmdline"
_PCI = "sys/bus/pci/devices"
_REMOVE = "remove it from the kernel command line (for GRUB in /etc/default/grub) and reboot"
_NOT_NEEDED = f"this hook does not need it; {_REMOVE}"
_FOR_THE_CONSOLE = f"to get the host's console back, {_REMOVE}"
# The firmware device of each driver that obeys video=NAME:off.
_DEVICES = {"efifb": "efi-framebuffer.0", "simplefb": "simple-framebuffer.0"}
# What people write for such a driver; vesafb ignores it ("ignore error return of
# fb_get_options" in Linux drivers/video/fbdev/vesafb.c), and so do DRM drivers.
_ID = re.compile(r"(?:0x)?[0-9a-fA-F]+:(?:0x)?[0-9a-fA-F]+")
_NAMES = re.compile(r"(?:efi|vesa|simple|uefi|uvesa)(?:fb|drm)?")


@check("kernel command line")
def command_line(system: System) -> Iterator[Finding]:
    """Every option that an older recipe may have put there."""
    line = system.host.read(_CMDLINE)
    if line is None:
        need_recorded(system.host, _CMDLINE)
    options = kernel.options(line or "")
    found = [one for option in options for one in _findings(system, *option)]
    yield from found
    if not found:
        yield passed("no option on it concerns consoles or GPUs")


def _findings(system: System, word: str, key: str, value: str) -> Iterator[Finding]:
    """What an option does here; nothing for one that concerns neither consoles nor GPUs."""
    if meant := misspelt.value_meant(key, value):
        yield _misspelt(word, f"it takes no such value, did you mean {meant}?")
    elif key == "video":
        yield from _video(system.host, word, value)
    elif _NAMES.fullmatch(re.split("[:=]", key)[0]) and f"{key}{value}".endswith("off"):
        yield _no_effect(word, "the kernel reads it only after `video=`")
    elif key == "initcall_blacklist" and "sysfb_init" in value.split(","):
        yield _sysfb_init(system, word)
    elif key in ("vfio_pci.ids", "pci_stub.ids"):
        yield from _ids(system.host, word, key.partition(".")[0].replace("_", "-"), value)
    elif key == "fbcon" and value.startswith("map:"):
        yield _fbcon_map(system.host, word, value[len("map:") :])
    elif key in _SIMPLE:
        level, text = _SIMPLE[key]
        yield Finding(level, word, text, _REMOVE if level == WARN else "")
    elif meant := misspelt.name_meant(key):
        yield _misspelt(word, f"there is no such option, did you mean {meant}?")


_SIMPLE = {
    "nomodeset": (
        WARN,
        "keeps the GPUs' own drivers from loading, so only a firmware console can come back after"
        " a VM; this hook does not need it",
    ),
    "nofb": (WARN, "has no effect: the kernel has no such option"),
    "vfio_pci.disable_vga": (PASS, "is harmless: the VM cannot use legacy VGA of its GPU"),
    "pcie_acs_override": (
        WARN,
        "makes a patched kernel put devices that can reach each other into separate IOMMU groups;"
        " other kernels have no such option",
    ),
}


def _misspelt(word: str, why: str) -> Finding:
    return warning(f"has no effect: {why}", f"correct it, or {_REMOVE}", of=word)


def _no_effect(word: str, why: str) -> Finding:
    return warning(f"has no effect: {why}", _NOT_NEEDED, of=word)


def _video(host: Host, word: str, value: str) -> Iterator[Finding]:
    """video=NAME:OPTIONS (Linux drivers/video/cmdline.c, __video_get_option_string).

    Everything after the first ":" is for NAME, and "off" counts at its beginning.
    """
    name, colon, options = value.partition(":")
    if not colon and _NAMES.fullmatch(value.partition("=")[0]) and value.endswith("off"):
        yield _no_effect(word, "a `:` belongs after the driver's name, as in `video=efifb:off`")
    if not options.startswith("off"):
        if _NAMES.fullmatch(name) and misspelt.almost(options, ("off",)):
            yield _misspelt(word, f"{name} knows no {options}, did you mean off?")
        return
    for other in options.split(",")[1:]:
        if other.endswith("off"):
            text = f"its {other} has no effect: each driver needs a separate `video=`"
            yield warning(text, _NOT_NEEDED, of=word)
    if name in _DEVICES:
        yield _switched_off(host, word, name)
    elif name == "vesafb":
        yield _no_effect(word, "vesafb ignores it")
    elif _NAMES.fullmatch(name):
        yield _no_effect(word, f"no driver that obeys it is called {name}")
    elif meant := misspelt.almost(name, _DEVICES):
        yield _misspelt(word, f"there is no driver {name}, did you mean {meant}?")


def _switched_off(host: Host, word: str, name: str) -> Finding:
    drawing = [
        one
        for one in firmware.devices(host)
        if host.link_name(f"sys/bus/platform/devices/{one}/driver")
    ]
    if drawing:
        return _no_effect(word, f"{drawing[0]} has a driver that ignores it")
    text = f"keeps {name} off, so the host has no firmware console; this hook does not need it"
    if name == "simplefb" and _DEVICES[name] in firmware.devices(host):
        text = "keeps simplefb off, but not BOOTFB, which still blocks the GPU's memory"
    return warning(text, _FOR_THE_CONSOLE, of=word)


def _sysfb_init(system: System, word: str) -> Finding:
    host = system.host
    made = [one for one in firmware.devices(host) if one.startswith(("efi-", "vesa-", "simple-"))]
    if made:
        return _no_effect(word, f"the kernel created {made[0]} nevertheless")
    removes = kernel.removes_consoles(host)
    for address in system.gpus():
        if not (removes and pci.display_class(host, address) == VGA):
            text = (
                f"keeps BOOTFB out of the memory of {address}, which vfio-pci would not free;"
                " the host has no firmware console with it"
            )
            return passed(text, of=word)
    text = "keeps every firmware console off; this hook does not need it on this kernel"
    return warning(text, _FOR_THE_CONSOLE, of=word)


def _ids(host: Host, word: str, driver: str, value: str) -> Iterator[Finding]:
    """Source: Linux drivers/vfio/pci/vfio_pci.c, vfio_pci_fill_ids; pci-stub.c is the same."""
    ids = [one for one in value.split(",") if one]
    bad = [one for one in ids if not _ID.match(one)]
    if bad:
        text = f"{bad[0]} has no effect: it is no VENDOR:DEVICE, both in hex"
        yield warning(text, f"correct it, or {_REMOVE}", of=word)
    wanted = {_id(*one.split(":")[:2]) for one in ids if one not in bad}
    matched = [one for one in host.list(_PCI) if _id_of(host, one) in wanted]
    if wanted and not matched and host.complete:
        yield _no_effect(word, "no device of this host has such an ID")
    for address in matched:
        if pci.display_class(host, address) is not None:
            yield _reserved(host, word, driver, address)


def _id(vendor: str, device: str) -> str:
    plain = (one.lower().removeprefix("0x").zfill(4) for one in (vendor, device))
    return ":".join(plain)


def _id_of(host: Host, address: str) -> str:
    vendor, device = (host.read(f"{_PCI}/{address}/{name}") or "" for name in ("vendor", "device"))
    return _id(vendor[2:], device[2:])


def _reserved(host: Host, word: str, driver: str, address: str) -> Finding:
    bound = driver_of(host, address)
    if bound != driver and not pci.is_vfio(host, address):
        state = f"is bound to {bound}" if bound else "has no driver"
        text = f"{driver} did not bind {address}, which {state}"
        advice = f"{_REMOVE}; or load {driver} earlier, with a softdep in /etc/modprobe.d"
        return warning(text, advice, of=word)
    text = f"has kept {address} from the host since boot; this hook does not need it"
    if pci.is_boot_vga(host, address):
        return warning(f"{text}, and it is the boot GPU", _FOR_THE_CONSOLE, of=word)
    return passed(text, of=word)


def _fbcon_map(host: Host, word: str, digits: str) -> Finding:
    """fbcon=map:0123, one digit a console, repeated (Linux fbcon.c, fb_console_setup)."""
    wanted = sorted({f"fb{digit}" for digit in digits if digit.isdigit()})
    if not console.has_fb_devices(host):
        text = f"maps the consoles to {' and '.join(wanted)}, which this kernel does not show"
        return passed(text, of=word)
    missing = [one for one in wanted if one not in {fb.name for fb in console.framebuffers(host)}]
    if missing:
        text = f"there is no {missing[0]}, so the consoles mapped to it show nothing"
        return warning(text, _REMOVE, of=word)
    return passed(
        f"maps the consoles to {' and '.join(wanted)}; this hook moves them only off a framebuffer"
        " that leaves",
        of=word,
    )
