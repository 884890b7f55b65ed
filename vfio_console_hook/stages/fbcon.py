"""The framebuffer console: moves the host's consoles to a framebuffer that stays.

fbcon (Linux drivers/video/fbdev/core/fbcon.c) draws all consoles of the host on
framebuffers. When the last one goes, the consoles fall to the dummy console, and
the person sees nothing until release. When another one stays, they are moved
before anything is unbound: afterwards the kernel drops them all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.consoles import MapConsoles, ShowConsoles
from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console
from ..machine.console import Framebuffer
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from .handover import Handover

NAME = "fbcon"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The consoles of this GPU moved, or only their way back."""
    vtconsoles = console.vtconsoles(host)
    if not gpu.framebuffers or not any(c.bound and c.driver == console.FBCON for c in vtconsoles):
        return
    staying = staying_framebuffers(host, handover)
    mapped = _map(host, staying, handover)
    own = {fb.index for fb in console.framebuffers(host) if fb.name in gpu.framebuffers}
    if mapped is not None and not own.intersection(mapped):
        return
    # A native driver's framebuffer may take its time after libvirt's probe.
    wait_s = 10 if gpu.native else 1
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why="the host's consoles are on this GPU; release sees to it that they come back",
        do=None,
        undo=ShowConsoles(wait_s),
    )
    target = _target(host, staying, handover)
    if target and mapped is not None:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{target.name} ({target.title}) stays on the host",
            do=MapConsoles(target.name, (target.index,) * len(CONSOLES)),
            undo=MapConsoles(target.name, mapped, wait_s),
        )


def staying_framebuffers(host: Host, handover: Handover) -> list[Framebuffer]:
    """Those that are left to the host, and that consoles can be moved to."""
    gone = {name for gpu in handover.gpus for name in gpu.framebuffers}
    return [
        fb
        for fb in handover.framebuffers(host)
        if fb.name not in gone and host.exists(f"dev/{fb.name}")
    ]


def _target(host: Host, staying: list[Framebuffer], handover: Handover) -> Framebuffer | None:
    """Where the consoles are to go. Raises RefusedError when that place has no framebuffer."""
    place = handover.config.keep_console
    if place == "never":
        return None
    if place == "auto":
        return staying[0] if staying else None
    if place in handover.addresses:
        raise RefusedError(
            f"`keep_console` names {place}, which goes to the VM itself",
            hint="name a GPU that stays, or set `keep_console: auto`",
        )
    # Before Linux 6.9 a firmware framebuffer does not tell whose it is by its parent.
    own = gpus_among(host, (place,)) if host.exists(f"sys/bus/pci/devices/{place}") else ()
    names = {name for one in own for name in one.framebuffers}
    found = [fb for fb in staying if fb.name in names]
    if not found:
        raise RefusedError(
            f"`keep_console` names {place}, which has no framebuffer for the consoles",
            hint="load the driver of that GPU, or set `keep_console: auto`",
        )
    return found[0]


def _map(
    host: Host, staying: list[Framebuffer], handover: Handover
) -> tuple[int | None, ...] | None:
    """Which framebuffer each console is on; None when it is not asked, or cannot be."""
    if staying:
        return host.console_map(staying[0].name)
    names = [name for gpu in handover.gpus for name in gpu.framebuffers]
    # A single one has all of them: it need not be opened to know that.
    return host.console_map(names[0]) if len(names) > 1 else None
