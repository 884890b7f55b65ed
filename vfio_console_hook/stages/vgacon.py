"""The text console on legacy VGA memory (vgacon), which belongs to the boot VGA device.

It claims no BAR, so it does not block a VM. vfio-pci of Linux 6.0 and later
removes it from the boot VGA of class 0300 for good; older kernels leave it, and
then it would go on drawing on a card that is the VM's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..actions.consoles import LeaveFramebuffers, QuietText, ShowConsoles
from ..claims.step import Step
from ..errors import HostError
from ..machine import console
from ..machine.gpu import VGA, Gpu
from ..machine.host import Host
from .handover import Handover

NAME = "vgacon"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The text console off the card, in the way that this kernel needs."""
    vtconsoles = console.vtconsoles(host)
    vgacon = next((c for c in vtconsoles if c.driver == console.VGACON), None)
    if vgacon is None or gpu.pci_class != VGA or not gpu.boot_vga or gpu.vfio:
        return
    if not handover.kernel_removes_from(gpu):
        if vgacon.bound:
            yield from _quiet(host, gpu)
    elif vgacon.bound:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci removes the text console itself",
            do=None,
            undo=None,
            loses="this host's text console will not come back before a reboot: vfio-pci of this"
            " kernel removes vgacon for good",
        )
    elif any(c.bound and c.driver == console.FBCON for c in vtconsoles):
        # Start brings the consoles back to the framebuffer that stays.
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci removes vgacon, and registers the dummy console in its place only if"
            " vgacon has the consoles then: without it, losing the last framebuffer would crash"
            " the kernel",
            do=LeaveFramebuffers(),
            undo=ShowConsoles(1),
        )


def _quiet(host: Host, gpu: Gpu) -> Iterator[Step]:
    path = "sys/class/tty/tty0/active"
    tty = host.read(path) or ""
    if tty and not re.fullmatch(r"tty[0-9]{1,2}", tty):
        raise HostError.unclear(f"/{path}", tty)
    if tty and host.text_mode(tty):
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="the text console would go on writing to it",
            do=QuietText(tty, True),
            undo=QuietText(tty, False),
        )
