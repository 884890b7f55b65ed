"""give: release GPUs that were taken by hand."""

from __future__ import annotations

import argparse

from ..claims import in_use, ownership
from ..claims.claim import Claim
from ..claims.directory import Claims
from ..errors import HookError
from ..events import recovery
from ..machine import pci
from ..machine.host import Host
from .command import Command
from .progress import ProgressLog, interruptible, say, say_consoles
from .take import add_addresses


def _run(host: Host, arguments: argparse.Namespace) -> int:
    taken = [one for one in Claims(host).readable() if one.by_hand]
    for one in arguments.address:
        if not any(one in claim.gpus for claim in taken):
            raise HookError(f"{one} was not taken by hand", hint="see `vfio-console-hook status`")
    again = f"run `vfio-console-hook give {' '.join(arguments.address)}` again"
    with interruptible(lambda: again):
        for claim in taken:
            if set(claim.gpus) & set(arguments.address):
                _release(host, claim)
    if pci.any_display(host, tuple(one for claim in taken for one in claim.gpus)):
        say_consoles(host)
    return 0


def _release(host: Host, claim: Claim) -> None:
    if ownership.at_work(host, claim) and not claim.until:
        say(
            f"waiting up to {ownership.EARLIER_HOOK_S:g} s: {claim.name} is still being taken or"
            f" released (process {claim.hook[0]})"
        )
        host.wait(lambda: not ownership.at_work(host, claim), ownership.EARLIER_HOOK_S)
    busy = in_use.why_in_use(host, claim)
    if busy:
        raise HookError(
            f"{claim.name} cannot be released: {busy}",
            hint=f"run `vfio-console-hook give {claim.gpus[0]}` again when that has ended",
        )
    say(recovery.give_back(host, claim, ProgressLog(host, claim.name)))


COMMAND = Command(
    "give",
    "release GPUs that were taken by hand",
    "vfio-console-hook give 01:00.0",
    add_addresses,
    _run,
    changes=True,
)
