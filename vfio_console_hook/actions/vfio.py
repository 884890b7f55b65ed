"""Binding to vfio-pci, where no libvirt does it: GPUs that a person takes by hand."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StepError
from ..machine.gpu import is_vfio
from ..machine.host import Host
from .action import Action, see_on_bus


@dataclass(frozen=True)
class BindVfio(Action):
    """Bind a device to vfio-pci, as libvirt does (virPCIDeviceBindWithDriverOverride)."""

    gpu: str
    kind = "bind-vfio"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu):
            return
        see_on_bus(host, self.gpu)
        if not host.exists("sys/bus/pci/drivers/vfio-pci"):
            host.run("/sbin/modprobe", "vfio-pci")
        _rebind(host, self.gpu, "vfio-pci")
        if not is_vfio(host, self.gpu):
            raise StepError(
                f"{self.gpu} is not on vfio-pci after binding it",
                hint="is the IOMMU on? see `journalctl -k`",
            )

    def shell(self) -> str:
        return _shell(self.gpu, "vfio-pci")

    def past(self) -> str:
        return f"bound {self.gpu} to vfio-pci"


@dataclass(frozen=True)
class UnbindVfio(Action):
    """Take a device off vfio-pci and let the host's own driver have it, if there is one."""

    gpu: str
    kind = "unbind-vfio"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if is_vfio(host, self.gpu) or host.read(f"{device}/driver_override") == "vfio-pci":
            _rebind(host, self.gpu, "")
        if is_vfio(host, self.gpu):
            raise StepError(f"{self.gpu} is still on vfio-pci after taking it off")

    def shell(self) -> str:
        return _shell(self.gpu, "")

    def past(self) -> str:
        return f"took {self.gpu} off vfio-pci"


def _rebind(host: Host, address: str, override: str) -> None:
    device = f"sys/bus/pci/devices/{address}"
    host.write(f"{device}/driver_override", f"{override}\n")
    if host.link_name(f"{device}/driver") is not None:
        host.write(f"{device}/driver/unbind", address)
    host.write("sys/bus/pci/drivers_probe", address)


def _shell(address: str, override: str) -> str:
    device = f"/sys/bus/pci/devices/{address}"
    return (
        f"echo '{override}' > {device}/driver_override; echo {address} > {device}/driver/unbind;"
        f" echo {address} > /sys/bus/pci/drivers_probe"
    )
