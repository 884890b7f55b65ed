"""Every change refused and every look deceived, in prepare, start and release.

Machine: EACCES, EBUSY, ENODEV and EIO. The program's own files: ENOSPC, EROFS and EIO. Each
once, and in each way also from then on. A look finds nothing, half of what there is, or
EIO; or the GPU has been pulled out before it. Whatever is tried, the hook ends with 0, or
with 1 and a sentence that is no traceback. Then the VM goes on as libvirt would: a VM that
starts has all of its memory, and after its release, or a recover at the latest, the
machine is as before (as far as plan had said) and the record is empty.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trust.course import EVENTS, Course
from tests.trust.every import OneByOne, check_everywhere
from tests.trust.fate import FAILS, HALF, NOTHING, Fate
from tests.trust.life import PREPARE, RELEASE, START, Machine
from tests.trust.process import Said

_OF_THE_MACHINE = (errno.EACCES, errno.EBUSY, errno.ENODEV, errno.EIO)
_OF_FILES = (errno.ENOSPC, errno.EROFS, errno.EIO)
# Removing something takes no space.
_FREEING = ("file remove", "file chmod", "file truncate")
_SIGHTS = (NOTHING, HALF, FAILS, "gone")


@dataclass(frozen=True)
class Fault:
    """What an event meets with; pattern is that of the change or the look."""

    event: str
    fate: Fate
    pattern: str

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells it from others for those who try only one of each."""
        lasting = str(self.fate.lasting)
        return self.event, self.pattern, lasting

    def __str__(self) -> str:
        return f"{self.event}, {self.fate} ({self.pattern})"


def faults(course: Course) -> Iterator[Fault]:
    """Those of one course; which errno and which sight goes round."""
    turn = sum(map(ord, str(course.subject)))
    for event in EVENTS[: len(course.saved)]:
        for number, deed in enumerate(course.changes[event], start=1):
            known = _OF_FILES if deed.own else _OF_THE_MACHINE
            for lasting in (False, True):
                turn += 1
                refusal = known[turn % len(known)]
                if refusal == errno.ENOSPC and deed.kind in _FREEING:
                    refusal = errno.EROFS
                fate = Fate(at=number, refusal=refusal, lasting=lasting)
                yield Fault(event, fate, deed.pattern)
        # Refused is what has been seen: no program can know of a holder that it is not shown.
        sights = (FAILS, "gone") if course.refused else _SIGHTS
        for number, deed in enumerate(course.looks[event], start=1):
            turn += 1
            sight = sights[turn % len(sights)]
            gone = course.subject.gpus[-1] if sight == "gone" else ""
            yield Fault(event, Fate(look=number, blind=sight, gone=gone), deed.pattern)


def attempt(course: Course, fault: Fault, directory: Path) -> str:
    """What is wrong after a fault; "" when nothing is. directory is the machine's."""
    machine = course.begin(fault.event, directory)
    said = machine.event(fault.event, fault.fate)
    if said.killed or said.wrong():
        return f"it {said.wrong() or 'was killed'}"
    if fault.event == PREPARE and said.status and not fault.fate.gone:
        # Who goes on refusing refuses the way back too.
        told = "not all could be undone" in said.stderr
        wrong = "" if told else course.held(machine, tidied=False) or _changed(course, machine)
        if wrong:
            return f"refused, but {wrong}"
    return _rest(course, machine, fault, said) or _end(course, machine, fault)


def _changed(course: Course, machine: Machine) -> str:
    """What is not as before, but for services of which it was told that they do not run again."""
    units = all(path.startswith("systemd/") for path in course.changed(machine.seen()))
    excused = units and "not running again" in machine.log()
    return "" if excused else course.not_as_before(machine)


def _rest(course: Course, machine: Machine, fault: Fault, said: Said) -> str:
    """Lead the VM's life to its end, without any fault; what is wrong with that."""
    if fault.event == RELEASE:
        return "" if said.status else course.held(machine, tidied=False)
    if said.status == 0 and not course.refused:
        wrong = _run(machine, fault)
        if wrong:
            return wrong
    machine.reattach()
    return machine.event(RELEASE).failed("release")


def _run(machine: Machine, fault: Fault) -> str:
    if fault.event == PREPARE:
        if fault.fate.gone and not machine.complete():
            return ""  # libvirt does not find it either
        machine.detach()
        said = machine.event(START)
        if said.wrong() or said.status:
            return said.wrong()
    blocked = "" if fault.fate.gone else machine.run_vm()
    # Who has seen no GPU has left everything to libvirt.
    return "" if fault.fate.look else blocked


def _end(course: Course, machine: Machine, fault: Fault) -> str:
    if any(map(machine.is_claim, machine.claimed())):
        wrong = machine.recover().failed("recover")
        if wrong:
            return wrong
    wrong = course.held(machine, tidied=False)
    if wrong or fault.fate.gone:
        return wrong
    wrong = _changed(course, machine)
    # Who has not seen a device takes it for gone, and says so.
    return "" if wrong and fault.fate.look and "warning:" in machine.log() else wrong


CHECK = check_everywhere(
    "faults",
    "a refused write, an empty or short read, a GPU that is pulled out: one sentence, and nothing"
    " stays changed",
    OneByOne(faults, attempt),
    quick=350,
    least=20_000,
)
