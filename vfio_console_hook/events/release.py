"""release: gives back what was taken for a VM. It needs the claim and the machine, nothing else."""

from __future__ import annotations

from ..claims.claim import Claim
from ..claims.directory import Claims
from ..log import Log
from ..machine import console
from ..machine.accelerators import any_display
from ..machine.worker import Supervisor, call
from .undo import undo


def release(claim: Claim, log: Log, run: Supervisor = call) -> None:
    """Give back what was taken for a VM, newest first; the claim is this process's own.

    What cannot come back before a reboot is logged, and that is all. Raises StepError
    naming the steps that failed; then the claim stays with them.
    """
    host = claim.host
    log = log.about("release", claim.uuid, claim.gpus)
    if claim.boot != host.boot_id:
        log.warning("its claim is of an earlier boot, which has taken everything back")
        Claims(host).drop(claim)
        return

    def work() -> None:
        with claim.work():
            undo(claim, log)
        consoles = ""
        if any_display(host, claim.gpus):
            consoles = f"; the host's consoles: {console.current_display(host)}"
        log.info(f"released{consoles}")

    run(work)
