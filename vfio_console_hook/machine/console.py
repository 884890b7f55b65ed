"""The host's consoles: console drivers (vtconsoles) and framebuffers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HostError
from ..value import Value
from . import pci
from .host import Host

FBCON = "frame buffer device"
VGACON = "VGA+"
DUMMY = "dummy device"
"""The console driver that shows nothing (Linux drivers/video/console/dummycon.c)."""
_FRAMEBUFFER = re.compile(r"fb(\d+)")
# Where systemd has the cgroups of services: with one hierarchy, and with the older ones. The
# instances of a template are in a slice of its name (systemd.slice(5)). Both units are kmscon's
# own, scripts/systemd/kmscon.service and kmsconvt@.service; Debian has the second.
_SERVICES = tuple(
    f"{top}/system.slice"
    for top in ("sys/fs/cgroup", "sys/fs/cgroup/systemd", "sys/fs/cgroup/unified")
)
_KMSCONVT, _KMSCON = "system-kmsconvt.slice", "kmscon.service"


@dataclass(frozen=True, eq=False, repr=False)
class Vtconsole(Value):
    """A registered console driver (Linux drivers/tty/vt/vt.c, struct con_driver).

    static: "(S)", the one registered at boot. Writing 1 to the `bind` of another one takes
    only consoles that the static one has (vt_bind). The number in the name has no meaning.
    """

    name: str
    driver: str
    static: bool
    bound: bool

    @property
    def bind_path(self) -> str:
        return f"sys/class/vtconsole/{self.name}/bind"


@dataclass(frozen=True, eq=False, repr=False)
class Framebuffer(Value):
    """fbN: its number, the name that its driver gave it, and its PCI device.

    Where the kernel has no fb devices: the card, or the firmware device, that it is made
    for, and the driver; index is None.
    """

    name: str
    index: int | None
    title: str
    pci: str | None


def kmscon_cgroups(host: Host) -> tuple[str, ...]:
    """The cgroups of the units of kmscon (kmscon.py) that run. Raises HostError."""
    services = next((one for one in _SERVICES if host.exists(one)), "")
    if not services:
        return ()
    found = [
        f"{services}/{_KMSCONVT}/{name}"
        for name in host.list(f"{services}/{_KMSCONVT}")
        if name.endswith(".service")
    ]
    found += [f"{services}/{_KMSCON}"] if host.exists(f"{services}/{_KMSCON}") else []
    return tuple(found)


def vtconsoles(host: Host) -> tuple[Vtconsole, ...]:
    """The registered console drivers."""
    found = []
    for name in host.list("sys/class/vtconsole"):
        title = host.read(f"sys/class/vtconsole/{name}/name") or ""
        kind, _, driver = title.partition(" ")
        bound = host.read(f"sys/class/vtconsole/{name}/bind") == "1"
        found.append(Vtconsole(name, driver, kind == "(S)", bound))
    return tuple(found)


def has_fb_devices(host: Host) -> bool:
    """Whether the kernel shows framebuffers as /dev/fbN and in /sys/class/graphics.

    With FB_DEVICE=n, as on Fedora and RHEL, it shows neither, and no /proc/fb (Linux
    drivers/video/fbdev/core/Makefile); the framebuffers and fbcon are there all the same.
    """
    return host.exists("proc/fb") or bool(_numbers(host))


def _numbers(host: Host) -> list[int]:
    names = map(_FRAMEBUFFER.fullmatch, host.list("sys/class/graphics"))
    return sorted(int(match[1]) for match in names if match)


def has_fbcon(host: Host) -> bool:
    """Whether the kernel can draw consoles on framebuffers (fbcon.c, fb_console_init)."""
    return host.exists("sys/class/graphics/fbcon") or any(
        one.driver == FBCON for one in vtconsoles(host)
    )


def waits_for_text(host: Host) -> bool:
    """Whether fbcon takes the consoles over only when the first text is drawn.

    Until then it is no console driver, and the firmware's picture stays on the monitor
    (Linux fbcon.c, FRAMEBUFFER_CONSOLE_DEFERRED_TAKEOVER, fbcon_output_notifier).
    """
    drivers = vtconsoles(host)
    return (
        any(one.bound and one.driver == DUMMY for one in drivers)
        and all(one.driver != FBCON for one in drivers)
        and host.exists("sys/class/graphics/fbcon")
        and bool(framebuffers(host))
    )


def dark(host: Host) -> bool:
    """Whether the host has consoles, and none of them is shown, nor will be with the first text."""
    drivers = vtconsoles(host)
    shown = any(one.bound and one.driver != DUMMY for one in drivers)
    return bool(drivers) and not shown and not waits_for_text(host)


def framebuffers(host: Host) -> tuple[Framebuffer, ...]:
    """The registered framebuffers, by number."""
    numbers = _numbers(host)
    if not numbers and not host.exists("proc/fb"):
        if not has_fbcon(host):
            return ()  # nothing draws consoles on them
        from . import drm  # only such kernels need it

        return drm.framebuffers(host)
    return tuple(
        Framebuffer(
            name=f"fb{number}",
            index=number,
            title=host.read(f"sys/class/graphics/fb{number}/name") or "",
            pci=pci_ancestor(host, f"sys/class/graphics/fb{number}"),
        )
        for number in numbers
    )


def pci_ancestor(host: Host, path: str) -> str | None:
    """The address of the nearest PCI device above a device in sysfs, or None.

    A framebuffer of virtio-gpu is below virtioN below the PCI device, a firmware one below
    its platform device, so the parent alone is not enough.
    """
    # The links of a class and of a bus hold the whole path (Linux drivers/base/core.c).
    return pci.nearest(host.readlink(path) or host.real(path) or "")


def current_display(host: Host) -> str:
    """What draws the host's consoles now, as a phrase such as "VGA+"."""
    if not kmscon_cgroups(host):
        return _kernel_display(host)
    from . import kmscon  # few hosts have it

    return f"{kmscon.phrase(kmscon.kmscons(host))}, above {_kernel_display(host)}"


def _kernel_display(host: Host) -> str:
    """What draws them in the kernel, as such a phrase."""
    bound = [vtconsole.driver for vtconsole in vtconsoles(host) if vtconsole.bound]
    if FBCON in bound:
        fbs = _with_consoles(host)
        return f"framebuffer console on {fbs or 'no framebuffer'}"
    if waits_for_text(host):
        fbs = ", ".join(f"{fb.name} ({fb.title})" for fb in framebuffers(host))
        return f"not drawn yet; the first text brings the framebuffer console up on {fbs}"
    if not bound and not host.exists("sys/class/tty/tty0"):
        return "none, because this kernel has no virtual terminals"
    return " and ".join(bound) or "no console driver"


def _with_consoles(host: Host) -> str:
    """The framebuffers that fbcon has mapped a console to; "or" between those that may have."""
    fbs = framebuffers(host)
    indices = None
    if len(fbs) > 1 and has_fb_devices(host):
        try:
            indices = host.console_map(fbs[0].name)
        except HostError:
            pass  # only root can open them
    having = [f"{fb.name} ({fb.title})" for fb in fbs if indices is None or fb.index in indices]
    return (" or " if indices is None else ", ").join(having)
