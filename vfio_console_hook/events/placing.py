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


def move(claim: Claim, action: MapConsoles) -> None:
    """Move the consoles off this VM's GPUs. Raises LostError if the other GPU leaves, too."""
    with Claims(claim.host).console_lock():
        if action.fb in _leaving(claim):
            raise LostError(f"cannot move the consoles to {action.fb}: another VM takes its GPU")
        action.apply(claim.host)


def show(claim: Claim, action: ShowConsoles) -> None:
    """Show the consoles, as the kernel does not, on a framebuffer that stays. Raises LostError."""
    with Claims(claim.host).console_lock():
        leaving = _leaving(claim)
        present = console.framebuffers(claim.host)
        action.show(claim.host, [one for one in present if one.name not in leaving])


def _leaving(claim: Claim) -> set[str]:
    others = Claims(claim.host).others(claim.uuid, claim.boot)
    return gpu.framebuffers_of(claim.host, ownership.taken(claim.host, others))
