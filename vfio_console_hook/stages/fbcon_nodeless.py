"""The framebuffer console of kernels without fb devices (FB_DEVICE=n): nothing maps a console.

There fbcon is unbound before the GPU leaves and bound again when it has left, at the event
start: then it draws on what is left. It is not enough to bind it then. The kernel does not
notice that it is bound through sysfs (fbcon_has_console_bind), and when the GPU left the next
time, the consoles would stay on a framebuffer that is gone: the next text is a NULL dereference
(seen on 6.12).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.console_moves import LeaveFramebuffers
from ..actions.consoles import ShowConsoles
from ..claims.step import Step
from ..errors import RefusedError
from ..machine import drm, firmware
from ..machine.console import Framebuffer
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.pci import displays
from . import fbcon
from .handover import Handover


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The one step where no framebuffer that stays has a node, if any. Raises RefusedError."""
    staying = handover.staying_framebuffers(host)
    if staying:
        _refuse_choice(host, staying, handover)
        here = not shown_elsewhere(host, gpu, staying)
        why, do = _departure(host, staying, handover)
    else:
        here = gpu is _likely(host, handover)
        why = fbcon.COME_BACK
        # What start has bound for another VM must be unbound here, or the kernel would crash.
        leave = len(displays(host)) > 1 and len(handover.vtconsoles) > 1
        do = LeaveFramebuffers(until_release=True) if leave else None
    if here:
        yield Step(fbcon.NAME, gpu.address, why, do, ShowConsoles(fbcon.back_within_s(gpu)))


def _departure(
    host: Host, staying: list[Framebuffer], handover: Handover
) -> tuple[str, LeaveFramebuffers | None]:
    """How the consoles leave a GPU while another one stays: the reason for people, the action."""
    names = " or ".join(f"{fb.name} ({fb.title})" for fb in staying)
    if handover.config.keep_console == "never":
        dark = "; until then no monitor shows them (keep_console: never)"
        return fbcon.COME_BACK + dark, LeaveFramebuffers(until_release=True)
    if handover.by_hand and not handover.bind_vfio:
        dark = (
            "; until then no monitor shows them, because there is no /dev/fbN to move them through;"
            " `take --vfio` shows them on the other one when the GPU has left"
        )
        return fbcon.COME_BACK + dark, LeaveFramebuffers(until_release=True)
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
    return fbcon.COME_BACK + dark, None


def return_step(host: Host, handover: Handover) -> Iterator[Step]:
    """What shows the consoles after the GPUs have left, where no event start does it."""
    left = LeaveFramebuffers()
    if fbcon.NAME in handover.config.stages and any(
        step.do == left for one in handover.gpus for step in fbcon.plan(host, one, handover)
    ):
        why = "the GPU has left, and fbcon draws on what stays"
        yield Step(fbcon.NAME, handover.gpus[0].address, why, ShowConsoles(0), left)


def _likely(host: Host, handover: Handover) -> Gpu:
    """The GPU of the VM that has the consoles, if all that have a framebuffer leave with it."""
    shown = [one for one in handover.gpus if one.framebuffers]
    return next((one for one in shown if _may_be_primary(host, one)), shown[0])


def _refuse_choice(host: Host, staying: list[Framebuffer], handover: Handover) -> None:
    """Refuse a `keep_console` that names a GPU which the kernel does not have to choose."""
    if handover.config.keep_console in ("never", "auto"):
        return
    wanted = fbcon.named_framebuffer(host, staying, handover)
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
    others = gpus_among(host, tuple(dict.fromkeys(fb.pci for fb in staying if fb.pci)))
    if any(_may_be_primary(host, one) for one in others):
        return True
    return not drm.lit(host, gpu.address) and any(drm.lit(host, one.address) for one in others)


def _may_be_primary(host: Host, gpu: Gpu) -> bool:
    screen = firmware.screen_memory(host)
    lit = screen is not None and any(bar.range.overlaps(screen) for bar in gpu.bars)
    return gpu.boot_vga or bool(gpu.firmware) or lit
