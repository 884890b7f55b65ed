"""kill -9 after every system call of the real hook that changes anything, on a real kernel.

guest/every_call.py kills, recovers and compares the machine with before, point after
point; this module checks the monitor and the kernel's log. libvirtd runs, so that
recover can ask it, but starts no VM: guest/every_call.py calls the hook and binds vfio-pci
as libvirt does.

Its own control: at some points, before anything is released, the machine must be different
and have a claim, and each event must have a minimum of points.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .machine import Answer
from .trial import PROGRAM, Trial

XML = "/root/every-call.xml"
EVENTS = ("prepare", "start", "release")
# No event can do its work with fewer calls.
AT_LEAST = {"prepare": 20, "start": 5, "release": 10}
AT_ONCE = 10
MOST = 200
A_LIFE_S = 40
LONGER_S = 3000


@dataclass
class Tally:
    """The results of the points of one event so far."""

    points: int = 0
    changed: int = 0
    claimed: int = 0
    restored: int = 0
    wrong: list[str] = field(default_factory=list)
    complete: bool = False

    def add(self, point: dict[str, Any]) -> None:
        """Add a point, or the run that was not killed any more."""
        where = f"after call {point['n']} ({point['call']})"
        self.wrong += [f"{where}: {one}" for one in point["wrong"]]
        if not point["killed"]:
            self.complete = True
            return
        self.points += 1
        self.changed += point["changed"]
        self.claimed += point["claimed"]
        self.restored += not point["wrong"]


class EveryCall(Trial):
    """At each point all processes of the hook are killed; in a second cycle only the caller."""

    def run(self) -> None:
        """Set up, run undisturbed lives, then kill at each point."""
        self.machine.live_longer(LONGER_S)
        if not self.set_up() or not self.ready():
            return
        for victims in ("all", "one")[: self.scenario.cycles]:
            for event in EVENTS:
                self.event(event, victims)

    def ready(self) -> bool:
        """Run two whole lives; whether both left the same machine."""
        self.machine.run(f"virsh dumpxml gpu >{XML}")
        answer = self.script()
        if not self.demand(answer.ok, f"begin: {answer.stderr}"):
            return False
        lives = json.loads(answer.stdout)
        self.result.notes.append(f"an undisturbed life: {lives['took_s']} s")
        wrong = lives["wrong"]
        return self.demand(not wrong, f"not killed at all: {wrong}")

    def script(self, *words: str) -> Answer:
        """Run guest/every_call.py in the machine; its answer."""
        (gpu,) = self.leaving
        command = f"cd {PROGRAM} && python3 -m tests.lab.guest.every_call {XML} {gpu.address}"
        return self.machine.run(f"{command} {' '.join(words)}", AT_ONCE * A_LIFE_S)

    def event(self, event: str, victims: str) -> None:
        """Kill the hook after each call of an event, a few at a time, until it ends by itself."""
        name = f"{event}-{victims}"
        tally = Tally()
        for first in range(1, MOST, AT_ONCE):
            self.machine.note(f"{name} {first}")
            self.mark(f"{name} {first}")
            answer = self.script(event, victims, str(first), str(first + AT_ONCE - 1))
            for line in answer.stdout.splitlines():
                tally.add(json.loads(line))
            if not self.demand(answer.ok, f"{name}: {answer.status} {answer.stderr}"):
                return
            self.check_console(f"{name}-{first}", 0)
            self.check_kernel(name)
            self.check_claims(name)
            if tally.complete or tally.wrong:
                break
        self.judge(name, event, tally)

    def judge(self, name: str, event: str, tally: Tally) -> None:
        """Nothing was wrong, at enough points, and some of them had something to restore."""
        for wrong in tally.wrong[:5]:
            self.demand(False, f"{name}: {wrong}")
        enough = tally.complete and tally.points >= AT_LEAST[event]
        self.demand(enough, f"{name}: {tally.points} points are not all")
        # Before release libvirt has given the driver back, which may restore the console.
        if event != "release":
            self.demand(tally.changed > 0, f"{name}: at no point the machine was different")
        self.demand(tally.claimed > 0, f"{name}: at no point there was a claim")
        self.result.notes.append(
            f"{name}: killed at {tally.points} points; then the machine was different at"
            f" {tally.changed} and claimed at {tally.claimed}; restored at {tally.restored}"
        )
