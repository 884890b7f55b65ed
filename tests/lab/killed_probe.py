"""kill -9 at each step of `bootfb: aperture`, on a real kernel, until BOOTFB is gone.

guest/every_probe.py kills and recovers. The monitor must show the console, alive, as long as
BOOTFB is there. Then the VM starts twice under libvirt, on the machine that the last kill has
left without BOOTFB.

Its own control: some kills must have come while vmwgfx was loaded, and while driver_override
named it, and the last one must have removed BOOTFB.
"""

from __future__ import annotations

import json
from typing import Any

from . import monitors
from .monitors import OTHER_TEXT, TEXT
from .trial import PROGRAM, Trial

XML = "/root/every-probe.xml"
AT_ONCE = 10
MOST = 150
A_KILL_S = 60
LONGER_S = 3600


class KilledProbe(Trial):
    """Kills, each followed by recover, and then whole cycles."""

    def run(self) -> None:
        """Set up, kill at each point, then start and destroy the VM."""
        self.machine.live_longer(LONGER_S)
        if not self.set_up():
            return
        self.machine.run(f"virsh dumpxml gpu >{XML}")
        if not self.kills():
            return
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)

    def kills(self) -> bool:
        """Kill at one point after the other until BOOTFB is gone; whether all was well."""
        points: list[dict[str, Any]] = []
        (gpu,) = self.leaving
        script = f"cd {PROGRAM} && python3 -m tests.lab.guest.every_probe {XML} {gpu.address}"
        for first in range(1, MOST, AT_ONCE):
            self.machine.note(f"kills {first}")
            self.mark(f"kills {first}")
            answer = self.machine.run(f"{script} {first} {first + AT_ONCE - 1}", AT_ONCE * A_KILL_S)
            points += [json.loads(line) for line in answer.stdout.splitlines()]
            there = bool(points) and points[-1]["bootfb"]
            self.demand(answer.ok, f"kills {first}: {answer.status} {answer.stderr}")
            self.check_kernel(f"kills {first}")
            if there:
                one = self.photograph(f"kills-{first}", TEXT)[self.scenario.monitor]
                other = self.photograph(f"kills-{first}-other", OTHER_TEXT)[self.scenario.monitor]
                self.demand(monitors.alive(one, other), f"kills {first}: the console is dead")
            if self.result.failures or not there or not points[-1]["killed"]:
                break
        for point in points:
            where = f"after call {point['n']} ({point['call']})"
            for wrong in point["wrong"]:
                self.demand(False, f"{where}: {wrong}")
        self.demand(bool(points) and not points[-1]["bootfb"], "no kill came after the probe")
        for state in ("loaded", "overridden"):
            count = sum(point[state] for point in points)
            self.demand(count > 0, f"no kill came while vmwgfx was {state}")
            self.result.notes.append(f"killed {len(points)} times, {state} at {count}")
        return not self.result.failures
