"""kmscon draws the host's console: it is stopped for the VM and comes back.

The texts of the pictures are written to the terminal that kmscon shows. Without any
configuration the VM starts; while it runs, kmscon has ended, or draws on the GPU that stays.
"""

from __future__ import annotations

from . import monitors
from .trial import Trial

UNIT = "kmsconvt@tty1.service"
LOOK_AT_UNIT = f"systemctl status --no-pager -n 20 {UNIT}; fuser -v /dev/dri/card* /dev/fb*"
SHOWN_WITHIN_S = 120


class Kmscon(Trial):
    """The VM starts beside kmscon, which has the card open, and kmscon's console is back."""

    def find_console(self) -> bool:
        """Start kmscon, and check that the monitor shows its terminal."""
        # login(1) ends after a minute, and then kmscon's terminal is another one.
        self.machine.run("sed -i 's/^LOGIN_TIMEOUT.*/LOGIN_TIMEOUT 0/' /etc/login.defs")
        self.machine.put("/etc/kmscon/kmscon.conf", b"no-blink\ndpms-timeout=0\n")
        self.machine.run(f"systemctl start {UNIT}")
        if not self.demand(bool(self.terminal()), "kmscon shows no terminal"):
            self.machine.run(LOOK_AT_UNIT)
            return False
        self.machine.run(LOOK_AT_UNIT)
        return super().find_console()

    def write(self, text: tuple[str, ...]) -> None:
        """Show a text on kmscon's terminal."""
        self.machine.put("/run/lab-text", monitors.as_written(text))
        self.machine.run(f"timeout 20 cat /run/lab-text > /dev/{self.terminal()}; sleep 2")

    def terminal(self) -> str:
        """The terminal that kmscon shows, such as "pts/0", once there is one; or ""."""
        main = f"$(systemctl show -P MainPID {UNIT})"
        look = f"ps -o tty= --ppid {main} | grep -m 1 pts"
        tries = f"[ $((n += 1)) -lt {SHOWN_WITHIN_S} ] || exit 1; sleep 1"
        found = self.machine.run(f"n=0; until {look}; do {tries}; done", SHOWN_WITHIN_S + 60)
        return found.stdout.strip()

    def check_running(self, name: str) -> None:
        """The VM has the GPU; kmscon has ended, unless a GPU stays on which it draws."""
        super().check_running(name)
        self.machine.run(LOOK_AT_UNIT)
        active = self.active()
        wanted = bool(self.scenario.stays)
        self.demand(active is wanted, f"{name}: kmscon {'runs' if active else 'does not run'}")

    def check_console(self, name: str, number: int) -> None:
        """The console is back, and kmscon has the card open again."""
        super().check_console(name, number)
        self.machine.run(LOOK_AT_UNIT)
        self.demand(self.active(), f"{name}: kmscon does not run")
        cards = len(self.scenario.gpus)
        held = self.machine.run("fuser /dev/dri/card* 2>/dev/null | wc -w").stdout.split()
        self.demand(held == [str(cards)], f"{name}: kmscon has not {cards} cards open: {held}")
        status = self.machine.run("vfio-console-hook status").stdout
        named = "the host's consoles: kmscon on tty1, above " in status
        self.demand(named, f"{name}: status does not speak of kmscon: {status}")

    def active(self) -> bool:
        """Whether the unit is active."""
        return self.machine.run(f"systemctl is-active {UNIT}").stdout.strip() == "active"
