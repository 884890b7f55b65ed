"""Where the host's consoles go while other VMs start and stop.

If a framebuffer goes while the consoles are on it, the kernel may drop all of them, or leave them
on it and crash at the next text (Linux fbcon.c, fbcon_fb_unbind). So nothing places them on one
that is about to go. Who places them holds a lock, and asks the claims which GPUs leave. Who makes a
claim later than that waits for the lock before it looks where the consoles are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..actions.console_moves import LeaveFramebuffers, MapConsoles, ReturnConsoles
from ..actions.consoles import ShowConsoles
from ..claims import ownership
from ..claims.claim import Claim
from ..claims.directory import Claims
from ..claims.step import Step
from ..errors import LostError, RefusedError
from ..machine import console, gpu
from ..machine.host import Host

_LEAVES_WITHIN_S = 5


@contextmanager
def moving(claim: Claim, step: Step) -> Iterator[Step]:
    """Hold the lock for a step that moves the consoles, and give what is to be done instead.

    That is the step itself, unless the other GPU leaves by now. The consoles never stay where
    they are. Raises RefusedError when they would have to.
    """
    with Claims(claim.host).console_lock():
        yield _still_possible(claim, step)


def _still_possible(claim: Claim, step: Step) -> Step:
    host, do, undo = claim.host, step.do, step.undo
    leaving = _leaving(claim)
    if not isinstance(do, MapConsoles) or do.fb not in leaving:
        return step
    away = leaving | gpu.framebuffers_of(host, claim.gpus)
    staying = [one for one in console.framebuffers(host) if one.name not in away]
    fb = next((one for one in staying if host.exists(f"dev/{one.name}")), None)
    if isinstance(undo, ReturnConsoles):
        undo = replace(undo, to=fb.pci or "" if fb else "")
    if fb is not None:
        indices = tuple(None if one is None else fb.index for one in do.indices)
        why = f"{fb.name} ({fb.title}) stays on the host"
        return replace(step, why=why, do=MapConsoles(fb.name, indices), undo=undo)
    if len(console.vtconsoles(host)) == 1:
        raise RefusedError(
            f"cannot move the consoles to {do.fb}: another VM takes its GPU, and there is no other"
            " console driver: the kernel would crash",
            hint="start this VM again when the other one has ended",
        )
    why = f"another VM takes the GPU of {do.fb}, and no other framebuffer is left"
    return replace(step, why=why, do=LeaveFramebuffers(), undo=undo)


def show(claim: Claim, action: ShowConsoles) -> None:
    """Show the consoles, as the kernel does not, on a framebuffer that stays. Raises LostError."""
    host = claim.host
    with Claims(host).console_lock():
        leaving = _leaving(claim)
        if leaving and not console.has_fb_devices(host):
            _await_left(host, leaving)
        present = console.framebuffers(host)
        action.show(host, [one for one in present if one.name not in leaving])


def _await_left(host: Host, leaving: set[str]) -> None:
    """Wait until none of these framebuffers is there. Raises LostError.

    Without fb devices the kernel chooses where it draws.
    """

    def still_there() -> list[str]:
        return [one.name for one in console.framebuffers(host) if one.name in leaving]

    if not host.wait(lambda: not still_there(), _LEAVES_WITHIN_S):
        raise LostError(
            f"the host's consoles are not shown: {' and '.join(still_there())} still leaves with"
            " another VM, and the kernel might choose it"
        )


def _leaving(claim: Claim) -> set[str]:
    others = Claims(claim.host).others(claim.uuid, claim.boot)
    return gpu.framebuffers_of(claim.host, ownership.taken(claim.host, others))
