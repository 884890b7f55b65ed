"""A GPU taken and given back by hand, bound to vfio-pci by the command and not by libvirt."""

from __future__ import annotations

from .trial import Trial


class ByHand(Trial):
    """take --vfio, a VM of libvirt's that must not have it, recover, then give."""

    def run(self) -> None:
        """Take and give as often as the scenario says."""
        if not self.set_up():
            return
        for number in range(1, self.scenario.cycles + 1):
            self.machine.note(f"by hand {number}")
            self.mark(f"by hand {number}")
            self.take_and_give(f"hand{number}")
            self.check_console(f"hand{number}", number)
            self.check_kernel(f"hand{number}")
            self.check_claims(f"hand{number}")

    def take_and_give(self, name: str) -> None:
        """All that a person can do with one GPU."""
        (gpu,) = self.leaving
        driver = f"basename $(readlink /sys/bus/pci/devices/{gpu.address}/driver)"
        take = self.machine.run(f"vfio-console-hook take --vfio {gpu.address}", 120)
        self.demand(take.ok, f"{name}: take: {take.stderr}")
        bound = self.machine.run(driver).stdout.strip()
        self.demand(bound == "vfio-pci", f"{name}: taken, it is bound to {bound!r}")
        claims = self.machine.run("cat /proc/iomem").stdout
        self.demand("efifb" not in claims, f"{name}: taken, efifb still claims memory")
        self.machine.run("vfio-console-hook status")
        error = self.start() or ""
        self.demand("was taken by hand" in error, f"{name}: virsh start: {error}")
        recover = self.machine.run("vfio-console-hook recover", 60)
        self.demand("taken by hand" in recover.stdout, f"{name}: recover: {recover.stdout}")
        self.demand(
            self.machine.run(driver).stdout.strip() == "vfio-pci", f"{name}: not left alone"
        )
        give = self.machine.run(f"vfio-console-hook give {gpu.address}", 120)
        self.demand(give.ok, f"{name}: give: {give.stderr}")
