"""Two VMs with the same GPU in their configuration: the running one keeps it.

libvirt calls prepare for the second VM, and release when its start fails, although it
never had the GPU and the first VM is using it. When the first ends and the second starts
at the same moment, either may win; the host's console must be back after both.
"""

from __future__ import annotations

import time

from .background import Background
from .trial import CLAIMS, LOOK, Trial
from .vm import UUID, domain_xml

OTHER = "other"
OTHER_UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a02"
# Seconds between the end of one VM and the start of the other.
PAUSES = (0.0, 1.0, 3.0)


class TwoVms(Trial):
    """The other VM is refused while the first runs, then gets the GPU, then they race."""

    def run(self) -> None:
        """Define both VMs, then run the cycles and the races."""
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
        """The other VM is refused; the first VM and its claim do not change."""
        claim = self.claim_text()
        state = self.host_state()
        logged = self.logged()
        answer = self.machine.run(f"virsh start {OTHER}", 180)
        self.demand(not answer.ok, f"{name}: the other VM got the GPU of the running one")
        text = "belongs to the VM gpu"
        self.demand(text in answer.stderr, f"{name}: no {text!r} in the error: {answer.stderr}")
        news = self.logged()[len(logged) :]
        refused = len(news) == 1 and text in news[0]
        self.demand(refused, f"{name}: the hook did not only refuse: {news}")
        self.check_running(f"{name} beside the other")
        self.demand(self.claim_text() == claim, f"{name}: the claim of the first VM changed")
        self.demand(self.host_state() == state, f"{name}: the host's state changed")

    def other_alone(self, number: int) -> None:
        """After the first VM the other one gets the GPU."""
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
        """One VM ends while the other starts; after both the host has its console back."""
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

    def logged(self) -> list[str]:
        """The lines of the hook's log about the other VM so far."""
        log = self.machine.run(f"journalctl -o cat -t vfio-console-hook | grep '^{OTHER}:'")
        return log.stdout.splitlines()

    def claim_text(self) -> str:
        """The text of the first VM's claim."""
        return self.machine.run(f"cat {CLAIMS}/{UUID}").stdout
