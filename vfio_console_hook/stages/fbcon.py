"""The framebuffer console: moves the host's consoles to a framebuffer that stays.

fbcon (Linux drivers/video/fbdev/core/fbcon.c) draws all consoles of the host on
framebuffers, in every release. When the last one goes, the consoles fall to the dummy
console, and the person sees nothing until release. When another one stays, they are
moved before anything is unbound: otherwise the kernel may give all of them to the dummy
console although a framebuffer is left (fbcon_fb_unbind). Kernels without fb devices
cannot move them: fbcon_nodeless.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.action import Action
from ..actions.consoles import ShowConsoles, bind_unnoticed
from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console
from ..machine.console import Framebuffer
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from .handover import Handover

NAME = "fbcon"
# Not that release moves them back: the framebuffer may be gone, as another step says.
COME_BACK = "the host's consoles are on this GPU; they come back with its framebuffer"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The move of the consoles off this GPU, and what moves them back; only that if none stays."""
    if not gpu.framebuffers or not handover.fbcon_draws:
        return
    targets = possible_targets(host, handover)
    nodeless = bool(handover.staying_framebuffers(host)) or not console.has_fb_devices(host)
    if not targets and nodeless:
        from . import fbcon_nodeless  # takes 1.5 ms to load, and most kernels have fb devices

        yield from fbcon_nodeless.plan(host, gpu, handover)
        return
    mapped = _current_map(host, targets, handover)
    own = {fb.index for fb in handover.framebuffers if fb.name in gpu.framebuffers}
    if mapped is not None and not own.intersection(mapped):
        return
    wait_s = back_within_s(gpu)
    target = _target(host, targets, handover)
    leave: Action | None = None
    if not target and bind_unnoticed(host) and len(handover.vtconsoles) > 1:
        from ..actions.console_moves import LeaveFramebuffers  # 1.2 ms to load

        leave = LeaveFramebuffers(until_release=True)
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=COME_BACK,
        do=leave,
        undo=ShowConsoles(wait_s),
    )
    if target and mapped is not None:
        from ..actions.console_moves import MapConsoles, ReturnConsoles  # 1.2 ms to load

        moved = tuple(number for number, at in zip(CONSOLES, mapped) if at in own)
        indices = tuple(target.index if number in moved else None for number in CONSOLES)
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{target.name} ({target.title}) stays on the host",
            do=MapConsoles(target.name, indices),
            undo=ReturnConsoles(gpu.address, target.pci or "", moved, wait_s),
        )


def back_within_s(gpu: Gpu) -> float:
    """How long release waits for the framebuffer of this GPU."""
    # A native driver's framebuffer may appear some time after libvirt's probe.
    return 10 if gpu.native else 1


def possible_targets(host: Host, handover: Handover) -> list[Framebuffer]:
    """The framebuffers that stay on the host and have the node to move consoles through."""
    staying = handover.staying_framebuffers(host)
    return [fb for fb in staying if host.exists(f"dev/{fb.name}")]


def _target(host: Host, targets: list[Framebuffer], handover: Handover) -> Framebuffer | None:
    """The framebuffer to move the consoles to, by `keep_console`; None to leave them.

    Raises RefusedError when the GPU that it names has no framebuffer.
    """
    place = handover.config.keep_console
    if place == "never":
        return None
    if place == "auto":
        return targets[0] if targets else None
    return named_framebuffer(host, targets, handover)


def named_framebuffer(host: Host, targets: list[Framebuffer], handover: Handover) -> Framebuffer:
    """The framebuffer of the GPU that `keep_console` names. Raises RefusedError."""
    place = handover.config.keep_console
    if place in handover.addresses:
        raise RefusedError(
            f"`keep_console` names {place}, which goes to the VM itself",
            hint="name a GPU that stays, or set `keep_console: auto`",
        )
    # Before Linux 6.9 the parent of a firmware framebuffer in sysfs does not show its GPU.
    own = gpus_among(host, (place,)) if host.exists(f"sys/bus/pci/devices/{place}") else ()
    names = {name for one in own for name in one.framebuffers}
    found = [fb for fb in targets if fb.name in names]
    if not found:
        raise RefusedError(
            f"`keep_console` names {place}, which has no framebuffer for the consoles",
            hint="load the driver of that GPU, or set `keep_console: auto`",
        )
    return found[0]


def _current_map(
    host: Host, targets: list[Framebuffer], handover: Handover
) -> tuple[int | None, ...] | None:
    """Which framebuffer each console is on; None if there is only one, or no node to ask."""
    if targets:
        return host.console_map(targets[0].name)
    names = [name for gpu in handover.gpus for name in gpu.framebuffers]
    # A single one has all of them, and is not opened to find that out.
    return host.console_map(names[0]) if len(names) > 1 else None
