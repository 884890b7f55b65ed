"""What an undo could not bring back: written down at once, logged at the end.

Only loaded where something is lost.
"""

from __future__ import annotations

from ..claims import losses
from ..claims.claim import Claim
from ..claims.losses import Loss
from ..claims.step import Step
from ..errors import HookError, LostError
from ..log import Log
from ..machine import console, gpu
from ..machine.host import Host


def write_down(claim: Claim, step: Step, error: LostError | None, log: Log) -> Loss:
    """The loss of a step whose undo raised an error, or that has none; kept for people."""
    # What plan had listed is no news.
    places = () if step.loses else claim.announce
    loss = losses.of_step(claim.host, claim.name, claim.uuid, step, error, places)
    try:
        losses.add(claim.host, loss)
    except HookError as refused:
        log.warning(f"`vfio-console-hook status` will not show a loss: {refused}")
    return loss


def unannounced(claim: Claim, found: list[Loss], log: Log) -> tuple[Loss, ...]:
    """What is lost, now that everything else is back, and plan has not listed.

    The rest is logged. A firmware console that is off, for one, is no loss once a native
    driver shows the consoles.
    """
    host = claim.host
    remaining = [loss for loss in found if loss.now(host) is not None]
    listed = any(step.loses for step in claim.steps)
    bad = [loss for loss in remaining if not (loss.announced or (listed and _shows(loss.step)))]
    for loss in found:
        # That vfio-pci removes a console is only true if it was ever bound.
        happened = loss.step.undo or loss in remaining or not _still_drawn(host, loss.step.gpu)
        if loss not in bad and happened:
            log.warning(str(loss))
    try:
        losses.settle(host)
    except HookError as refused:
        log.warning(str(refused))
    return tuple(bad)


def _shows(step: Step) -> bool:
    """Whether an undo shows the consoles, which plan has listed as lost with their framebuffer."""
    return step.undo is not None and step.undo.kind == "show-consoles"


def _still_drawn(host: Host, address: str) -> bool:
    """Whether the host still draws on a GPU, by its firmware's driver or as text."""
    if not host.exists(f"sys/bus/pci/devices/{address}"):
        return False
    text = any(one.bound and one.driver == console.VGACON for one in console.vtconsoles(host))
    devices = (one for found in gpu.gpus_among(host, (address,)) for one in found.firmware)
    return text or any(one.driver for one in devices)
