"""Cycles of which the first one runs under strace: what the hook did to the host's consoles."""

from __future__ import annotations

from . import trace
from .pictures import Picture
from .trial import HOOK, Trial

TRACE = "/run/lab-trace"
GATE = f"{HOOK}-traced"
# With --seccomp-bpf only the calls that are looked for stop their process. -X verbose
# writes the numbers that trace.py reads and the names that people read.
STRACE = f"""#!/bin/sh
exec /usr/bin/strace -f --seccomp-bpf -y -s 128 -X verbose -e signal=none \
    -e trace={",".join(trace.CALLS)} -A -o {TRACE} {GATE} "$@"
"""


class Traced(Trial):
    """Starts and destroys the VM with strace between libvirtd and the hook, and reads the trace."""

    def cycle(self, number: int) -> None:
        """The first cycle under strace, the others without."""
        if number > 1:
            super().cycle(number)
            return
        self.machine.run(f"mv {HOOK} {GATE}")
        self.machine.put(f"{HOOK}.new", STRACE.encode())
        self.machine.run(f"chmod 755 {HOOK}.new; mv {HOOK}.new {HOOK}")
        super().cycle(number)
        self.machine.run(f"mv {GATE} {HOOK}")
        content = self.machine.get(TRACE) or b""
        (self.directory / "strace.txt").write_bytes(content)
        seen = trace.read(content.decode(errors="replace"))
        for event in ("prepare", "start", "started", "release"):
            self.demand(event in seen.events, f"the trace does not show the hook's {event}")
        self.result.notes.append(
            f"strace: {len(seen.calls)} calls of the hook, {len(seen.console_changes)} on consoles"
        )
        self.check_trace(seen)

    def check_trace(self, seen: trace.Seen) -> None:
        """What the trace must show."""
        raise NotImplementedError


class Moved(Traced):
    """The consoles move, and the trace shows how: so it would show it elsewhere too."""

    def check_trace(self, seen: trace.Seen) -> None:
        """At least all 63 consoles were mapped to the GPU that stays."""
        mapped = [call for call in seen.console_changes if "FBIOPUT_CON2FBMAP" in call.text]
        self.demand(len(mapped) >= 63, f"the trace shows {len(mapped)} consoles mapped, not 63")


class Untouched(Traced):
    """What leaves carries no console: not one write to any, and not one pixel changes."""

    shown: Picture | None = None

    def check_trace(self, seen: trace.Seen) -> None:
        """No change of a console, vtconsole or framebuffer."""
        for call in seen.console_changes[:5]:
            self.demand(False, f"the hook changes the host's console: {call.text}")

    def check_running(self, name: str) -> None:
        """The monitor shows what it showed before the VM was started, to the pixel."""
        super().check_running(name)
        self.check_unchanged(name, "while the VM runs")

    def check_console(self, name: str, number: int) -> None:
        """The same when it is gone, and the console lives."""
        self.check_unchanged(name, "after the VM")
        super().check_console(name, number)

    def check_unchanged(self, name: str, when: str) -> None:
        """Compare with the picture of before the start; the text on the console is the same."""
        now = self.monitor()
        now.write_png(self.directory / f"{name}-untouched-{when.split()[0]}.png")
        self.demand(now == self.shown, f"{name}: the monitor's picture changed {when}")

    def start(self) -> str | None:
        """Look at the whole monitor, then start the VM."""
        self.shown = self.monitor()
        return super().start()

    def monitor(self) -> Picture:
        """All that the monitor of the console shows."""
        return self.machine.screendump(self.scenario.monitor)
