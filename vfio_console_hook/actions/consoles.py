"""Showing the host's consoles on a framebuffer again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ClaimError, LostError
from ..machine import console, runfiles
from ..machine.console import Framebuffer
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from ..machine.runfiles import RUN
from .action import Action

_UNNOTICED = f"{RUN}/fbcon-bound-by-sysfs"


@dataclass(frozen=True, eq=False, repr=False)
class ShowConsoles(Action):
    """Make fbcon draw the consoles on some framebuffer again.

    wait_s: how long a framebuffer may take to appear. fb: the preferred one, for
    consoles that are on none.
    """

    wait_s: float = 5
    fb: str = ""
    kind = "show-consoles"

    def apply(self, host: Host) -> None:
        if not self.comes(host):
            self.show(host, console.framebuffers(host))

    def comes(self, host: Host) -> bool:
        """Whether fbcon draws by itself, which the kernel is given wait_s for. Raises LostError."""
        if not host.wait(lambda: bool(console.framebuffers(host)), self.wait_s):
            raise _no_framebuffer(host)
        # Where fb devices are missing, a framebuffer may come some time after its card does.
        host.wait(lambda: fbcon_bound(host) or _fbcon_there(host), self.wait_s)
        return host.wait(lambda: fbcon_bound(host), min(self.wait_s, 1))

    def show(self, host: Host, present: Sequence[Framebuffer]) -> None:
        """Make fbcon draw now, on one of these framebuffers. Raises HostError, LostError."""
        if not present:  # its GPU has just been pulled out
            raise _no_framebuffer(host)
        fb = next((one for one in present if one.name == self.fb), present[0])
        # Mapping a console takes all of them from any driver (Linux fbcon.c, set_con2fb_map), but
        # does nothing where con2fb_map already has that framebuffer: then another one is mapped
        # first. Writing 1 to fbcon's `bind` only takes them from an (S) driver (vt.c, vt_bind), and
        # the kernel does not notice it. So it is second.
        nodes = {
            one.name: one.index
            for one in (fb, *present)
            if one.index is not None and host.exists(f"dev/{one.name}")
        }
        for name, index in nodes.items():
            if not fbcon_bound(host):
                host.map_console(name, 1, index)
        if len(nodes) > 1 and fb.name in nodes and fbcon_bound(host):
            for number in CONSOLES:
                host.map_console(fb.name, number, nodes[fb.name])
        note_bind(host, noticed=fbcon_bound(host))
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON and not fbcon_bound(host):
                host.write(vtconsole.bind_path, "1")
        if not fbcon_bound(host):
            raise _unmoved(host, fb)

    def missing(self, host: Host) -> LostError | None:
        if not console.dark(host):
            return None
        present = console.framebuffers(host)
        return _unmoved(host, present[0]) if present else _no_framebuffer(host)

    def shell(self) -> str:
        return (
            "for v in /sys/class/vtconsole/*; do"
            " grep -q 'frame buffer' $v/name && echo 1 > $v/bind; done"
        )

    def past(self) -> str:
        return "moved the consoles back to a framebuffer"


def _no_framebuffer(host: Host) -> LostError:
    hint = "load the native driver of one of its GPUs"
    devices = "sys/bus/pci/devices"
    if any(host.link_name(f"{devices}/{one}/driver") == "nvidia" for one in host.list(devices)):
        # nvidia-drm-os-interface.c
        hint = (
            "nvidia has a framebuffer only with nvidia_drm.modeset=1, the default from 595 on, and"
            " fbdev=1, from 570 on"
        )
    return LostError("the host's consoles are not shown: no framebuffer is left", hint=hint)


def _unmoved(host: Host, fb: Framebuffer) -> LostError:
    if console.has_fb_devices(host):
        # No (S) driver, and con2fb_map[] already has the only possible framebuffer.
        hint = "set `keep_console: auto`, which moves the consoles before the GPU leaves"
    else:
        hint = "a driver that binds its GPU again brings a framebuffer, and the consoles with it"
    return LostError(
        f"cannot move the consoles to {fb.name} now: this kernel moves them back only when a"
        " framebuffer appears",
        hint=hint,
    )


def bind_unnoticed(host: Host) -> bool:
    """Whether fbcon may be bound without the kernel's notice (fbcon_has_console_bind).

    If a framebuffer with consoles goes then, the kernel leaves them on it, and crashes at the next
    text (Linux fbcon.c, fbcon_fb_unbind; seen on 6.12). Once fbcon is unbound it does not.
    """
    return host.exists(_UNNOTICED)


def note_bind(host: Host, *, noticed: bool) -> None:
    """Write down how fbcon is bound, before it is; a full /run must not keep the consoles dark."""
    with suppress(ClaimError):
        if not noticed:
            runfiles.write(host, _UNNOTICED, "")
        elif host.exists(_UNNOTICED):
            runfiles.remove(host, _UNNOTICED)


def _fbcon_there(host: Host) -> bool:
    return any(one.driver == console.FBCON for one in console.vtconsoles(host))


def fbcon_bound(host: Host) -> bool:
    return any(one.bound and one.driver == console.FBCON for one in console.vtconsoles(host))
