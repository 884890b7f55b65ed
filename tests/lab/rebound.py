"""The driver of the GPU that stays is unbound and bound again while the VM runs.

The console is on that GPU's framebuffer. A host whose only console driver is fbcon
crashes then: another console driver must be able to take the consoles.
"""

from __future__ import annotations

from . import monitors
from .monitors import OTHER_TEXT, TEXT
from .trial import LOOK, Trial


class Rebound(Trial):
    """Starts and destroys the VM; in the second cycle the host's driver is unbound and bound."""

    def meanwhile(self, name: str, number: int) -> None:
        """Unbind the driver, write to the console without a framebuffer, bind the driver."""
        # Snapshots are taken in the first cycle.
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
