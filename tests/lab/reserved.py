"""The GPU is bound to vfio-pci by hand before the VM starts, and stays bound after the VM."""

from __future__ import annotations

from .trial import DOMAIN_FILE, Trial


class Reserved(Trial):
    """Starts and destroys the VM with managed='no': libvirt neither binds nor re-attaches."""

    def set_up(self) -> bool:
        """Set up, then bind the GPUs to vfio-pci as `driverctl set-override` does."""
        if not super().set_up():
            return False
        for gpu in self.leaving:
            device = f"/sys/bus/pci/devices/{gpu.address}"
            self.machine.run(
                f"modprobe vfio-pci; echo vfio-pci > {device}/driver_override;"
                f" echo {gpu.address} > /sys/bus/pci/drivers_probe"
            )
        unmanaged = f"sed -i s/managed=.yes./managed=\\'no\\'/ {DOMAIN_FILE}"
        define = self.machine.run(f"{unmanaged} && virsh define {DOMAIN_FILE}")
        self.demand(define.ok, f"virsh define: {define.stderr.strip()}")
        return self.check_bound("before") and define.ok

    def cycle(self, number: int) -> None:
        """Start and destroy the VM; the GPUs are still on vfio-pci."""
        super().cycle(number)
        self.check_bound(f"cycle{number}")

    def check_bound(self, name: str) -> bool:
        """Each GPU of the VM is on vfio-pci."""
        links = " ".join(f"/sys/bus/pci/devices/{gpu.address}/driver" for gpu in self.leaving)
        bound = self.machine.run(f"readlink {links}").stdout.count("/vfio-pci\n")
        return self.demand(
            bound == len(self.leaving), f"{name}: {bound} of the GPUs are on vfio-pci"
        )
