"""release: gives back what was taken for a VM. It needs the claim and the machine, nothing else."""

from __future__ import annotations

from ..claims.claim import Claim
from ..claims.directory import Claims
from ..errors import LostError
from ..log import Log
from ..machine import console, pci
from ..machine.worker import Supervisor, call
from .undo import undo


def release(claim: Claim, log: Log, run: Supervisor = call) -> None:
    """Give back what was taken for a VM, newest first; the claim is this process's own.

    Raises StepError naming the steps that failed; then the claim stays with them. Raises
    LostError when all was tried and something is missing that plan did not list as lost: then
    nothing is held any more, and losses.py has it.
    """
    host = claim.host
    log = log.about("release", claim.uuid, claim.gpus)
    if claim.boot != host.boot_id:
        log.warning("its claim is of an earlier boot, which has taken everything back")
        Claims(host).drop(claim)
        return

    def work() -> None:
        with claim.work():
            lost = undo(claim, log)
        consoles = ""
        if pci.any_display(host, claim.gpus):
            consoles = f"; the host's consoles: {console.current_display(host)}"
        log.info(f"released{consoles}")
        if lost:
            texts = "; ".join(one.text for one in lost)
            raise LostError(f"not all came back: {texts}", hint=lost[0].hint)

    run(work)
