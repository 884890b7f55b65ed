"""Releasing GPUs still claimed by VMs that are not running: libvirtd or a hook was killed.

Only libvirt's word counts for a VM, never a guess from processes: between prepare
and the start of QEMU nothing else shows that one is starting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..claims import history, in_use, ownership
from ..claims.claim import CLAIMS, Claim
from ..claims.directory import Claims
from ..errors import HookError, LostError
from ..log import Log
from ..machine import worker
from ..machine.host import Host
from .release import release

# How long libvirt may take to answer. It does not while a hook of any VM is at work.
_ANSWER_S = 10.0
_PAUSE_S = 0.5


def recover(host: Host, report: Callable[[str], None], *, force: bool, wait_s: float) -> bool:
    """Release what can be; whether all of it was released, or is rightly held.

    A hook that is still at work, and a libvirt that does not answer, are waited for
    up to wait_s. force: libvirt is not asked. report gets a line for each VM.
    """
    deadline = time.monotonic() + wait_s
    settled = True
    for uuid in Claims(host).uuids():
        try:
            settled &= _settle(host, uuid, report, force, deadline)
        except HookError as error:
            report(f"{uuid}: {error}")
            settled = False
    _tidy(host, report)
    return settled


def _tidy(host: Host, report: Callable[[str], None]) -> None:
    claims = Claims(host)
    if not host.exists(CLAIMS):
        return
    try:
        with claims.lock():
            claims.tidy()
    except HookError as error:
        report(str(error))


def _settle(
    host: Host, uuid: str, report: Callable[[str], None], force: bool, deadline: float
) -> bool:
    waiting = False
    while True:
        claim = Claims(host).find(uuid)
        if claim is None:
            report(f"{uuid}: released in the meantime")
            return True
        why, final = _why_not(host, claim, force)
        if not why:
            return _released(host, claim, report)
        if final or time.monotonic() >= deadline:
            report(f"{claim.name}: skipped: {why}")
            return final
        if not waiting:
            left_s = max(deadline - time.monotonic(), 0)
            report(f"{claim.name}: waiting up to {left_s:.0f} s: {why}")
        waiting = True
        time.sleep(_PAUSE_S)


def _released(host: Host, claim: Claim, report: Callable[[str], None]) -> bool:
    """Give back what a claim holds; whether all of it came back. Raises HookError."""
    try:
        report(give_back(host, claim))
    except LostError as error:
        report(f"{claim.name}: {error}")
        return False
    return True


def _why_not(host: Host, claim: Claim, force: bool) -> tuple[str, bool]:
    """Why a claim must not be released, "" if it may; and whether that will stay so."""
    if claim.boot != host.boot_id:
        return "", True
    if ownership.at_work(host, claim):
        # A rehearsal has a watchdog, so its end is not waited for here.
        return in_use.why_in_use(host, claim), bool(claim.until)
    used = in_use.why_in_use(host, claim)
    if used:
        return used, True
    if claim.until:
        return "", True
    if claim.by_hand:
        return f"it was taken by hand (`vfio-console-hook give {claim.gpus[0]}`)", True
    if force:
        return "", True
    running = _running(host)
    if running is not None and claim.uuid not in running:
        return "", True
    if claim.phase == "stopped":
        # libvirt itself has reported the end. It may list the VM until release has returned.
        return ("" if in_use.why_stuck(host, claim) else "libvirt is giving it back"), False
    if running is None:
        return "libvirt does not answer (--force if you know that it is off)", False
    return "running according to libvirt", True


def _running(host: Host) -> list[str] | None:
    """The uuids of all VMs that are running according to libvirt; None if it does not answer."""
    virsh = ("/usr/bin/virsh", "-c", "qemu:///system", "-r")
    try:
        return host.run(*virsh, "list", "--uuid", timeout_s=_ANSWER_S).split()
    except HookError:
        return None


def give_back(host: Host, claim: Claim, log: Log | None = None) -> str:
    """Release what a claim holds, and return a line that says so. Raises HookError."""
    run = worker.Deadline(host, claim.timeout_s).run
    log = log or Log(host, claim.name, claim.log_level)
    began = time.monotonic()
    try:
        # Neither libvirt nor the platform for which a person took the GPU re-attaches it.
        mine = ownership.acquire(host, claim.uuid, "release", forgotten=True)
        if mine is not None:
            release(mine, log, run)
    except HookError as error:
        _remember(host, claim, began, error)
        raise
    _remember(host, claim, began)
    return f"{claim.name}: released {', '.join(claim.gpus)}"


def _remember(host: Host, claim: Claim, began: float, error: HookError | None = None) -> None:
    event = "give" if claim.by_hand and not claim.until else "recover"
    took_s = time.monotonic() - began
    history.remember(
        host, claim.name, claim.uuid, event, took_s=took_s, error=error, places=claim.announce
    )
