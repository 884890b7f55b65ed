"""The framebuffer console: moves the host's consoles to a framebuffer that stays.

fbcon (Linux drivers/video/fbdev/core/fbcon.c) draws all consoles of the host on
framebuffers, in every release. When the last one goes, the consoles fall to the dummy
console, and the person sees nothing until release. When another one stays, they are
moved before anything is unbound: otherwise the kernel may give all of them to the dummy
console although a framebuffer is left (fbcon_fb_unbind).

Without fb devices (FB_DEVICE=n) nothing can map a console. There fbcon is unbound before the
GPU leaves and bound again when it has left, at the event start: then it draws on what is
left. It is not enough to bind it then. The kernel does not notice that it is bound through
sysfs (fbcon_has_console_bind), and when the GPU left the next time, the consoles would stay
on a framebuffer that is gone: the next text is a NULL dereference (seen on 6.12).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.console_moves import LeaveFramebuffers, MapConsoles
from ..actions.consoles import ShowConsoles
from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console, firmware
from ..machine.console import Framebuffer
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from ..machine.pci import displays
from .handover import Handover

NAME = "fbcon"
# Not that release moves them back: the framebuffer may be gone, as another step says.
_COME_BACK = "the host's consoles are on this GPU; they come back with its framebuffer"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The move of the consoles off this GPU, and what moves them back; only that if none stays."""
    if not gpu.framebuffers or not handover.fbcon_draws:
        return
    targets = possible_targets(host, handover)
    nodeless = bool(handover.staying_framebuffers(host)) or not console.has_fb_devices(host)
    if not targets and nodeless:
        yield from _without_devices(host, gpu, handover)
        return
    mapped = _current_map(host, targets, handover)
    own = {fb.index for fb in handover.framebuffers if fb.name in gpu.framebuffers}
    if mapped is not None and not own.intersection(mapped):
        return
    wait_s = _wait_s(gpu)
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=_COME_BACK,
        do=None,
        undo=ShowConsoles(wait_s),
    )
    target = _target(host, targets, handover)
    if target and mapped is not None:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{target.name} ({target.title}) stays on the host",
            do=MapConsoles(target.name, (target.index,) * len(CONSOLES)),
            undo=MapConsoles(target.name, mapped, wait_s),
        )


def _without_devices(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The one step where no framebuffer that stays has a node, if any. Raises RefusedError."""
    staying = handover.staying_framebuffers(host)
    if staying:
        _refuse_choice(host, staying, handover)
        here = not shown_elsewhere(host, gpu, staying)
        why, do = _departure(host, staying, handover)
    else:
        here = gpu is _likely(host, handover)
        why = _COME_BACK
        # What start has bound for another VM must be unbound here, or the kernel would crash.
        leave = len(displays(host)) > 1 and len(handover.vtconsoles) > 1
        do = LeaveFramebuffers(until_release=True) if leave else None
    if here:
        yield Step(NAME, gpu.address, why, do, ShowConsoles(_wait_s(gpu)))


def _departure(
    host: Host, staying: list[Framebuffer], handover: Handover
) -> tuple[str, LeaveFramebuffers | None]:
    """How the consoles leave a GPU while another one stays: the reason for people, the action."""
    names = " or ".join(f"{fb.name} ({fb.title})" for fb in staying)
    if handover.config.keep_console == "never":
        dark = "; until then no monitor shows them (keep_console: never)"
        return _COME_BACK + dark, LeaveFramebuffers(until_release=True)
    if handover.by_hand and not handover.bind_vfio:
        dark = (
            "; until then no monitor shows them, because there is no /dev/fbN to move them through;"
            " `take --vfio` shows them on the other one when the GPU has left"
        )
        return _COME_BACK + dark, LeaveFramebuffers(until_release=True)
    if handover.fbcon_can_return(host):
        why = (
            "there is no /dev/fbN to move the consoles through, so they leave this GPU first;"
            f" when vfio-pci has it, they are shown on {names}; they"
            " come back with this GPU's framebuffer"
        )
        return why, LeaveFramebuffers()
    dark = (
        f"; until then no monitor shows them, not even that of {names}: there is no /dev/fbN to"
        " move them through, and the kernel has lost the console driver of the boot, vgacon"
    )
    return _COME_BACK + dark, None


def return_step(host: Host, handover: Handover) -> Iterator[Step]:
    """What shows the consoles after the GPUs have left, where no event start does it."""
    left = LeaveFramebuffers()
    if NAME in handover.config.stages and any(
        step.do == left for one in handover.gpus for step in plan(host, one, handover)
    ):
        why = "the GPU has left, and fbcon draws on what stays"
        yield Step(NAME, handover.gpus[0].address, why, ShowConsoles(0), left)


def _likely(host: Host, handover: Handover) -> Gpu:
    """The GPU of the VM that has the consoles, if all that have a framebuffer leave with it."""
    shown = [one for one in handover.gpus if one.framebuffers]
    return next((one for one in shown if _may_be_primary(host, one)), shown[0])


def _refuse_choice(host: Host, staying: list[Framebuffer], handover: Handover) -> None:
    """Refuse a `keep_console` that names a GPU which the kernel does not have to choose."""
    if handover.config.keep_console in ("never", "auto"):
        return
    wanted = _named(host, staying, handover)
    if len(staying) > 1:
        raise RefusedError(
            f"`keep_console` names {handover.config.keep_console}, but without /dev/fbN the kernel"
            f" chooses between {wanted.name} and others itself",
            hint="set `keep_console: auto`",
        )


def shown_elsewhere(host: Host, gpu: Gpu, staying: list[Framebuffer]) -> bool:
    """Whether the consoles are on a GPU that stays, as far as this kernel shows it.

    They are on the primary device, if it has a framebuffer (Linux fbcon.c,
    fbcon_select_primary): the boot VGA device, or the one that the firmware lit. Elsewhere,
    the monitor that shows a picture tells.
    """
    if _may_be_primary(host, gpu):
        return False
    if {fb.name for fb in staying}.intersection(firmware.devices(host)):
        return True  # before Linux 6.9 sysfs does not show whose it is
    from ..machine import drm  # only machines without /dev/fbN need it

    others = gpus_among(host, tuple(dict.fromkeys(fb.pci for fb in staying if fb.pci)))
    if any(_may_be_primary(host, one) for one in others):
        return True
    return not drm.lit(host, gpu.address) and any(drm.lit(host, one.address) for one in others)


def _may_be_primary(host: Host, gpu: Gpu) -> bool:
    screen = firmware.screen_memory(host)
    lit = screen is not None and any(bar.range.overlaps(screen) for bar in gpu.bars)
    return gpu.boot_vga or bool(gpu.firmware) or lit


def _wait_s(gpu: Gpu) -> float:
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
    return _named(host, targets, handover)


def _named(host: Host, targets: list[Framebuffer], handover: Handover) -> Framebuffer:
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
