"""Every change refused and every look deceived, in prepare, start and release.

Machine: EACCES, EBUSY, ENODEV and EIO. The program's own files: ENOSPC, EROFS and EIO. Each
once, and in each way also from then on. A look finds nothing, half of what there is, or
EIO; or the GPU has been pulled out before it. Whatever is tried, the hook ends with 0, or
with 1 and a sentence that is no traceback. Then the VM goes on as libvirt would: a VM that
starts has all of its memory, and after its release, or a recover at the latest, the
machine is as before (except for what plan had said) and no claim is left.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trust.baseline import EVENTS, Baseline
from tests.trust.every import OneByOne, check_everywhere
from tests.trust.fault import FAILS, HALF, NOTHING, Fault
from tests.trust.life import PREPARE, RELEASE, START, Machine
from tests.trust.process import Exit

_OF_THE_MACHINE = (errno.EACCES, errno.EBUSY, errno.ENODEV, errno.EIO)
_OF_FILES = (errno.ENOSPC, errno.EROFS, errno.EIO)
# Removing something takes no space.
_FREEING = ("file remove", "file chmod", "file truncate")
_SIGHTS = (NOTHING, HALF, FAILS, "gone")


@dataclass(frozen=True)
class FaultCase:
    """What an event meets with; pattern is that of the change or the look."""

    event: str
    fault: Fault
    pattern: str

    @property
    def kind(self) -> tuple[str, ...]:
        """Of each kind a quick run tries one."""
        lasting = str(self.fault.lasting)
        return self.event, self.pattern, lasting

    def __str__(self) -> str:
        return f"{self.event}, {self.fault} ({self.pattern})"


def faults(baseline: Baseline) -> Iterator[FaultCase]:
    """Those of one baseline; which errno and which sight goes round."""
    turn = sum(map(ord, str(baseline.subject)))
    for event in EVENTS[: len(baseline.saved)]:
        for number, access in enumerate(baseline.changes[event], start=1):
            known = _OF_FILES if access.own else _OF_THE_MACHINE
            for lasting in (False, True):
                turn += 1
                refusal = known[turn % len(known)]
                if refusal == errno.ENOSPC and access.kind in _FREEING:
                    refusal = errno.EROFS
                fault = Fault(at=number, refusal=refusal, lasting=lasting)
                yield FaultCase(event, fault, access.pattern)
        # Refused is what has been seen: no program can know of a holder that it is not shown.
        sights = (FAILS, "gone") if baseline.refused else _SIGHTS
        for number, access in enumerate(baseline.looks[event], start=1):
            turn += 1
            sight = sights[turn % len(sights)]
            gone = baseline.subject.gpus[-1] if sight == "gone" else ""
            yield FaultCase(event, Fault(look=number, blind=sight, gone=gone), access.pattern)


def attempt(baseline: Baseline, case: FaultCase, directory: Path) -> str:
    """What is wrong after a case; "" when nothing is. directory is the machine's."""
    machine = baseline.begin(case.event, directory)
    ended = machine.event(case.event, case.fault)
    if ended.killed or ended.wrong():
        return f"it {ended.wrong() or 'was killed'}"
    if case.event == PREPARE and ended.status and not case.fault.gone:
        # A refusal that lasts refuses the undo, too.
        reported = "not all could be undone" in ended.stderr
        wrong = baseline.held(machine, tidied=False) or _changed(baseline, machine)
        if wrong and not reported:
            return f"refused, but {wrong}"
    return _rest(baseline, machine, case, ended) or _end(baseline, machine, case)


def _changed(baseline: Baseline, machine: Machine) -> str:
    """What is not as before, but for services that the log says do not run again."""
    units = all(path.startswith("systemd/") for path in baseline.changed(machine.seen()))
    excused = units and "not running again" in machine.log()
    return "" if excused else baseline.not_as_before(machine)


def _rest(baseline: Baseline, machine: Machine, case: FaultCase, ended: Exit) -> str:
    """Lead the VM's life to its end, without any case; what is wrong with that."""
    if case.event == RELEASE:
        return "" if ended.status else baseline.held(machine, tidied=False)
    if ended.status == 0 and not baseline.refused:
        wrong = _run(machine, case)
        if wrong:
            return wrong
    machine.reattach()
    ended = machine.event(RELEASE)
    return "" if _lost(case, ended) else ended.failed("release")


def _lost(case: FaultCase, ended: Exit) -> bool:
    """Whether something was not given back because of a look that was deceived, and says so."""
    deceived = bool(case.fault.gone or case.fault.look)
    return deceived and ended.status == 1 and "not all came back" in ended.stderr


def _run(machine: Machine, case: FaultCase) -> str:
    if case.event == PREPARE:
        if case.fault.gone and not machine.complete():
            return ""  # libvirt does not find it either
        machine.detach()
        ended = machine.event(START)
        if ended.wrong() or ended.status:
            return ended.wrong()
    blocked = "" if case.fault.gone else machine.run_vm()
    # A hook that saw no GPU has left everything to libvirt.
    return "" if case.fault.look else blocked


def _end(baseline: Baseline, machine: Machine, case: FaultCase) -> str:
    if any(map(machine.is_claim, machine.claimed())):
        ended = machine.recover()
        wrong = "" if _lost(case, ended) else ended.failed("recover")
        if wrong:
            return wrong
    wrong = baseline.held(machine, tidied=False)
    if wrong or case.fault.gone:
        return wrong
    wrong = _changed(baseline, machine)
    # A hook that did not see a device takes it for gone, and says so.
    log = machine.log()
    reported = "warning:" in log or "not all came back" in log
    return "" if wrong and case.fault.look and reported else wrong


CHECK = check_everywhere(
    "faults",
    "a refused write, an empty or short read, a GPU that is pulled out: one sentence, and nothing"
    " stays changed",
    OneByOne(faults, attempt),
    quick=350,
    least=20_000,
)
