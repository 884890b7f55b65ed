"""keep: let a VM go on running that `rehearse --start` would destroy."""

from __future__ import annotations

import argparse

from ..errors import HookError
from ..machine import runfiles
from ..machine.host import Host
from .command import Command
from .rehearse import detached
from .rehearse.rehearsal import FOLDER, Diary, Told


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", metavar="VM", help="the name or uuid of the VM")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    diary = _started(host, arguments.vm)
    diary.note(kept=True)
    if not diary.told().kept:
        raise HookError(f"{arguments.vm} is being destroyed already", "start it again")
    detached.disarm(host, diary.own)
    print(f"{arguments.vm} is kept; `virsh shutdown {arguments.vm}` ends it as ever")
    return 0


def _started(host: Host, vm: str) -> Diary:
    """The diary of the rehearsal that has started a VM. Raises HookError."""
    for own in runfiles.names(host, FOLDER):
        diary = Diary(host, own)
        told = diary.told()
        if _is_of(told, vm):
            return diary
    raise HookError(
        f"no rehearsal has started {vm}, so nothing would destroy it",
        hint="see `vfio-console-hook status`",
    )


def _is_of(told: Told, vm: str) -> bool:
    if told.rehearsal is None or told.real is None or told.end is not None or not told.starting:
        return False
    return vm in (told.rehearsal.vm, told.rehearsal.uuid)


COMMAND = Command(
    "keep",
    "let a VM that `rehearse --start` has started go on",
    "vfio-console-hook keep win11",
    _options,
    _run,
    changes=True,
)
