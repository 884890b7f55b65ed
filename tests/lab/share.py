"""The hook's share of a VM's start, in wall time and in processor time.

A lab machine is emulated and has one processor: everything in it is slower by the same
factor, so the ratio is meaningful and the seconds are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import wrapper
from .machine import Machine

_LOG = "/run/lab-share"
_EVENTS_OF_A_START = ("prepare", "start", "started")

# The shell starts no process for this: it reads /proc/uptime itself, and `times` prints the
# processor time of its children.
_SCRIPT = f"""\
#!/bin/sh
# Runs the hook, and writes how long it took.
read -r began rest </proc/uptime
"{{hook}}" "$@"
status=$?
read -r ended rest </proc/uptime
{{{{ echo "$2 $began $ended"; times; }}}} >>{_LOG}
exit $status
"""
_ENTRY = re.compile(r"(\w+) (\S+) (\S+)\n.*\n(\d+)m([\d.]+)s (\d+)m([\d.]+)s\n")


@dataclass(frozen=True)
class Share:
    """The part of a time that was ours, in seconds."""

    ours_s: float
    whole_s: float

    def __str__(self) -> str:
        percent = 100 * self.ours_s / self.whole_s
        return f"{self.ours_s:.2f} s of {self.whole_s:.1f} s, {percent:.0f} %"


@dataclass(frozen=True)
class Reading:
    """/proc/uptime: how long the machine has run, and how long its one processor was idle."""

    up_s: float
    idle_s: float

    @classmethod
    def now(cls, machine: Machine) -> Reading:
        """Read it now."""
        up_s, idle_s = machine.run("cat /proc/uptime").stdout.split()
        return cls(float(up_s), float(idle_s))


def begin(machine: Machine, hook: str) -> Reading:
    """Measure the hook's time from now on."""
    machine.run(f"rm -f {_LOG}")
    wrapper.install(machine, hook, _SCRIPT)
    return Reading.now(machine)


def end(machine: Machine, hook: str, began: Reading) -> str:
    """Stop measuring; the hook's share of the time since begin(), in words."""
    ended = Reading.now(machine)
    wrapper.remove(machine, hook)
    events = read(machine.run(f"cat {_LOG}").stdout)
    whole_s = ended.up_s - began.up_s
    share = Share(sum(took_s for took_s, _ in events.values()), whole_s)
    busy_s = whole_s - (ended.idle_s - began.idle_s)
    busy = Share(sum(busy_s for _, busy_s in events.values()), busy_s)
    each = ", ".join(f"{event} {took_s:.2f} s" for event, (took_s, _) in events.items())
    return f"ours / whole start: {share} ({each}); processor: {busy}"


def read(log: str) -> dict[str, tuple[float, float]]:
    """The seconds of each event of a start, in wall time and in processor time."""
    found = {}
    for event, began, ended, *used in _ENTRY.findall(log):
        user_m, user_s, system_m, system_s = map(float, used)
        busy_s = 60 * (user_m + system_m) + user_s + system_s
        found[event] = (float(ended) - float(began), busy_s)
    return {event: found[event] for event in _EVENTS_OF_A_START if event in found}
