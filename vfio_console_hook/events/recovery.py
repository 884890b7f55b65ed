"""Giving back what VMs hold that do not run: after libvirtd or a hook was killed.

Only libvirt's word counts for a VM, never a guess from processes: between prepare
and the start of QEMU nothing else shows that one is starting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..claims import history, ownership
from ..claims.claim import CLAIMS, Journal, Record
from ..config.settings import Config
from ..errors import HookError
from ..log import Log
from ..machine import kernel, worker
from ..machine.host import Host
from . import events

# How long libvirt may take to answer. It does not while a hook of any VM is at work.
_ANSWER_S = 10.0
_PAUSE_S = 0.5


def recover(host: Host, tell: Callable[[str], None], *, force: bool, wait_s: float) -> bool:
    """Give back what can be; whether all of it was given back or is rightly held.

    A hook that is still at work, and a libvirt that does not answer, are waited for
    up to wait_s. force: libvirt is not asked. What becomes of each VM goes to tell.
    """
    deadline = time.monotonic() + wait_s
    settled = True
    for uuid in Journal(host).uuids():
        try:
            settled &= _settle(host, uuid, tell, force, deadline)
        except HookError as error:
            tell(f"{uuid}: {error}")
            settled = False
    _tidy(host, tell)
    return settled


def _tidy(host: Host, tell: Callable[[str], None]) -> None:
    journal = Journal(host)
    if not host.exists(CLAIMS):
        return
    try:
        with journal.lock():
            journal.tidy()
    except HookError as error:
        tell(str(error))


def _settle(
    host: Host, uuid: str, tell: Callable[[str], None], force: bool, deadline: float
) -> bool:
    waiting = False
    while True:
        record = Journal(host).find(uuid)
        if record is None:
            tell(f"{uuid}: gave it back itself meanwhile")
            return True
        why, final = _why_not(host, record, force)
        if not why:
            tell(give_back(host, record))
            return True
        if final or time.monotonic() >= deadline:
            tell(f"{record.name}: left alone, {why}")
            return final
        if not waiting:
            left_s = max(deadline - time.monotonic(), 0)
            tell(f"{record.name}: waiting up to {left_s:.0f} s: {why}")
        waiting = True
        time.sleep(_PAUSE_S)


def _why_not(host: Host, record: Record, force: bool) -> tuple[str, bool]:
    """Why a record must be left alone, "" when it need not; and whether that will stay so."""
    if record.boot != kernel.boot_id(host):
        return "", True
    if ownership.at_work(host, record):
        return f"its hook is at work (process {record.hook[0]})", False
    used = ownership.in_use(host, record)
    if used:
        return used, True
    if record.by_hand:
        return f"it was taken by hand (`vfio-console-hook give {record.gpus[0]}`)", True
    if force:
        return "", True
    running = _running(host)
    if running is None:
        return "libvirt does not say whether it runs (--force if you know that it is off)", False
    return ("libvirt says that it runs" if record.uuid in running else ""), True


def _running(host: Host) -> list[str] | None:
    """The uuids of all VMs that run, by libvirt's word; None when it does not answer."""
    virsh = ("/usr/bin/virsh", "-c", "qemu:///system", "-r")
    try:
        return host.run(*virsh, "list", "--uuid", timeout_s=_ANSWER_S).split()
    except HookError:
        return None


def give_back(host: Host, record: Record, log: Log | None = None) -> str:
    """Give back what a record holds; a line that says so. Raises HookError."""
    run = worker.Deadline(Config().timeout_s).run
    began = time.monotonic()
    try:
        told = log or Log(host, record.name)
        events.release(host, record.uuid, told, run, forgotten=not record.by_hand)
    except HookError as error:
        _remember(host, record, began, error)
        raise
    _remember(host, record, began)
    return f"{record.name}: gave back {', '.join(record.gpus)}"


def _remember(host: Host, record: Record, began: float, error: HookError | None = None) -> None:
    event = "give" if record.by_hand else "recover"
    took_s = time.monotonic() - began
    history.remember(host, record.name, record.uuid, event, took_s=took_s, error=error)
