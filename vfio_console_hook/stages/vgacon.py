"""The text console on legacy VGA memory (vgacon), which belongs to the boot VGA device.

It reserves no BAR, so it does not block a VM. vfio-pci of Linux 6.0 and later removes
it from the boot VGA device of class 0300, and the person loses the text console until
a reboot. Older kernels leave it, and it would keep drawing on a card that is the VM's:
there the text is stopped while the VM runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..actions.consoles import ShowConsoles
from ..claims.step import Step
from ..errors import HostError
from ..machine import console
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.removal import Removed
from . import fbcon
from .handover import Handover

NAME = "vgacon"
_LOSS = (
    "this host's text console will not come back before a reboot: vfio-pci of this kernel removes"
    " vgacon for good"
)
_MAY_LOSE = (
    "this host's text console may not come back before a reboot: nothing shows whether vfio-pci of"
    " this kernel removes vgacon"
)


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """What keeps the text console off the card, as this kernel needs it. Raises HostError."""
    vtconsoles = handover.vtconsoles
    vgacon = next((c for c in vtconsoles if c.driver == console.VGACON), None)
    if vgacon is None or not gpu.boot_vga or gpu.vfio:
        return
    removed = handover.removal.of_text(host, gpu)
    if removed is Removed.NO:
        if vgacon.bound:
            yield from _stop_text(host, gpu)
    elif vgacon.bound:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci removes the text console itself",
            do=None,
            undo=None,
            loses=_LOSS if removed is Removed.YES else _MAY_LOSE,
        )
    elif handover.fbcon_draws and _can_return(host, handover):
        # The event start moves the consoles back to a framebuffer that stays. Without its
        # node nothing could: there fbcon stays bound, as the only driver, and preflight
        # does not let that framebuffer go.
        from ..actions.console_moves import LeaveFramebuffers  # takes 1.2 ms to load

        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci removes vgacon, and registers the dummy console only if vgacon is bound"
            " at that time; without the dummy console the kernel would crash when the last"
            " framebuffer goes",
            do=LeaveFramebuffers(),
            undo=ShowConsoles(1),
        )


def _can_return(host: Host, handover: Handover) -> bool:
    if not handover.staying_framebuffers(host):
        return True
    return bool(fbcon.possible_targets(host, handover))


def _stop_text(host: Host, gpu: Gpu) -> Iterator[Step]:
    path = "sys/class/tty/tty0/active"
    tty = host.read(path) or ""
    if tty and not re.fullmatch(r"tty[0-9]{1,2}", tty):
        raise HostError.unclear(f"/{path}", tty)
    if tty and host.text_mode(tty):
        from ..actions.text_mode import QuietText  # takes 0.6 ms to load

        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="the text console would keep drawing on it",
            do=QuietText(tty, True),
            undo=QuietText(tty, False),
        )
