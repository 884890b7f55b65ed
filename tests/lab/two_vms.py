"""Two VMs with the same GPU in their configuration: the one that runs keeps it.

libvirt calls prepare for the second, and when its start fails, release: for a
VM that never had the GPU, while the first one is at work with it. When the first
ends and the second starts at the same moment, either may win; the host's console
must be back once both are gone.
"""

from __future__ import annotations

import time

from .background import Background
from .trial import CLAIMS, LOOK, Trial
from .vm import UUID, domain_xml

OTHER = "other"
OTHER_UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a02"
# Moments between the end of one VM and the start of the other, in seconds.
PAUSES = (0.0, 1.0, 3.0)


class TwoVms(Trial):
    """The other VM is refused while the first runs, then gets the GPU, then they race."""

    def run(self) -> None:
        """Set up both VMs and try all that."""
        if not self.set_up():
            return
        path = f"/root/{OTHER}.xml"
        self.machine.put(path, domain_xml(self.leaving, OTHER, OTHER_UUID).encode())
        define = self.machine.run(f"virsh define {path}")
        if not self.demand(define.ok, f"virsh define: {define.stderr.strip()}"):
            return
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
            self.other_alone(number)
        for pause_s in PAUSES:
            self.race(pause_s)

    def meanwhile(self, name: str, number: int) -> None:
        """The other VM is refused, and neither the first one nor its record notices."""
        record = self.claim_text()
        state = self.host_state()
        told = self.told()
        answer = self.machine.run(f"virsh start {OTHER}", 180)
        self.demand(not answer.ok, f"{name}: the other VM got the GPU of the running one")
        said = "belongs to the VM gpu"
        self.demand(said in answer.stderr, f"{name}: virsh does not say {said!r}: {answer.stderr}")
        news = self.told()[len(told) :]
        refused = len(news) == 1 and said in news[0]
        self.demand(refused, f"{name}: the hook did more than to refuse: {news}")
        self.check_running(f"{name} beside the other")
        self.demand(self.claim_text() == record, f"{name}: the record of the first VM changed")
        self.demand(self.host_state() == state, f"{name}: the host's state changed")

    def other_alone(self, number: int) -> None:
        """With the first VM gone, the other one has the GPU like any."""
        name = f"other{number}"
        self.machine.note(name)
        self.mark(name)
        answer = self.machine.run(f"virsh start {OTHER}", 240)
        if self.demand(answer.ok, f"{name}: virsh start: {answer.stderr.strip()}"):
            time.sleep(5)
            self.check_mapped(name, OTHER)
            self.machine.run(f"virsh destroy {OTHER}", 180)
        self.check_console(name, number)
        self.check_kernel(name)
        self.check_claims(name)

    def race(self, pause_s: float) -> None:
        """One ends and the other starts; in the end the host has its console back."""
        name = f"race{pause_s:g}"
        self.machine.note(name)
        self.mark(name)
        error = self.start()
        if not self.demand(error is None, f"{name}: virsh start: {error}"):
            return
        time.sleep(3)
        ending = Background(self.machine, "virsh destroy gpu", "ending")
        starting = Background(self.machine, f"sleep {pause_s}; virsh start {OTHER}", "starting")
        ended, started = ending.wait(180), starting.wait(180)
        self.demand(ended.ok, f"{name}: virsh destroy: {ended.stdout}")
        won = "started" if started.ok else f"was refused ({' '.join(started.stdout.split())})"
        self.result.notes.append(f"{name}: the other VM {won}")
        if started.ok:
            time.sleep(3)
            self.check_mapped(name, OTHER)
            self.demand(not self.machine.run(f"ls {CLAIMS}/{UUID}").ok, f"{name}: two claims")
            self.machine.run(f"virsh destroy {OTHER}", 180)
        self.check_console(name, 0)
        self.machine.run(LOOK)
        self.check_kernel(name)
        self.check_claims(name)

    def told(self) -> list[str]:
        """What the hook has logged of the other VM so far."""
        log = self.machine.run(f"journalctl -o cat -t vfio-console-hook | grep '^{OTHER}:'")
        return log.stdout.splitlines()

    def claim_text(self) -> str:
        """The record of the first VM."""
        return self.machine.run(f"cat {CLAIMS}/{UUID}").stdout
