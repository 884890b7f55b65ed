"""stopped: QEMU has ended, and libvirt is about to give the GPUs back to their drivers.

That it was called is kept (ownership.acquire, history.py): if libvirt hangs then, release never
comes, and people learn it from `status`.

Kernels without fb devices need more. There start has bound fbcon through sysfs, which the
kernel does not notice (fbcon_has_console_bind): if a GPU with the consoles left later in any
other way than through this hook, the next text would be a NULL dereference. fbcon that is
unbound when the GPU's framebuffer comes back takes the consoles over anew, and all is as at
boot (Linux fbcon.c, set_con2fb_map, do_fbcon_takeover; seen on 6.12).
"""

from __future__ import annotations

from ..claims.claim import Claim
from ..log import Log
from ..machine import console
from ..machine.worker import Supervisor, call


def stopped(claim: Claim, log: Log, run: Supervisor = call) -> None:
    """Unbind fbcon if start has bound it for this VM; release checks that it is bound again.

    Raises HookError; libvirt goes on all the same.
    """
    if console.has_fb_devices(claim.host):
        return
    from .start import (
        moved_consoles,  # takes 3 ms to load, and most kernels do not need it
    )

    log = log.about("stopped", claim.uuid, claim.gpus)

    def work() -> None:
        with claim.work():
            for action in moved_consoles(claim):
                if action.kind == "leave-framebuffers":
                    action.apply(claim.host)
                    log.info("unbound fbcon until the GPU's framebuffer is back")
                    return

    run(work)
