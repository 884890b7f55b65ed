"""kill -9 after every single system call of the real hook that changes anything, on a real kernel.

guest/every_call.py kills, recovers and compares the machine with before, point after
point; from outside the monitor is looked at, and the kernel's log. libvirtd runs, so that
recover can ask it, but starts no VM: the hook is called as libvirt calls it, and vfio-pci
is bound as libvirt does it.

Its own control: at some of the points the machine must be seen to be different, and held,
before anything is given back, and there must be as many points as the event needs at least.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .machine import Answer
from .trial import PROGRAM, Trial

XML = "/root/every-call.xml"
EVENTS = ("prepare", "start", "release")
# Fewer calls cannot do what these do.
AT_LEAST = {"prepare": 20, "start": 5, "release": 10}
AT_ONCE = 10
MOST = 200
A_LIFE_S = 40
LONGER_S = 3000


@dataclass
class Tally:
    """What came of the points of one event so far."""

    points: int = 0
    changed: int = 0
    claimed: int = 0
    mended: int = 0
    wrong: list[str] = field(default_factory=list)
    through: bool = False

    def add(self, point: dict[str, Any]) -> None:
        """One more point, or the end."""
        where = f"after call {point['n']} ({point['call']})"
        self.wrong += [f"{where}: {one}" for one in point["wrong"]]
        if not point["killed"]:
            self.through = True
            return
        self.points += 1
        self.changed += point["changed"]
        self.claimed += point["claimed"]
        self.mended += not point["wrong"]


class EveryCall(Trial):
    """All processes of the hook are killed at each point; in a second cycle who made the call."""

    def run(self) -> None:
        """Set up, see the lives that are not disturbed, then disturb them."""
        self.machine.live_longer(LONGER_S)
        if not self.set_up() or not self.ready():
            return
        for whom in ("all", "one")[: self.scenario.cycles]:
            for event in EVENTS:
                self.event(event, whom)

    def ready(self) -> bool:
        """Two whole lives."""
        self.machine.run(f"virsh dumpxml gpu >{XML}")
        answer = self.script()
        if not self.demand(answer.ok, f"begin: {answer.stderr}"):
            return False
        told = json.loads(answer.stdout)
        self.result.notes.append(f"a life that nobody disturbs: {told['took_s']} s")
        wrong = told["wrong"]
        return self.demand(not wrong, f"not killed at all: {wrong}")

    def script(self, *words: str) -> Answer:
        """What the script in the machine answers."""
        (gpu,) = self.leaving
        command = f"cd {PROGRAM} && python3 -m tests.lab.guest.every_call {XML} {gpu.address}"
        return self.machine.run(f"{command} {' '.join(words)}", AT_ONCE * A_LIFE_S)

    def event(self, event: str, whom: str) -> None:
        """Kill it after each call, a few at a time, until it comes through."""
        name = f"{event}-{whom}"
        tally = Tally()
        for first in range(1, MOST, AT_ONCE):
            self.machine.note(f"{name} {first}")
            self.mark(f"{name} {first}")
            answer = self.script(event, whom, str(first), str(first + AT_ONCE - 1))
            for line in answer.stdout.splitlines():
                tally.add(json.loads(line))
            if not self.demand(answer.ok, f"{name}: {answer.status} {answer.stderr}"):
                return
            self.check_console(f"{name}-{first}", 0)
            self.check_kernel(name)
            self.check_claims(name)
            if tally.through or tally.wrong:
                break
        self.judge(name, event, tally)

    def judge(self, name: str, event: str, tally: Tally) -> None:
        """Nothing was wrong, at enough points, and at some of them something was to be mended."""
        for wrong in tally.wrong[:5]:
            self.demand(False, f"{name}: {wrong}")
        enough = tally.through and tally.points >= AT_LEAST[event]
        self.demand(enough, f"{name}: {tally.points} points are not all that there are")
        # Before release libvirt has given the driver back, and the console may be whole with it.
        if event != "release":
            self.demand(tally.changed > 0, f"{name}: at no point the machine was different")
        self.demand(tally.claimed > 0, f"{name}: at no point it was held")
        self.result.notes.append(
            f"{name}: killed at {tally.points} points; then the machine was different at"
            f" {tally.changed} and held at {tally.claimed}; after all as before at {tally.mended}"
        )
