"""The text console on legacy VGA memory (vgacon), which belongs to the boot VGA device.

It claims no BAR, so it does not block a VM. vfio-pci of Linux 6.0 and later
removes it from the boot VGA of class 0300 for good; older kernels leave it, and
then it would go on drawing on a card that is the VM's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import console
from ..actions import QuietText
from ..gpu import VGA, Gpu
from ..host import Host
from ..step import Step
from . import Leaving

NAME = "vgacon"


def plan(host: Host, gpu: Gpu, leaving: Leaving) -> Iterator[Step]:
    """The text console quiet while the VM has the card, where the kernel does not do that."""
    vgacon = [c for c in console.vtconsoles(host) if c.driver == console.VGACON and c.bound]
    if not vgacon or gpu.pci_class != VGA or not gpu.boot_vga:
        return
    if leaving.kernel_removes_from(gpu):
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci removes the text console itself",
            do=None,
            undo=None,
            loses="this host's text console will not come back before a reboot: vfio-pci of this"
            " kernel removes vgacon for good",
        )
        return
    tty = host.read("sys/class/tty/tty0/active")
    if tty and host.text_mode(tty):
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="the text console would go on writing to it",
            do=QuietText(tty, True),
            undo=QuietText(tty, False),
        )
