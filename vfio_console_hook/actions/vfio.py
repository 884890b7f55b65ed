"""Binding to vfio-pci without libvirt, for GPUs that are taken by hand."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StepError
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action, require_on_bus


@dataclass(frozen=True)
class BindVfio(Action):
    """Bind a device to vfio-pci, as libvirt does (virPCIDeviceBindWithDriverOverride)."""

    gpu: str
    kind = "bind-vfio"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu):
            return
        require_on_bus(host, self.gpu)
        if not host.exists("sys/bus/pci/drivers/vfio-pci"):
            host.run("/sbin/modprobe", "vfio-pci")
        _rebind(host, self.gpu, "vfio-pci")
        if not is_vfio(host, self.gpu):
            raise StepError(
                f"{self.gpu} is not bound to vfio-pci after a bind",
                hint="is the IOMMU on? see `journalctl -k`",
            )

    def shell(self) -> str:
        return _shell(self.gpu, "vfio-pci")

    def past(self) -> str:
        return f"bound {self.gpu} to vfio-pci"


@dataclass(frozen=True)
class UnbindVfio(Action):
    """Unbind a device from vfio-pci and probe for the host's own driver."""

    gpu: str
    kind = "unbind-vfio"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if is_vfio(host, self.gpu) or host.read(f"{device}/driver_override") == "vfio-pci":
            _rebind(host, self.gpu, "")
        if is_vfio(host, self.gpu):
            raise StepError(f"{self.gpu} is still bound to vfio-pci after an unbind")

    def shell(self) -> str:
        return _shell(self.gpu, "")

    def past(self) -> str:
        return f"unbound {self.gpu} from vfio-pci"


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
