"""Whether what VMs hold is held rightly."""

from __future__ import annotations

from collections.abc import Iterator

from ...claims import ownership
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...errors import ClaimError
from ...machine import kernel
from .finding import FAIL, PASS, WARN, Check, Finding, Subject

_RECOVER = "run `vfio-console-hook recover`"


def claims(subject: Subject) -> Iterator[Finding]:
    """Each claim: whose it is, and whether it was left behind."""
    claims = Claims(subject.host)
    uuids = claims.uuids()
    if not uuids:
        yield Finding(PASS, "claims", "no VM holds a GPU through this hook, and none was left")
    for uuid in uuids:
        try:
            claim = claims.find(uuid)
        except ClaimError as error:
            yield Finding(FAIL, f"claim {uuid}", error.text, error.hint)
            continue
        if claim is not None:
            yield _judge(subject, claim)


def _judge(subject: Subject, claim: Claim) -> Finding:
    title = f"claim of {claim.name}"
    holds = f"holds {' and '.join(claim.gpus)}"
    if claim.boot != kernel.boot_id(subject.host):
        return Finding(WARN, title, "left behind by an earlier boot", _RECOVER)
    if claim.by_hand:
        give = f"`vfio-console-hook give {claim.gpus[0]}`"
        return Finding(PASS, title, f"{holds}, taken by hand; {give} gives it back")
    vm = subject.vm(claim.uuid)
    if vm is not None and vm.live:
        return Finding(PASS, title, f"{holds}, and it runs")
    used = ownership.in_use(subject.host, claim)
    if used:
        return Finding(PASS, title, f"{holds}; {used}")
    if subject.unasked:
        text = f"{holds}; libvirt does not say whether it runs"
        return Finding(WARN, title, text, f"if it does not: {_RECOVER}")
    state = "libvirt says that it is off" if vm else "libvirt does not know it any more"
    return Finding(WARN, title, f"{holds}, but {state}", _RECOVER)


CHECKS: tuple[Check, ...] = (claims,)
