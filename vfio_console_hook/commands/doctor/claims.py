"""Checks of the claims: which VM holds which GPU, what was left behind, and what is lost."""

from __future__ import annotations

from collections.abc import Iterator

from ...claims import in_use, losses
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...errors import ClaimError
from .. import dismiss
from .finding import Finding, check, failure, passed, warning
from .system import System

_RECOVER = "run `vfio-console-hook recover`"


@check("claims")
def claims(system: System) -> Iterator[Finding]:
    """Each claim: which VM it belongs to, and whether it was left behind."""
    claims = Claims(system.host)
    uuids = claims.uuids()
    if not uuids:
        yield passed("no VM holds a GPU through this hook, and no claim was left behind")
    for uuid in uuids:
        try:
            claim = claims.find(uuid)
        except ClaimError as error:
            yield failure(error.text, error.hint, of=f"claim {uuid}")
            continue
        if claim is not None:
            yield _finding(system, claim)


def _finding(system: System, claim: Claim) -> Finding:
    title = f"claim of {claim.name}"
    held = f"holds {' and '.join(claim.gpus)}"
    if claim.boot != system.host.boot_id:
        return warning("left behind by an earlier boot", _RECOVER, of=title)
    if claim.until:
        stuck = in_use.why_stuck(system.host, claim)
        if stuck:
            return warning(f"{held}, but {stuck}", _RECOVER, of=title)
        return passed(f"{held}; {in_use.why_in_use(system.host, claim)}", of=title)
    if claim.by_hand:
        give = f"`vfio-console-hook give {claim.gpus[0]}`"
        return passed(f"{held}, taken by hand; {give} gives it back", of=title)
    stuck = in_use.why_stuck(system.host, claim)
    if stuck:
        advice = f"{_RECOVER}, with --force if libvirt does not answer; or reboot the host"
        return warning(f"{held}, but {stuck}", advice, of=title)
    vm = system.vm(claim.uuid)
    if vm is not None and vm.live:
        return passed(f"{held}; the VM is running", of=title)
    used = in_use.why_in_use(system.host, claim)
    if used:
        return passed(f"{held}; {used}", of=title)
    if system.libvirt_error:
        text = f"{held}; libvirt did not report whether the VM is running"
        return warning(text, f"if it is not running, {_RECOVER}", of=title)
    state = "is off" if vm else "no longer exists"
    return warning(f"{held}, but according to libvirt the VM {state}", _RECOVER, of=title)


@check("losses")
def lost(system: System) -> Iterator[Finding]:
    """What release could not give back, and is not back since."""
    found = losses.current(system.host)
    if not found:
        yield passed("nothing is missing of what VMs have given back")
    for one in found:
        advice = one.hint or (f"try `{one.by_hand}`" if one.by_hand else "reboot the host")
        hide = f"{advice}; `{dismiss.line(one.vm)}` hides this"
        yield warning(one.text, hide, of=f"lost after {one.vm}")
