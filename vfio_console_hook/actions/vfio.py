"""Binding to vfio-pci without libvirt, for cards that are taken by hand."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StepError
from ..machine.host import Host
from ..machine.pci import VFIO, is_vfio
from .action import Action, require_on_bus


@dataclass(frozen=True, eq=False, repr=False)
class BindVfio(Action):
    """Bind a device to vfio-pci, as libvirt does (virPCIDeviceBindWithDriverOverride).

    gpu may also be the address of another function of its card. driver may be a variant of
    vfio-pci (machine/vfio_driver.py); its module has the same name.
    """

    gpu: str
    driver: str = VFIO
    kind = "bind-vfio"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu):
            return
        require_on_bus(host, self.gpu)
        if not host.exists(f"sys/bus/pci/drivers/{self.driver}"):
            host.run("/sbin/modprobe", self.driver)
        _rebind(host, self.gpu, self.driver)
        if not is_vfio(host, self.gpu):
            raise StepError(
                f"{self.gpu} is not bound to {self.driver} after a bind",
                hint="is the IOMMU on? see `journalctl -k`",
            )

    def shell(self) -> str:
        return _shell(self.gpu, self.driver)

    def past(self) -> str:
        return f"bound {self.gpu} to {self.driver}"


@dataclass(frozen=True, eq=False, repr=False)
class UnbindVfio(Action):
    """Unbind a device from vfio-pci and probe for the host's own driver."""

    gpu: str
    driver: str = VFIO
    kind = "unbind-vfio"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if is_vfio(host, self.gpu) or host.read(f"{device}/driver_override") == self.driver:
            _rebind(host, self.gpu, "")
        if is_vfio(host, self.gpu):
            raise StepError(f"{self.gpu} is still bound to {self.driver} after an unbind")

    def shell(self) -> str:
        return _shell(self.gpu, "")

    def past(self) -> str:
        return f"unbound {self.gpu} from {self.driver}"


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
