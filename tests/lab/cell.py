"""A cell of the matrix: one start and destroy of the VM, observed rather than demanded.

The observation is the same with our hook, with the script that guides recommend, and
without a hook. Only with our hook there are demands: the promises that it makes. Every
command that could hang has a timeout.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

from . import kernel_log, monitors, phases
from .images import GUEST
from .machine import LostMachine
from .monitors import LIT_AT_LEAST, OTHER_TEXT, TEXT
from .observation import Console, Observation, Outlook, broken_promises, outlook_of
from .pictures import Picture
from .scenarios import GONE_SENTENCE
from .trial import BACK_WITHIN_S, HOOK, LOOK, Trial
from .vm import VM

# A start takes 10 to 25 s on a machine that is emulated beside another one.
ENDS_WITHIN_S = 100
RUNS_S = 5
SCRIPT_LOG = "/run/lab-script.log"
KILLED = 124  # timeout(1)


class CellTrial(Trial):
    """One start and destroy, with an Observation in the result."""

    seen: Observation

    def run(self) -> None:
        """Set up, observe, and demand that our hook kept its promises."""
        if not self.set_up():
            return
        self.seen = Observation(*self.versions())
        if self.scenario.script:
            self.install_script()
        try:
            self.observe()
        except LostMachine as e:
            if self.scenario.hook:
                raise
            self.fault(self.cause_of_loss(e))
        seen = self.seen
        self.result.notes.append(f"Linux {seen.kernel}, libvirt {seen.libvirt}: {seen.outcome}")
        if self.scenario.hook:
            for sentence in broken_promises(self.seen):
                self.demand(False, sentence)

    def observe(self) -> None:
        """Start and destroy the VM, and observe each phase."""
        self.machine.note("the VM")
        self.mark("the VM")
        self.photograph("before", TEXT)
        self.see(outlook=outlook_of(self.plan("before")))
        self.keep_phase("before")
        if self.scenario.hook:
            phases.begin(self.machine, self.hook_path)
        started = self.started()
        if started:
            time.sleep(RUNS_S)
            self.see(mapped=self.mapped_gpus(VM) == len(self.leaving))
            self.keep_phase("during")
        self.pictures("during")
        if started and self.scenario.stays:
            self.see(meanwhile=self.console("meanwhile", self.scenario.stays[-1], None))
        self.ended("virsh destroy gpu" if started else "virsh -q list")
        self.keep_phases()
        self.see(after=self.console_after())
        self.look_for_faults()
        if started and self.scenario.hook:
            self.keep_phase("after")
            self.check_predicted("the VM")

    def see(self, **what: object) -> None:
        """Note an observation, at once in the result too: the next command may lose the machine."""
        self.seen = replace(self.seen, **what)  # type: ignore[arg-type]  # any
        self.machine.note(f"seen: {what}")
        self.result.observation = self.seen

    def fault(self, text: str) -> None:
        """Note a fault."""
        self.see(faults=(*self.seen.faults, text))

    # Before

    def versions(self) -> tuple[str, str]:
        """The versions of the kernel and of libvirt."""
        built = self.machine.run("uname -v").stdout
        debian = re.search(r"Debian (\d[\d.]*)", built)
        release = self.machine.run("uname -r").stdout.strip()
        libvirt = self.machine.run("virsh --version").stdout.strip()
        return (debian[1] if debian else release, libvirt)

    def install_script(self) -> None:
        """Install the generic script as libvirt's hook; libvirt looks for hooks when it starts."""
        text = (GUEST / "generic-hook.sh").read_text()
        gpu = "pci_" + re.sub("[:.]", "_", self.leaving[0].address)
        self.machine.put(HOOK, text.replace("@GPU@", gpu).encode())
        self.machine.run(f"chmod 755 {HOOK}; systemctl restart libvirtd", 120)
        self.machine.run("until timeout 20 virsh -q list >/dev/null 2>&1; do sleep 1; done", 180)

    # While the VM runs

    def started(self) -> bool:
        """Start the VM; whether it runs."""
        began = time.monotonic()
        answer = self.machine.run(f"timeout -k 5 {ENDS_WITHIN_S} virsh start gpu", 240)
        self.see(start_s=round(time.monotonic() - began, 1))
        if answer.ok:
            return True
        if answer.status == KILLED:
            error = f"virsh start did not end within {ENDS_WITHIN_S} s"
        else:
            error = " ".join(answer.stderr.split())
        self.see(error=error)
        # A refusal is no fault if plan predicted it.
        if self.seen.outlook is not Outlook.REFUSED:
            self.fault(f"the VM does not start: {error}")
        return False

    def ended(self, command: str) -> None:
        """Run a virsh command that has to succeed; note a fault if it does not."""
        answer = self.machine.run(f"timeout -k 5 {ENDS_WITHIN_S} {command}", 240)
        if answer.status == KILLED:
            self.fault(f"{command} did not end within {ENDS_WITHIN_S} s")
        elif not answer.ok:
            self.fault(f"{command}: {' '.join(answer.stderr.split())}")

    # The monitors

    def console(self, name: str, monitor: int, like: Picture | None) -> Console:
        """The console on a monitor; visible only if it looks like a picture, if there is one."""
        other = self.photograph(f"{name}-other", OTHER_TEXT)[monitor]
        text = self.photograph(name, TEXT)[monitor]
        if not monitors.alive(other, text):
            return Console.DEAD
        same = text.lit() >= LIT_AT_LEAST and (like is None or monitors.same(like, text))
        return Console.VISIBLE if same else Console.DISTORTED

    def console_after(self) -> Console:
        """The console after the VM, once it is visible or BACK_WITHIN_S have passed."""
        until = time.monotonic() + BACK_WITHIN_S
        while True:
            seen = self.console("after", self.scenario.monitor, self.reference)
            if seen is Console.VISIBLE or time.monotonic() > until:
                self.machine.run(f"{LOOK}; lspci -k")
                return seen
            time.sleep(2)

    # Afterwards

    def look_for_faults(self) -> None:
        """Note the faults in the logs of the kernel and of our hook."""
        fault = kernel_log.gravest(kernel_log.since_mark(self.machine.run("dmesg").stdout))
        if fault:
            self.fault(f"kernel: {fault}")
        # The kernel's own buffer is too small for so many lines.
        count = f'journalctl -k -b -o cat | grep -c "{kernel_log.BLOCKED_BAR}"'
        blocked = int(self.machine.run(count, 120).stdout.strip() or 0)
        if blocked:
            times = "once" if blocked == 1 else f"{blocked} times"
            self.fault(f"kernel: {kernel_log.BLOCKED_BAR} BAR 0 ({times})")
        if self.scenario.script:
            self.machine.run(f"cat {SCRIPT_LOG}")
        if self.scenario.hook:
            self.check_claims("after")
            log = self.machine.run("journalctl -o cat -t vfio-console-hook").stdout
            self.see(logged_gone=bool(re.search(GONE_SENTENCE, log)))

    def cause_of_loss(self, lost: LostMachine) -> str:
        """Why a machine was lost, by its serial console."""
        serial = (self.directory / "serial.log").read_text(errors="replace")
        fault = kernel_log.gravest(serial)
        why = f"the kernel died: {fault}" if fault else str(lost)
        return f"the machine was lost: {why}"
