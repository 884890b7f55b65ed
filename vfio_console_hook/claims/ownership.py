"""Who may work on a claim: one hook at a time, and nothing below a running VM.

The claim decides, never a guess from processes: between prepare and the start of
QEMU nothing else shows that a VM is starting.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import RefusedError
from ..machine import pci, processes, worker
from ..machine.host import Host
from .claim import Claim
from .directory import Claims
from .step import Step

EARLIER_HOOK_S = 10.0
"""How long an earlier hook for the same VM or GPU may take to end by itself."""


def acquire(host: Host, uuid: str, phase: str, *, forgotten: bool = False) -> Claim | None:
    """The claim of a VM, for this process alone to go on with; None when it holds nothing.

    phase and forgotten are what is written into it (claim.py).
    An earlier hook that still works on it is waited for; what is left of one that
    was killed is killed too. Raises RefusedError when it goes on working, StuckError
    when the kernel does not let go of it: nothing may be done below it.
    """
    claims = Claims(host)
    claim = _await_hook(claims, uuid)
    if claim is None:
        return None
    # It writes on until it is killed, so it is killed before anything is read or written.
    if claim.boot == host.boot_id and not at_work(host, claim):
        worker.stop(host, claim.worker)
    with claims.lock():
        claim = claims.find(uuid)
        if claim is None:
            return None
        refuse_busy(host, claim)
        claim.reach(phase, forgotten=forgotten)
    return claim


def create(host: Host, claim: Claim) -> Claim:
    """Make the claim of a VM that holds nothing yet.

    It takes over the steps for these GPUs of a VM that is just ending. Raises RefusedError
    when another VM has one of them, ClaimError when the claim cannot be written.
    """
    claims = Claims(host)
    with claims.lock():
        others = claims.others(claim.uuid, claim.boot, claim.gpus)
        releasing = [one for one in others if one.phase == "release" and at_work(host, one)]
        if not releasing:
            return _create(claims, claim, others)
    for one in releasing:
        _await_hook(claims, one.uuid)
    with claims.lock():
        return _create(claims, claim, claims.others(claim.uuid, claim.boot, claim.gpus))


def _create(claims: Claims, claim: Claim, others: list[Claim]) -> Claim:
    refuse_taken(claims.host, claim.gpus, others)
    # libvirt lets B begin between A's re-attach and A's release. What A took and
    # B would take too is given back by B's release, not while B has the GPU.
    moved = [(o, n, s) for o in others for n, s in o.open_steps if s.gpu in claim.gpus]
    for other, _, _ in moved:
        refuse_busy(claims.host, other)
    inherited: list[Step] = [step for _, _, step in reversed(moved)]
    claims.make(claim, inherited)
    for other, number, _ in moved:
        other.cut_torn_line()
        other.forget(number)
    return claim


def left_by_rehearsals(host: Host, uuid: str, addresses: tuple[str, ...]) -> list[str]:
    """The uuids of claims with one of these GPUs whose rehearsal was killed.

    Its watchdog gives them back; where that was killed too, the next start or `recover` does.
    """
    others = Claims(host).others(uuid, host.boot_id, addresses)
    return [one.uuid for one in others if one.until and not at_work(host, one)]


def clock_time(when: float) -> str:
    """A time in seconds since 1970 as people read it from a clock, such as "14:03:20"."""
    return time.strftime("%H:%M:%S", time.localtime(when))


# -- processes


def at_work(host: Host, claim: Claim) -> bool:
    """Whether another hook than this one works on a claim."""
    if claim.boot != host.boot_id or claim.hook == processes.this(host):
        return False
    return processes.lives(host, claim.hook)


def refuse_busy(host: Host, claim: Claim) -> None:
    """Raise RefusedError when another process works on a claim."""
    left = claim.boot == host.boot_id and worker.left_of(host, claim.worker)
    if left or at_work(host, claim):
        raise RefusedError(
            f"another hook for {claim.name} is still at work with {', '.join(claim.gpus)}"
            f" (process {claim.hook[0]})",
            hint="wait until it has ended",
        )


def await_others(host: Host, uuid: str, addresses: Iterable[str]) -> None:
    """Wait a while for hooks of other VMs than uuid that are giving back one of these GPUs."""
    claims = Claims(host)
    wanted = tuple(addresses)
    for other in claims.others(uuid, host.boot_id, wanted):
        if other.phase == "release" and {*wanted}.intersection(other.gpus):
            _await_hook(claims, other.uuid)


def _await_hook(claims: Claims, uuid: str) -> Claim | None:
    """The claim of a VM once no other hook works on it, or after a while; None when it is gone."""
    found: list[Claim | None] = []

    def free() -> bool:
        found[:] = [claims.find(uuid)]
        return found[0] is None or not at_work(claims.host, found[0])

    claims.host.wait(free, EARLIER_HOOK_S)
    return found[0]


# -- GPUs


def holds(host: Host, claim: Claim, address: str) -> bool:
    """Whether a VM still has a GPU of its claim, or is about to; not so what release has left."""
    return claim.phase != "release" or pci.is_vfio(host, address) or at_work(host, claim)


def taken(host: Host, others: Iterable[Claim]) -> frozenset[str]:
    """The GPUs that other VMs have, or are about to have."""
    return frozenset(one for claim in others for one in claim.gpus if holds(host, claim, one))


def refuse_taken(host: Host, addresses: Iterable[str], others: list[Claim]) -> None:
    """Raise RefusedError when another VM, or a person, has one of these GPUs now."""
    for other in others:
        for address in addresses:
            if address in other.gpus and (
                other.by_hand or other.phase == "prepare" or pci.is_vfio(host, address)
            ):
                raise _taken(host, address, other)


def _taken(host: Host, address: str, other: Claim) -> RefusedError:
    if other.until and at_work(host, other):
        return RefusedError(
            f"{address} is in a rehearsal of {other.name}, which gives it back by"
            f" {clock_time(other.until)}",
            hint="wait until then",
        )
    if other.until:
        return RefusedError(
            f"{address} was left behind by a rehearsal of {other.name} that was killed",
            hint="run `vfio-console-hook recover`",
        )
    if other.by_hand:
        return RefusedError(
            f"{address} was taken by hand, so no VM may have it through this hook",
            hint=f"run `vfio-console-hook give {address}`",
        )
    return RefusedError(
        f"{address} belongs to the VM {other.name}, which has it now",
        hint=f"shut {other.name} down; if it is not running, `vfio-console-hook recover`",
    )
