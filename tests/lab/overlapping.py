"""Two VMs with a GPU each, and a third GPU that stays: their lives overlap in every order.

The consoles leave the first GPU for the second one, which leaves in its turn. When the VMs
start at the same moment they must not go to a GPU that is just leaving: the kernel drops all
consoles then, and may leave them on a framebuffer that is gone (fbcon.c, fbcon_fb_unbind).
"""

from __future__ import annotations

import time
from itertools import product

from .background import Background
from .machine import Answer
from .trial import Trial
from .two_vms import OTHER, OTHER_UUID
from .vm import VM, domain_xml

# Seconds from the start of one VM to that of the other; the hook looks and moves in between.
PAUSES_S = (0.0, 0.3, 0.8)
ORDERS = ((VM, OTHER), (OTHER, VM))


class Overlapping(Trial):
    """One after the other in every order, then at the same moment."""

    def run(self) -> None:
        """Define both VMs, then let them overlap."""
        if not self.set_up():
            return
        path = f"/root/{OTHER}.xml"
        self.machine.put(path, domain_xml(self.gpus[1:2], OTHER, OTHER_UUID).encode())
        define = self.machine.run(f"virsh define {path}")
        if not self.demand(define.ok, f"virsh define: {define.stderr.strip()}"):
            return
        for starts, ends in product(ORDERS, ORDERS):
            name = f"{starts[0]}-starts-first-{ends[0]}-ends-first"
            self.begin(name)
            for one in starts:
                self.started(name, one, self.machine.run(f"virsh start {one}", 240))
            self.check_both(name, ends)
        for pause_s, starts in product(PAUSES_S, ORDERS):
            name = f"{starts[0]}-{pause_s:g}-s-before-{starts[1]}"
            self.begin(name)
            commands = [
                (one, Background(self.machine, f"sleep {after_s}; virsh start {one}", one))
                for one, after_s in zip(starts, (0, pause_s))
            ]
            for one, command in commands:
                self.started(name, one, command.wait(240))
            self.check_both(name, starts)

    def begin(self, name: str) -> None:
        """Name what follows in all logs."""
        self.machine.note(name)
        self.mark(name)

    def started(self, name: str, vm: str, answer: Answer) -> None:
        """A VM has started."""
        why = (answer.stderr or answer.stdout).strip()
        self.demand(answer.ok, f"{name}: virsh start {vm}: {why}")

    def check_both(self, name: str, ends: tuple[str, ...]) -> None:
        """With both VMs the consoles are on the third GPU; they end, and all is as before."""
        time.sleep(2)
        self.check_other_monitor(name)
        self.check_kernel(name)
        for one in ends:
            ended = self.machine.run(f"virsh destroy {one}", 180)
            self.demand(ended.ok, f"{name}: virsh destroy {one}: {ended.stderr.strip()}")
        self.check_console(name, 0)
        self.check_kernel(name)
        self.check_claims(name)
        lost = self.machine.run("journalctl -o cat -t vfio-console-hook | grep disappeared").stdout
        self.demand(not lost, f"{name}: {lost.strip()}")
