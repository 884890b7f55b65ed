"""give: give back GPUs that were taken by hand."""

from __future__ import annotations

import argparse

from .. import ownership, recovery
from ..errors import HookError
from ..host import Host
from ..journal import Journal
from .command import Command
from .take import address, say, say_consoles


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="+", type=address, help="PCI address, such as 01:00.0")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    taken = [one for one in Journal(host).records() if one.by_hand]
    for one in arguments.address:
        if not any(one in record.gpus for record in taken):
            raise HookError(f"{one} was not taken by hand", hint="see `vfio-console-hook status`")
    for record in taken:
        if set(record.gpus) & set(arguments.address):
            busy = ownership.in_use(host, record)
            if busy:
                raise HookError(f"{record.name} cannot be given back: {busy}")
            say(recovery.give_back(host, record))
    say_consoles(host)
    return 0


COMMAND = Command(
    "give",
    "give back GPUs that were taken by hand",
    "vfio-console-hook give 01:00.0",
    _options,
    _run,
)
