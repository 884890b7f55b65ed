"""What keeps a GPU from the VM: processes that have a node of it open, or a reservation."""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Machine

_PROGRAM = b"""#!/usr/bin/python3 -IS
# Keeps a file open. The process has the name of this file.
import sys, time
file = open(sys.argv[1])
time.sleep(100000)
"""


@dataclass(frozen=True)
class Holder:
    """count processes with this name, each of which has the node open."""

    name: str
    node: str
    count: int = 1

    def begin(self, machine: Machine) -> None:
        """Start the processes and wait until they have the node open."""
        program = f"/root/{self.name}"
        machine.put(program, _PROGRAM)
        machine.run(f"chmod +x {program}")
        for _ in range(self.count):
            machine.run(f"setsid {program} {self.node} >/dev/null 2>&1 </dev/null &")
        opened = (
            f"[ $(ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c '{self.node}$') -ge {self.count} ]"
        )
        tries = "n=$((n + 1)); [ $n -lt 300 ] || break; sleep 0.2"
        machine.run(f"n=0; until {opened}; do {tries}; done; pgrep -a {self.name}", 120)

    def end(self, machine: Machine) -> None:
        """End the processes that are left."""
        machine.run(f"pkill {self.name}; sleep 1")

    def left(self, machine: Machine) -> int:
        """How many of the processes are running."""
        return len(machine.run(f"pgrep {self.name}").stdout.split())


class Reservation(Holder):
    """A module with this name, which reserves a part of the GPU's memory (stand-ins)."""

    def begin(self, machine: Machine) -> None:
        """Load it."""
        machine.run(f"modprobe {self.name}; grep -B 4 {self.name} /proc/iomem")

    def end(self, machine: Machine) -> None:
        """Unload it."""
        machine.run(f"rmmod {self.name}")

    def left(self, machine: Machine) -> int:
        """Whether it is loaded."""
        return int(machine.run(f"[ -e /sys/module/{self.name} ]").ok)
