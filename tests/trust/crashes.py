"""kill -9 after every change that prepare, start and release make, and what comes next.

Each event is run by the program itself in a process of its own, with its worker as its
child, on every recorded machine; at every change in turn (fate.py) the process that made
it is killed, or the hook of the worker that made it, or both. Then either recover runs
with no VM there, or libvirt goes on: with release, or with the next start of the VM, which
ends with a release. The machine must be as before then, except for what plan had said that
it would not be, and the record must be empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trust.course import EVENTS, Course
from tests.trust.every import OneByOne, check_everywhere
from tests.trust.fate import BOTH, HOOK, WORKER, Fate
from tests.trust.life import PREPARE, RELEASE, START, Machine

RECOVER, NEXT = "recover", "next start"


@dataclass(frozen=True)
class Crash:
    """Who dies after which change of an event, and what comes next."""

    event: str
    fate: Fate
    after: str
    pattern: str

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells it from others for those who try only one of each."""
        return self.event, self.fate.kill, self.pattern

    def __str__(self) -> str:
        return f"{self.event}, {self.fate} ({self.pattern}), then {self.after}"


def crashes(course: Course) -> Iterator[Crash]:
    """All of them, of one course."""
    for event in EVENTS[: len(course.saved)]:
        for number, deed in enumerate(course.changes[event], start=1):
            victims = (WORKER, HOOK, BOTH) if deed.who == WORKER else (HOOK,)
            for place, kill in enumerate(victims):
                after = _NEXT[event][(number + place) % len(_NEXT[event])]
                yield Crash(event, Fate(at=number, kill=kill), after, deed.pattern)


_NEXT = {
    PREPARE: (RECOVER, RELEASE, RECOVER, NEXT),
    START: (RECOVER, RELEASE, RECOVER, NEXT),
    RELEASE: (RECOVER, NEXT),
}


def attempt(course: Course, crash: Crash, directory: Path) -> str:
    """What is wrong after a crash; "" when nothing is. directory is the machine's."""
    machine = course.begin(crash.event, directory)
    said = machine.event(crash.event, crash.fate)
    if said.killed is (crash.fate.kill == WORKER):
        return f"the blow did not fall: {said}"
    if said.wrong():
        return said.wrong()
    if crash.event == PREPARE and crash.fate.kill == WORKER:
        wrong = course.held(machine, tidied=False) or course.not_as_before(machine)
        if wrong:
            return f"not undone by the hook: {wrong}"
    machine.reattach()
    return (
        _go_on(course, machine, crash.after)
        or course.held(machine, tidied=crash.after != RELEASE)
        or course.not_as_before(machine)
    )


def _go_on(course: Course, machine: Machine, after: str) -> str:
    """Let come what comes next; what is wrong with its answer."""
    if after == RECOVER:
        return machine.recover().failed("recover")
    if after == NEXT:
        said = machine.event(PREPARE)
        # What is lost may be what it would need.
        if said.wrong() or (said.status and not (course.losses or course.refused)):
            return f"the next prepare: {said}"
        wrong = "" if said.status else _run(machine)
        if wrong:
            return wrong
    return machine.event(RELEASE).failed("release")


def _run(machine: Machine) -> str:
    machine.detach()
    wrong = machine.event(START).failed("the next start")
    if wrong:
        return wrong
    blocked = machine.run_vm()
    machine.reattach()
    return f"at the next start {blocked}" if blocked else ""


CHECK = check_everywhere(
    "crashes",
    "after kill -9 at any change, recover or the next event brings back everything that plan"
    " had not listed as lost",
    OneByOne(crashes, attempt),
    quick=250,
    least=20_000,
)
