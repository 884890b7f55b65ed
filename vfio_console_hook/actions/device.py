"""Changes of the GPU as a whole: its first driver, and its place on the PCI bus."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine.gpu import gpus_among
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action, require_on_bus


@dataclass(frozen=True, eq=False, repr=False)
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


@dataclass(frozen=True, eq=False, repr=False)
class LoadNative(Action):
    """Load the module of the GPU's own driver after a VM, and bind that to it.

    Nothing is done if the firmware's console is back. A blacklist only keeps udev from
    loading a module (modprobe.d(5)), and a GPU that was on vfio-pci before the VM is left
    there by libvirt, so both are overruled here. It leaves vfio-pci first, as nvidia does not load
    without a GPU (nv.c, nvidia_init_module), and is back there if the module does not load.
    """

    gpu: str
    module: str
    kind = "load-native"

    def apply(self, host: Host) -> None:
        require_on_bus(host, self.gpu)
        device = f"sys/bus/pci/devices/{self.gpu}"
        vfio = is_vfio(host, self.gpu)
        if not vfio and host.link_name(f"{device}/driver") is not None:
            return
        if any(one.driver for gpu in gpus_among(host, (self.gpu,)) for one in gpu.firmware):
            return
        self._load(host, device)
        # Not drivers_probe: vfio-pci matches the GPU too if it was given its id.
        for driver in self._drivers(host):
            if host.link_name(f"{device}/driver") is None:
                host.write(f"sys/bus/pci/drivers/{driver}/bind", self.gpu)
        lost = self.missing(host)
        if lost is not None:
            raise lost

    def _load(self, host: Host, device: str) -> None:
        """Load the module for a GPU that has no driver, or vfio-pci. Raises HostError."""
        before = host.link_name(f"{device}/driver")
        override = host.read(f"{device}/driver_override")
        if before:
            host.write(f"{device}/driver/unbind", self.gpu)
        if override == "vfio-pci":
            host.write(f"{device}/driver_override", "\n")
        try:
            host.run("/sbin/modprobe", self.module)
        except HostError:
            if override == "vfio-pci":
                host.write(f"{device}/driver_override", override)
            if before:
                host.write(f"sys/bus/pci/drivers/{before}/bind", self.gpu)
            raise

    def _drivers(self, host: Host) -> list[str]:
        """The PCI drivers that the module has brought; that of nvidia_drm is nvidia's."""
        from ..machine import drivers  # only for a GPU without a driver

        names = [one.partition(":") for one in host.list(f"sys/module/{self.module}/drivers")]
        found = [name for bus, _, name in names if bus == "pci"]
        return found or [
            name
            for name in (drivers.driver_of_module(self.module).name,)
            if host.exists(f"sys/bus/pci/drivers/{name}")
        ]

    def missing(self, host: Host) -> LostError | None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if not host.exists(device):
            return LostError(f"{self.gpu} is no longer on the PCI bus")
        if host.link_name(f"{device}/driver") is not None:
            return None
        if any(one.driver for gpu in gpus_among(host, (self.gpu,)) for one in gpu.firmware):
            return None
        from ..machine import power  # only for a GPU without its driver

        return LostError(
            f"{self.module} did not bind to {self.gpu} after the VM"
            + power.condition(host, self.gpu),
            hint=power.advice(host, self.gpu),
        )

    def shell(self) -> str:
        return (
            f"echo {self.gpu} > /sys/bus/pci/devices/{self.gpu}/driver/unbind;"
            f" modprobe {self.module};"
            f" echo {self.gpu} > /sys/module/{self.module}/drivers/pci:*/bind"
        )

    def past(self) -> str:
        return f"loaded {self.module} for {self.gpu}"


@dataclass(frozen=True, eq=False, repr=False)
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


@dataclass(frozen=True, eq=False, repr=False)
class FindAgain(Action):
    """Rescan the PCI bus for the GPU if a Rescan was interrupted after the removal."""

    gpu: str
    kind = "find-again"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if host.exists(device):
            return
        _rescan(host, device)
        lost = self.missing(host)
        if lost is not None:
            raise lost

    def missing(self, host: Host) -> LostError | None:
        there = host.exists(f"sys/bus/pci/devices/{self.gpu}")
        return None if there else LostError(f"{self.gpu} is no longer on the PCI bus")

    def shell(self) -> str:
        return f"[ -e /sys/bus/pci/devices/{self.gpu} ] || echo 1 > /sys/bus/pci/rescan"

    def past(self) -> str:
        return f"made sure that {self.gpu} is on the PCI bus"


def _rescan(host: Host, device: str) -> bool:
    """Make the kernel search the PCI bus for new devices; whether it has found this one."""
    host.write("sys/bus/pci/rescan", "1")
    return host.wait(lambda: host.exists(f"{device}/resource"), 5)
