"""A desktop on the GPU: its display manager is stopped for the VM and comes back.

The monitor shows the login box of a real display manager on a real display
server. Without the configuration that lists the unit, the VM is refused and the
desktop keeps running. After the VM the same picture must be there.
"""

from __future__ import annotations

import time

from . import monitors
from .pictures import Picture
from .trial import CONFIG_FILE, LOOK, Trial

UNIT = "display-manager.service"
LOOK_AT_UNIT = (
    f"systemctl show -p Id,ActiveState,SubState,Result,MainPID {UNIT};"
    " ps -eo pid,ppid,stat,tty,args | grep -E '[x]dm|[X]org'; cat /sys/class/tty/tty0/active;"
    " fuser -v /dev/dri/card0 /dev/fb0"
)
# An emulated display server takes half a minute to complete its picture.
SHOWN_WITHIN_S = 150
# A login box on a dark or stippled ground lights more pixels than text on the console.
BOX_LIT_AT_LEAST = 0.05


class Desktop(Trial):
    """The VM is refused beside the desktop, then started with it stopped; the desktop is back."""

    def run(self) -> None:
        """Set up, let the VM be refused, then start and destroy it."""
        if not self.set_up():
            return
        if not self.scenario.hook:
            self.without_hook()
            return
        self.refused()
        self.machine.put(CONFIG_FILE, self.scenario.config.encode())
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)

    def configure(self) -> None:
        """Write nothing yet: first the VM must be refused."""

    def find_console(self) -> bool:
        """Check that a native driver has the GPU, and that its monitor shows the login box."""
        self.machine.run(LOOK)
        framebuffer = self.machine.run("cat /proc/fb").stdout.partition(" ")[2]
        right = framebuffer.startswith(self.scenario.console)
        if not self.demand(right, f"the framebuffer is {framebuffer.strip()!r}"):
            return False
        shown = self.still("desktop")
        self.machine.run(LOOK_AT_UNIT)
        self.machine.run("cat /var/log/Xorg.0.log /var/log/xdm.log")
        self.reference = shown
        lit = shown is not None and shown.lit() >= BOX_LIT_AT_LEAST
        return self.demand(lit and self.active(), "the monitor does not show the desktop")

    def refused(self) -> None:
        """Start the VM in vain: the error names the display server and its unit."""
        name = "refused"
        self.machine.note(name)
        self.mark(name)
        server = self.server()
        self.plan(name)
        error = self.start() or "nothing, the VM started"
        named = f"Xorg ({server}) [xdm.service]"
        self.demand(named in error, f"{name}: no {named!r} in the error: {error}")
        self.demand(self.server() == server, f"{name}: the display server is another one now")
        self.check_desktop(name)
        self.check_kernel(name)
        self.check_claims(name)

    def check_running(self, name: str) -> None:
        """The VM has the GPU, and the display manager and server have ended."""
        super().check_running(name)
        self.machine.run(LOOK_AT_UNIT)
        self.demand(not self.active(), f"{name}: the display manager runs beside the VM")
        self.demand(not self.server(), f"{name}: the display server runs beside the VM")
        assert self.reference is not None
        gone = not monitors.same(self.reference, self.picture(f"{name}-meanwhile"))
        self.demand(gone, f"{name}: the monitor still shows the desktop")

    def check_console(self, name: str, number: int) -> None:
        """The desktop is back."""
        self.check_desktop(name)

    def check_desktop(self, name: str) -> None:
        """The unit is active, and the monitor shows the first picture."""
        began = time.monotonic()
        after = self.still(f"{name}-after")
        self.machine.run(LOOK_AT_UNIT)
        self.machine.run(LOOK)
        self.demand(self.active(), f"{name}: the display manager does not run")
        if self.demand(after is not None, f"{name}: the monitor does not show the desktop"):
            self.report(f"{name}: the desktop after {time.monotonic() - began:.0f} s")
            self.check_lives(name)

    def check_lives(self, name: str) -> None:
        """The display server still draws: the picture is not frozen."""
        assert self.reference is not None
        authority = "$(ps -o args= -C Xorg | sed 's/.* -auth //')"
        paint = f"DISPLAY=:0 XAUTHORITY={authority} timeout 30 xsetroot -solid"
        self.machine.run(f"{paint} '#3060a0'; sleep 2")
        painted = self.picture(f"{name}-painted")
        self.machine.run(f"{paint} black; sleep 2")
        lives = monitors.alive(self.reference, painted)
        self.demand(lives, f"{name}: the display server does not draw any more")

    def without_hook(self) -> None:
        """What happens without the hook. Every command has a timeout: this may hang the host."""
        self.machine.note("without the hook")
        self.mark("without the hook")
        answer = self.machine.run("timeout -k 5 90 virsh start gpu", 120)
        self.report(f"virsh start: status {answer.status} {answer.stderr.strip()}")
        time.sleep(10)
        self.picture("control-during")
        self.machine.run(LOOK_AT_UNIT)
        listed = self.machine.run("timeout -k 5 30 virsh list --all", 60)
        self.report(f"virsh list: status {listed.status}")
        maps = self.machine.run("grep vfio /proc/$(cat /run/libvirt/qemu/gpu.pid)/maps")
        self.report(f"vfio mappings of QEMU: {len(maps.stdout.splitlines())}")
        answer = self.machine.run("timeout -k 5 90 virsh destroy gpu", 120)
        self.report(f"virsh destroy: status {answer.status} {answer.stderr.strip()}")
        after = self.still("control-after", 60)
        self.machine.run(LOOK_AT_UNIT)
        self.machine.run(
            "tail -n 40 /var/log/Xorg.0.log; ps -eo pid,stat,wchan:30,args | head -200"
        )
        self.demand(after is None, "without the hook the desktop came back too")
        self.check_kernel("control")

    def report(self, text: str) -> None:
        """Add a note to the result and to the transcript."""
        self.result.notes.append(text)
        self.machine.note(text)

    def active(self) -> bool:
        """Whether the display manager's unit is active."""
        return self.machine.run(f"systemctl is-active {UNIT}").stdout.strip() == "active"

    def server(self) -> str:
        """The process id of the display server, "" when there is none."""
        return self.machine.run("pgrep -x Xorg").stdout.strip()

    def picture(self, name: str) -> Picture:
        """The whole monitor, kept as a PNG file."""
        picture = self.machine.screendump(0)
        picture.write_png(self.directory / f"{name}.png")
        return picture

    def still(self, name: str, within_s: float = SHOWN_WITHIN_S) -> Picture | None:
        """The monitor once it shows the complete desktop; None if it does not within the time.

        Complete is a picture that no longer changes and is the first one, once that is known.
        """
        until = time.monotonic() + within_s
        before = self.picture(name)
        while time.monotonic() < until:
            time.sleep(4)
            now = self.picture(name)
            if self._complete(now) and now.difference(before) == 0:
                return now
            before = now
        return None

    def _complete(self, now: Picture) -> bool:
        if self.reference is not None:
            return monitors.same(self.reference, now)
        return now.lit() >= BOX_LIT_AT_LEAST and bool(self.server())
