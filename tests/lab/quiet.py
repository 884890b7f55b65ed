"""A quiet boot on a kernel whose fbcon takes the consoles over with the first text.

It must stay quiet: the hook neither forces the takeover nor misses the consoles. The text at
the end brings them up as if no VM had run.
"""

from __future__ import annotations

from .monitors import LIT_AT_LEAST, OTHER_TEXT, TEXT, alive
from .trial import LOOK, Trial

_DRIVERS = "cat /sys/class/vtconsole/*/name"
_TAKEN = "dmesg | grep -c 'fbcon: Taking over console'"


class Quiet(Trial):
    """Starts and destroys the VM on a host that has drawn no text."""

    def find_console(self) -> bool:
        """Check that fbcon has not taken over; nothing is written to the console."""
        self.machine.run(LOOK)
        self.pictures("boot")
        return self.check_quiet("before any VM")

    def cycle(self, number: int) -> None:
        """Start and destroy the VM; the consoles are not drawn in between."""
        self.machine.note(f"cycle {number}")
        self.mark(f"cycle {number}")
        name = f"cycle{number}"
        self.plan(name)
        self.output("status")
        if self.demand(self.start() is None, f"{name}: the VM does not start"):
            self.check_running(name)
            self.pictures(f"{name}-during")
            self.check_quiet(f"{name}: while the VM runs")
            self.machine.run("virsh destroy gpu", 180)
        self.pictures(f"{name}-after")
        self.check_quiet(f"{name}: after the VM")
        self.check_kernel(name)
        self.check_claims(name)
        if number == self.scenario.cycles:
            self.check_first_text()

    def check_quiet(self, when: str) -> bool:
        """fbcon is no console driver yet, and has not announced that it takes over."""
        drivers = self.machine.run(_DRIVERS).stdout.splitlines()
        taken = self.machine.run(_TAKEN).stdout.strip()
        quiet = drivers == ["(S) dummy device"] and taken == "0"
        return self.demand(quiet, f"{when}: not quiet: {drivers}, {taken} takeovers")

    def check_first_text(self) -> None:
        """The first text is on the monitor, and the next one too."""
        self.write(TEXT)  # it begins the takeover, which a work item does
        one = self.photograph("text", TEXT)[self.scenario.monitor]
        other = self.photograph("other-text", OTHER_TEXT)[self.scenario.monitor]
        shown = one.lit() >= LIT_AT_LEAST and alive(one, other)
        self.demand(shown, "the first text does not bring the console up")
