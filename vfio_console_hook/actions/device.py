"""Changes of the GPU as a whole: its first driver, and its place on the PCI bus."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LostError, StepError
from ..machine.host import Host
from .action import Action


@dataclass(frozen=True)
class BindNative(Action):
    """Bind the GPU's own driver; the kernel then removes the firmware driver and its device."""

    gpu: str
    modalias: str
    kind = "bind-native"

    def apply(self, host: Host) -> None:
        host.run("/sbin/modprobe", "-b", self.modalias)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            host.write("sys/bus/pci/drivers_probe", self.gpu)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            raise StepError(f"no driver is bound to {self.gpu} after modprobe {self.modalias}")

    def shell(self) -> str:
        return f"modprobe -b {self.modalias} && echo {self.gpu} > /sys/bus/pci/drivers_probe"

    def past(self) -> str:
        return f"bound {self.gpu} to its own driver"


@dataclass(frozen=True)
class Rescan(Action):
    """Remove the GPU from the PCI bus and find it again, at another address in memory."""

    gpu: str
    kind = "rescan"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if host.exists(device):
            host.write(f"{device}/remove", "1")
            if host.exists(device):
                raise StepError(f"{self.gpu} is still on the PCI bus after it was removed")
        if not _rescan(host, device):
            raise StepError(f"{self.gpu} did not come back on the PCI bus after a rescan")

    def shell(self) -> str:
        return f"echo 1 > /sys/bus/pci/devices/{self.gpu}/remove; echo 1 > /sys/bus/pci/rescan"

    def past(self) -> str:
        return f"removed {self.gpu} from the PCI bus and found it again"


@dataclass(frozen=True)
class FindAgain(Action):
    """Rescan the PCI bus for the GPU if a Rescan was interrupted after the removal."""

    gpu: str
    kind = "find-again"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if host.exists(device):
            return
        if not _rescan(host, device):
            raise LostError(f"{self.gpu} is no longer on the PCI bus")

    def shell(self) -> str:
        return f"[ -e /sys/bus/pci/devices/{self.gpu} ] || echo 1 > /sys/bus/pci/rescan"

    def past(self) -> str:
        return f"made sure that {self.gpu} is on the PCI bus"


def _rescan(host: Host, device: str) -> bool:
    """Make the kernel search the PCI bus for new devices; whether it has found this one."""
    host.write("sys/bus/pci/rescan", "1")
    return host.wait(lambda: host.exists(f"{device}/resource"), 5)
