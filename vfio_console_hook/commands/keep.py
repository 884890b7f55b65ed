"""keep: let a VM go on running that `rehearse --start` would destroy."""

from __future__ import annotations

import argparse

from ..errors import HookError
from ..machine import runfiles
from ..machine.host import Host
from .command import Command
from .rehearse import detached
from .rehearse.rehearsal import FOLDER, Account, Diary


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", metavar="VM", help="the name or uuid of the VM")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    diary = _started(host, arguments.vm)
    diary.note(kept=True)
    if not diary.account().kept:
        raise HookError(f"{arguments.vm} is being destroyed already", "start it again")
    detached.disarm(host, diary.own)
    print(f"{arguments.vm} is kept; `virsh shutdown {arguments.vm}` ends it as ever")
    return 0


def _started(host: Host, vm: str) -> Diary:
    """The diary of the rehearsal that has started a VM. Raises HookError."""
    for own in runfiles.names(host, FOLDER):
        diary = Diary(host, own)
        account = diary.account()
        if _is_of(account, vm):
            return diary
    raise HookError(
        f"no rehearsal has started {vm}, so nothing would destroy it",
        hint="see `vfio-console-hook status`",
    )


def _is_of(account: Account, vm: str) -> bool:
    rehearsal = account.rehearsal
    if rehearsal is None or account.real is None or account.end is not None:
        return False
    return account.starting and vm in (rehearsal.vm, rehearsal.uuid)


COMMAND = Command(
    "keep",
    "let a VM that `rehearse --start` has started go on",
    "vfio-console-hook keep win11",
    _options,
    _run,
    changes=True,
)
