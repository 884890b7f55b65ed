"""Showing the host's consoles on a framebuffer again."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LostError
from ..machine import console
from ..machine.host import Host
from .action import Action


@dataclass(frozen=True)
class ShowConsoles(Action):
    """Make fbcon draw the consoles on some framebuffer again.

    wait_s: how long a framebuffer may take to appear. fb: the preferred one, for
    consoles that are on none.
    """

    wait_s: float = 5
    fb: str = ""
    kind = "show-consoles"

    def apply(self, host: Host) -> None:
        if not host.wait(lambda: bool(console.framebuffers(host)), self.wait_s):
            raise _no_framebuffer()
        if host.wait(lambda: fbcon_bound(host), 1):
            return
        # Writing 1 to fbcon's `bind` only takes consoles from an (S) driver (vt_bind);
        # mapping one takes them from any driver (fbcon.c, set_con2fb_map), but does
        # nothing where con2fb_map already has that framebuffer. So try both.
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON:
                host.write(vtconsole.bind_path, "1")
        present = console.framebuffers(host)
        if not present:  # its GPU has just been pulled out
            raise _no_framebuffer()
        fb = next((one for one in present if one.name == self.fb), present[0])
        if not fbcon_bound(host) and host.exists(f"dev/{fb.name}"):
            host.map_console(fb.name, 1, fb.index)
        if not fbcon_bound(host):
            # No (S) driver, and con2fb_map[] already has the only possible framebuffer.
            raise LostError(
                f"cannot move the consoles to {fb.name} now: this kernel moves them back only when"
                " a framebuffer appears",
                hint="set `keep_console: auto`, which moves the consoles before the GPU leaves",
            )

    def shell(self) -> str:
        return (
            "for v in /sys/class/vtconsole/*; do"
            " grep -q 'frame buffer' $v/name && echo 1 > $v/bind; done"
        )

    def past(self) -> str:
        return "moved the consoles back to a framebuffer"


def _no_framebuffer() -> LostError:
    return LostError(
        "the host's console will not come back before a reboot: no framebuffer is left",
        hint="load the native driver of a GPU that stays on the host",
    )


def fbcon_bound(host: Host) -> bool:
    return any(one.bound and one.driver == console.FBCON for one in console.vtconsoles(host))
