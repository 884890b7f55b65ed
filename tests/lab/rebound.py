"""The driver of the GPU that stays goes and comes back while the VM runs.

With the console on that GPU's framebuffer this is what crashes a host whose only
console driver is fbcon: the consoles must have somewhere to fall.
"""

from __future__ import annotations

from . import monitors
from .monitors import OTHER_TEXT, TEXT
from .trial import LOOK, Trial


class Rebound(Trial):
    """Starts and destroys the VM; in the second cycle the host's driver is unbound meanwhile."""

    def meanwhile(self, name: str, number: int) -> None:
        """Take the driver away, write on the console that is nowhere, bring it back."""
        # The first cycle is the one that is recorded.
        if number == 1:
            return
        stays = self.scenario.stays[-1]
        address = self.gpus[stays].address
        device = f"/sys/bus/pci/devices/{address}"
        driver = self.machine.run(f"basename $(readlink {device}/driver)").stdout.strip()
        gone = self.machine.run(f"echo {address} > {device}/driver/unbind")
        self.demand(gone.ok, f"{name}: cannot unbind {driver}: {gone.stderr.strip()}")
        left = self.machine.run("cat /proc/fb").stdout.strip()
        self.demand(not left, f"{name}: a framebuffer is left without {driver}: {left}")
        self.write(OTHER_TEXT)
        self.machine.run(LOOK)
        back = self.machine.run(f"echo {address} > /sys/bus/pci/drivers/{driver}/bind; sleep 2")
        self.demand(back.ok, f"{name}: cannot bind {driver}: {back.stderr.strip()}")
        self.machine.run(LOOK)
        one = self.photograph(f"{name}-rebound-other", OTHER_TEXT)[stays]
        other = self.photograph(f"{name}-rebound", TEXT)[stays]
        self.demand(monitors.alive(one, other), f"{name}: the console is dead after the rebind")
        self.check_kernel(f"{name}, rebound")
