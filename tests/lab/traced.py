"""Cycles, the first of which runs under strace to show what the hook does to the consoles."""

from __future__ import annotations

from . import trace, wrapper
from .pictures import Picture
from .trial import HOOK, Trial

TRACE = "/run/lab-trace"
GATE = f"{HOOK}-traced"
# With --seccomp-bpf only the listed calls stop their process. -X verbose writes the
# numbers that trace.py reads and the names that people read.
STRACE = f"""#!/bin/sh
exec /usr/bin/strace -f --seccomp-bpf -y -s 128 -X verbose -e signal=none \
    -e trace={",".join(trace.CALLS)} -A -o {TRACE} {{hook}} "$@"
"""


class Traced(Trial):
    """Starts and destroys the VM with strace between libvirtd and the hook; checks the trace."""

    def cycle(self, number: int) -> None:
        """The first cycle under strace, the others without."""
        if number > 1:
            super().cycle(number)
            return
        wrapper.install(self.machine, HOOK, STRACE, GATE)
        super().cycle(number)
        wrapper.remove(self.machine, HOOK, GATE)
        content = self.machine.get(TRACE) or b""
        (self.directory / "strace.txt").write_bytes(content)
        seen = trace.read(content.decode(errors="replace"))
        for event in ("prepare", "start", "started", "release"):
            self.demand(event in seen.events, f"the trace does not show the hook's {event}")
        self.result.notes.append(
            f"strace: {len(seen.calls)} calls of the hook, {len(seen.console_changes)} on consoles"
        )
        self.check_trace(seen)

    def check_trace(self, seen: trace.HookTrace) -> None:
        """Demand what the trace must show."""
        raise NotImplementedError


class Moved(Traced):
    """The consoles move, and the trace shows it; so it would also show it in Untouched."""

    def check_trace(self, seen: trace.HookTrace) -> None:
        """At least all 63 consoles were mapped to the GPU that stays."""
        mapped = [call for call in seen.console_changes if "FBIOPUT_CON2FBMAP" in call.text]
        self.demand(len(mapped) >= 63, f"the trace shows {len(mapped)} consoles mapped, not 63")


class Untouched(Traced):
    """The VM's GPU shows no console: the hook writes to no console, and no pixel changes."""

    shown: Picture | None = None

    def check_trace(self, seen: trace.HookTrace) -> None:
        """No change of a console, vtconsole or framebuffer."""
        for call in seen.console_changes[:5]:
            self.demand(False, f"the hook changes the host's console: {call.text}")

    def check_running(self, name: str) -> None:
        """The monitor shows exactly the picture of before the VM's start."""
        super().check_running(name)
        self.check_unchanged(name, "while the VM runs")

    def check_console(self, name: str, number: int) -> None:
        """The picture is the same after the VM, and the console is alive."""
        self.check_unchanged(name, "after the VM")
        super().check_console(name, number)

    def check_unchanged(self, name: str, when: str) -> None:
        """Compare with the picture of before the start, when the console had the same text."""
        now = self.monitor()
        now.write_png(self.directory / f"{name}-untouched-{when.split()[0]}.png")
        self.demand(now == self.shown, f"{name}: the monitor's picture changed {when}")

    def start(self) -> str | None:
        """Take a picture of the whole monitor, then start the VM."""
        self.shown = self.monitor()
        return super().start()

    def monitor(self) -> Picture:
        """The whole picture on the console's monitor."""
        return self.machine.screendump(self.scenario.monitor)
