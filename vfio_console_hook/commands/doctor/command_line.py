"""What older recipes put on the kernel command line, and whether it is still needed.

Most of it keeps the host's console off the GPU from boot on, so that there is none to
come back. Some of it does nothing: the kernel never complains about an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import console, firmware, gpu, kernel
from ...machine.gpu import VGA
from ...machine.host import Host
from .finding import NOT_RECORDED, PASS, WARN, Check, Finding, Subject, unrecorded

_CMDLINE = "proc/cmdline"
_PCI = "sys/bus/pci/devices"
_REMOVE = "take it out of the kernel command line (for GRUB in /etc/default/grub) and reboot"
_TO_HAVE_IT_BACK = f"to have the host's console back: {_REMOVE}"
# The firmware device of each driver that heeds video=NAME:off.
_DEVICES = {"efifb": "efi-framebuffer.0", "simplefb": "simple-framebuffer.0"}
# What people write for such a driver; vesafb does not heed it ("ignore error return of
# fb_get_options" in Linux drivers/video/fbdev/vesafb.c), and DRM drivers do not either.
_NAMES = re.compile(r"(?:efi|vesa|simple|uefi|uvesa)(?:fb|drm)?")


def command_line(subject: Subject) -> Iterator[Finding]:
    """Every option that an older recipe may have put there."""
    words = subject.host.read(_CMDLINE)
    if words is None and unrecorded(subject.host, _CMDLINE):
        yield Finding(WARN, "kernel command line", NOT_RECORDED)
        return
    found = [one for word in (words or "").split() for one in _judge(subject, word)]
    yield from found
    if not found:
        text = "nothing in it about consoles or GPUs"
        yield Finding(PASS, "kernel command line", text)


def _judge(subject: Subject, word: str) -> Iterator[Finding]:
    # The kernel takes "-" and "_" in a name for the same (parameq in kernel/params.c).
    key, _, value = word.partition("=")
    key = key.replace("-", "_")
    if key == "video":
        yield from _video(subject.host, word, value)
    elif _NAMES.fullmatch(re.split("[:=]", word)[0]) and word.endswith("off"):
        yield _no_effect(word, "the kernel reads it only behind `video=`")
    elif key == "initcall_blacklist" and "sysfb_init" in value.split(","):
        yield _sysfb_init(subject, word)
    elif key in ("vfio_pci.ids", "pci_stub.ids"):
        yield from _ids(subject.host, word, key.partition(".")[0].replace("_", "-"), value)
    elif key == "fbcon" and value.startswith("map:"):
        yield _fbcon_map(subject.host, word, value[len("map:") :])
    elif key in _PLAIN:
        level, text = _PLAIN[key]
        yield Finding(level, word, text, _REMOVE if level == WARN else "")


_PLAIN = {
    "nomodeset": (
        WARN,
        "keeps the GPUs' own drivers from loading, so after a VM only a firmware console can come"
        " back; this hook does not need it",
    ),
    "nofb": (WARN, "has no effect: the kernel has no such option"),
    "vfio_pci.disable_vga": (PASS, "does no harm: the VM cannot use legacy VGA of its GPU then"),
    "pcie_acs_override": (
        WARN,
        "makes a patched kernel show devices in IOMMU groups of their own that can reach each"
        " other; others have no such option",
    ),
}


def _no_effect(word: str, why: str) -> Finding:
    advice = f"this hook does not need it: {_REMOVE}"
    return Finding(WARN, word, f"has no effect: {why}", advice)


def _video(host: Host, word: str, value: str) -> Iterator[Finding]:
    """video=NAME:OPTIONS (Linux drivers/video/cmdline.c, __video_get_option_string).

    Everything behind the first ":" is for NAME, and "off" counts at its beginning.
    """
    name, colon, options = value.partition(":")
    if not colon and _NAMES.fullmatch(value.partition("=")[0]) and value.endswith("off"):
        yield _no_effect(word, "a `:` belongs behind the driver's name, `video=efifb:off`")
    if not options.startswith("off"):
        return
    for other in options.split(",")[1:]:
        if other.endswith("off"):
            text = f"{other} in it has no effect: each driver needs a `video=` of its own"
            yield Finding(WARN, word, text, f"this hook does not need it: {_REMOVE}")
    if name in _DEVICES:
        yield _switched_off(host, word, name)
    elif name == "vesafb":
        yield _no_effect(word, "vesafb does not heed it")
    elif _NAMES.fullmatch(name):
        yield _no_effect(word, f"no driver that heeds it is called {name}")


def _switched_off(host: Host, word: str, name: str) -> Finding:
    drawing = [one for one in firmware.devices(host) if _driven(host, one)]
    if drawing:
        why = f"a driver that does not heed it draws on {drawing[0]}"
        return _no_effect(word, why)
    text = f"keeps {name} off, so the host has no firmware console; this hook does not need it"
    if name == "simplefb" and _DEVICES[name] in firmware.devices(host):
        text = "keeps simplefb off, but not BOOTFB, which blocks the GPU's memory all the same"
    return Finding(WARN, word, text, _TO_HAVE_IT_BACK)


def _driven(host: Host, device: str) -> bool:
    return host.link_name(f"sys/bus/platform/devices/{device}/driver") is not None


def _sysfb_init(subject: Subject, word: str) -> Finding:
    host = subject.host
    made = [one for one in firmware.devices(host) if one.startswith(("efi-", "vesa-", "simple-"))]
    if made:
        return _no_effect(word, f"the kernel has made {made[0]} all the same")
    removes = kernel.removes_consoles(host)
    stubborn = [
        given.address
        for given in subject.given()
        if not (removes and gpu.display_class(host, given.address) == VGA)
    ]
    if stubborn:
        text = (
            f"keeps BOOTFB out of the memory of {stubborn[0]}, which this kernel could not free;"
            " the host has no firmware console with it"
        )
        return Finding(PASS, word, text)
    text = "keeps every firmware console off; this hook does not need it on this kernel"
    return Finding(WARN, word, text, _TO_HAVE_IT_BACK)


def _ids(host: Host, word: str, driver: str, value: str) -> Iterator[Finding]:
    wanted = {_id(*one.split(":")[:2]) for one in value.split(",") if ":" in one}
    mine = [one for one in host.list(_PCI) if _id_of(host, one) in wanted]
    if not mine and host.complete:
        yield _no_effect(word, "no device of this host has such an id")
    for address in mine:
        if gpu.display_class(host, address) is not None:
            yield _reserved(host, word, driver, address)


def _id(vendor: str, device: str) -> str:
    return f"{vendor.lower().zfill(4)}:{device.lower().zfill(4)}"


def _id_of(host: Host, address: str) -> str:
    vendor, device = (host.read(f"{_PCI}/{address}/{name}") or "" for name in ("vendor", "device"))
    return _id(vendor[2:], device[2:])


def _reserved(host: Host, word: str, driver: str, address: str) -> Finding:
    bound = host.link_name(f"{_PCI}/{address}/driver")
    if bound != driver and not gpu.is_vfio(host, address):
        who = f"{bound} has it" if bound else "it has no driver"
        text = f"did not take {address}: {who}"
        advice = f"{_REMOVE}; or load {driver} earlier, by a softdep in /etc/modprobe.d"
        return Finding(WARN, word, text, advice)
    text = f"keeps {address} from the host since boot; this hook does not need it"
    if host.read(f"{_PCI}/{address}/boot_vga") == "1":
        return Finding(WARN, word, f"{text}, and it is the boot GPU", _TO_HAVE_IT_BACK)
    return Finding(PASS, word, text)


def _fbcon_map(host: Host, word: str, digits: str) -> Finding:
    """fbcon=map:0123, one digit a console, over and over (Linux fbcon.c, fb_console_setup)."""
    wanted = sorted({f"fb{digit}" for digit in digits if digit.isdigit()})
    missing = [one for one in wanted if one not in {fb.name for fb in console.framebuffers(host)}]
    if missing:
        text = f"there is no {missing[0]}, so the consoles that it sends there show nothing"
        return Finding(WARN, word, text, _REMOVE)
    text = f"sends the consoles to {' and '.join(wanted)}; this hook moves them only if that leaves"
    return Finding(PASS, word, text)


CHECKS: tuple[Check, ...] = (command_line,)
