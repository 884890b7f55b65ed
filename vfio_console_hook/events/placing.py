"""Where the host's consoles go while other VMs start and stop.

If a framebuffer goes while the consoles are on it, the kernel may drop all of them, or leave them
on it and crash at the next text (Linux fbcon.c, fbcon_fb_unbind). So nothing places them on one
that is about to go. Who places them holds a lock, and asks the claims which GPUs leave. Who makes a
claim later than that waits for the lock before it looks where the consoles are.
"""

from __future__ import annotations

from ..actions.console_moves import MapConsoles
from ..actions.consoles import ShowConsoles
from ..claims import ownership
from ..claims.claim import Claim
from ..claims.directory import Claims
from ..errors import LostError
from ..machine import console, gpu
from ..machine.host import Host

_LEAVES_WITHIN_S = 5


def move(claim: Claim, action: MapConsoles) -> None:
    """Move the consoles off this VM's GPUs. Raises LostError if the other GPU leaves, too."""
    with Claims(claim.host).console_lock():
        if action.fb in _leaving(claim):
            raise LostError(f"cannot move the consoles to {action.fb}: another VM takes its GPU")
        action.apply(claim.host)


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
