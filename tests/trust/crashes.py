"""kill -9 after every change that prepare, start and release make, and what comes next.

Each event is run by the program itself in a process of its own, with its worker as its
child, on every recorded machine; at every change in turn (fault.py) the process that made
it is killed, or the hook of the worker that made it, or both. Then either recover runs
with no VM there, or libvirt goes on: with release, or with the next start of the VM, which
ends with a release. The machine must be as before then, except for what plan had said that
it would not be, and no claim may be left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trust.baseline import EVENTS, Baseline
from tests.trust.every import OneByOne, check_everywhere
from tests.trust.fault import BOTH, HOOK, WORKER, Fault
from tests.trust.life import PREPARE, RELEASE, START, Machine

RECOVER, NEXT = "recover", "next start"


@dataclass(frozen=True)
class CrashCase:
    """Which process dies after which change of an event, and what comes next."""

    event: str
    fault: Fault
    after: str
    pattern: str

    @property
    def kind(self) -> tuple[str, ...]:
        """Of each kind a quick run tries one."""
        return self.event, self.fault.kill, self.pattern

    def __str__(self) -> str:
        return f"{self.event}, {self.fault} ({self.pattern}), then {self.after}"


def crashes(baseline: Baseline) -> Iterator[CrashCase]:
    """All of them, of one baseline."""
    for event in EVENTS[: len(baseline.saved)]:
        for number, access in enumerate(baseline.changes[event], start=1):
            victims = (WORKER, HOOK, BOTH) if access.who == WORKER else (HOOK,)
            for place, kill in enumerate(victims):
                after = _NEXT[event][(number + place) % len(_NEXT[event])]
                yield CrashCase(event, Fault(at=number, kill=kill), after, access.pattern)


_NEXT = {
    PREPARE: (RECOVER, RELEASE, RECOVER, NEXT),
    START: (RECOVER, RELEASE, RECOVER, NEXT),
    RELEASE: (RECOVER, NEXT),
}


def attempt(baseline: Baseline, case: CrashCase, directory: Path) -> str:
    """What is wrong after a crash; "" when nothing is. directory is the machine's."""
    machine = baseline.begin(case.event, directory)
    ended = machine.event(case.event, case.fault)
    if ended.killed is (case.fault.kill == WORKER):
        return f"the process was not killed: {ended}"
    if ended.wrong():
        return ended.wrong()
    if case.event == PREPARE and case.fault.kill == WORKER:
        wrong = baseline.held(machine, tidied=False) or baseline.not_as_before(machine)
        if wrong:
            return f"not undone by the hook: {wrong}"
    machine.reattach()
    return (
        _go_on(baseline, machine, case.after)
        or baseline.held(machine, tidied=case.after != RELEASE)
        or baseline.not_as_before(machine)
    )


def _go_on(baseline: Baseline, machine: Machine, after: str) -> str:
    """Let come what comes next; what is wrong with its answer."""
    if after == RECOVER:
        return machine.recover().failed("recover")
    if after == NEXT:
        ended = machine.event(PREPARE)
        # What is lost may be what it would need.
        if ended.wrong() or (ended.status and not (baseline.losses or baseline.refused)):
            return f"the next prepare: {ended}"
        wrong = "" if ended.status else _run(machine)
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
