"""A GPU is taken and given back by hand: `take` binds it to vfio-pci, not libvirt."""

from __future__ import annotations

from .trial import Trial


class ByHand(Trial):
    """take --vfio, then a VM that must not start, recover, and give."""

    def run(self) -> None:
        """Take and give once in each cycle of the scenario."""
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
        """Take the GPU, try to start the VM and to recover, give the GPU back."""
        (gpu,) = self.leaving
        driver = f"basename $(readlink /sys/bus/pci/devices/{gpu.address}/driver)"
        take = self.machine.run(f"vfio-console-hook take --vfio {gpu.address}", 120)
        self.demand(take.ok, f"{name}: take: {take.stderr}")
        bound = self.machine.run(driver).stdout.strip()
        self.demand(bound == "vfio-pci", f"{name}: taken, it is bound to {bound!r}")
        reserved = self.machine.run("cat /proc/iomem").stdout
        self.demand("efifb" not in reserved, f"{name}: taken, efifb still reserves memory")
        self.machine.run("vfio-console-hook status")
        error = self.start() or ""
        self.demand("was taken by hand" in error, f"{name}: virsh start: {error}")
        recover = self.machine.run("vfio-console-hook recover", 60)
        self.demand("taken by hand" in recover.stdout, f"{name}: recover: {recover.stdout}")
        self.demand(
            self.machine.run(driver).stdout.strip() == "vfio-pci", f"{name}: recover released it"
        )
        give = self.machine.run(f"vfio-console-hook give {gpu.address}", 120)
        self.demand(give.ok, f"{name}: give: {give.stderr}")
