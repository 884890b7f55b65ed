"""`rehearse --start`: the real VM, destroyed after its minute unless it is kept.

Four runs of the VM: not kept; kept; the runner and the terminal killed with SIGKILL; and libvirtd
restarted meanwhile, while the runner is dead, too. Each but the second has to end by itself at
the announced time, with the console back.
"""

from __future__ import annotations

import re
import time

from .monitors import TEXT
from .trial import Trial

_SAID = "/root/rehearse.txt"
_SESSION = "/root/rehearse.session"
_UNITS = "systemctl list-units --all --no-legend 'vfio-console-hook-rehearsal*'"
_KILL = "systemctl kill --signal=KILL 'vfio-console-hook-rehearsal-*.service'; sleep 2"
_RUNS_WITHIN_S = 300
# One minute, and what the emulated machine takes to give the GPU back.
_OFF_WITHIN_S = 330


class Started(Trial):
    """A dead man's switch for the first start of a VM."""

    def run(self) -> None:
        """One run of the VM after the other."""
        self.machine.live_longer(1500)
        if not self.set_up():
            return
        for name in ("not kept", "kept", "killed", "libvirtd restarted"):
            self.machine.note(name)
            self.mark(name)
            self.photograph(f"{name.replace(' ', '-')}-before", TEXT)
            began = time.monotonic()
            self.begin(name)
            if self.demand(self.becomes("running", _RUNS_WITHIN_S), f"{name}: it does not run"):
                self.check_mapped(name, "gpu")
                self.meddle(name)
                if name == "kept":
                    self.check_kept(name)
                off = self.becomes("shut off", _OFF_WITHIN_S)
                took = time.monotonic() - began
                self.demand(off, f"{name}: it still runs after {took:.0f} s")
                self.result.notes.append(f"{name}: off after {took:.0f} s")
            self.check_claims_soon(name)
            self.said(name)
            self.check_console(name.replace(" ", "-"), 1)
            self.check_kernel(name)

    def begin(self, name: str) -> None:
        """Rehearse in a session of its own, as in a terminal; it is followed there."""
        command = f"vfio-console-hook rehearse --start --minutes 1 --yes --report {_SAID}.txt gpu"
        shell = f"sh -c '{command} > {_SAID} 2>&1; echo [$?] >> {_SAID}'"
        self.machine.run(f"setsid {shell} & echo $! > {_SESSION}")

    def becomes(self, state: str, within_s: float) -> bool:
        """Whether the VM gets into a state in time."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self.machine.run("virsh domstate gpu", 60).stdout.strip() == state:
                return True
            time.sleep(2)
        return False

    def meddle(self, name: str) -> None:
        """What happens to the processes while the VM runs."""
        self.machine.run(f"{_UNITS}; systemctl list-timers --all --no-legend 'vfio*'")
        if name in ("killed", "libvirtd restarted"):
            self.machine.run(f"kill -9 -$(cat {_SESSION}); {_KILL}")
            left = self.machine.run("pgrep -af '[v]fio-console-hook rehearse'").stdout
            self.demand(not left, f"{name}: still there: {left}")
        if name == "libvirtd restarted":
            restart = self.machine.run("systemctl restart libvirtd", 120)
            self.demand(restart.ok, f"{name}: {restart.stderr}")

    def check_kept(self, name: str) -> None:
        """It runs on when its minute is over."""
        keep = self.machine.run("vfio-console-hook keep gpu", 60)
        self.demand(keep.ok, f"{name}: keep: {keep.stderr}")
        time.sleep(100)
        state = self.machine.run("virsh domstate gpu").stdout.strip()
        self.demand(state == "running", f"{name}: kept, and the VM is {state}")
        units = self.machine.run(_UNITS).stdout.strip()
        self.demand(not units, f"{name}: kept, and there is {units}")
        self.machine.run("virsh destroy gpu", 180)

    def check_claims_soon(self, name: str) -> None:
        """libvirt has given the GPU back."""
        self.machine.run("n=0; while [ -n \"$(ls -A /run/vfio-console-hook/claims)\" ]; do"
                         " n=$((n + 1)); [ $n -lt 60 ] || exit 1; sleep 1; done", 90)  # fmt: skip
        self.check_claims(name)

    def said(self, name: str) -> None:
        """What the terminal showed; its last line is the exit status."""
        end = time.monotonic() + 60
        followed = name in ("not kept", "kept")
        text = self.machine.run(f"cat {_SAID}").stdout
        while followed and not re.search(r"\[\d+\]\s*$", text) and time.monotonic() < end:
            time.sleep(2)
            text = self.machine.run(f"cat {_SAID}").stdout
        (self.directory / f"{name.replace(' ', '-')}-said.txt").write_text(text)
        if followed:
            self.demand(text.rstrip().endswith("[0]"), f"{name}: rehearse: {text[-400:]}")

