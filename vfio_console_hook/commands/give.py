"""give: give back GPUs that were taken by hand."""

from __future__ import annotations

import argparse

from ..claims import ownership
from ..claims.claim import Journal, Record
from ..errors import HookError
from ..events import recovery
from ..machine.host import Host
from .command import Command
from .progress import Telling, interruptible, say, say_consoles
from .take import add_addresses


def _run(host: Host, arguments: argparse.Namespace) -> int:
    taken = [one for one in Journal(host).records() if one.by_hand]
    for one in arguments.address:
        if not any(one in record.gpus for record in taken):
            raise HookError(f"{one} was not taken by hand", hint="see `vfio-console-hook status`")
    again = f"run `vfio-console-hook give {' '.join(arguments.address)}` again"
    with interruptible(lambda: again):
        for record in taken:
            if set(record.gpus) & set(arguments.address):
                _give(host, record)
    say_consoles(host)
    return 0


def _give(host: Host, record: Record) -> None:
    if ownership.at_work(host, record):
        say(
            f"waiting up to {ownership.EARLIER_HOOK_S:g} s: {record.name} is still being taken or"
            f" given back (process {record.hook[0]})"
        )
        host.wait(lambda: not ownership.at_work(host, record), ownership.EARLIER_HOOK_S)
    busy = ownership.in_use(host, record)
    if busy:
        raise HookError(f"{record.name} cannot be given back: {busy}")
    say(recovery.give_back(host, record, Telling(host, record.name)))


COMMAND = Command(
    "give",
    "give back GPUs that were taken by hand",
    "vfio-console-hook give 01:00.0",
    add_addresses,
    _run,
)
