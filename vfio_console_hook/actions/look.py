"""Looking whether the kernel has removed a firmware framebuffer."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LostError
from ..machine import console
from ..machine.host import Host
from .action import Action


@dataclass(frozen=True, eq=False, repr=False)
class LookFor(Action):
    """Report what has become of a platform device when gpu was on vfio-pci; changes nothing.

    Raises LostError when the device is gone.
    """

    device: str
    gpu: str
    kind = "look-for"

    def apply(self, host: Host) -> None:
        if self._gone(host):
            raise self._lost()

    def missing(self, host: Host) -> LostError | None:
        return self._lost() if self._gone(host) and console.dark(host) else None

    def _gone(self, host: Host) -> bool:
        return host.real(f"sys/bus/platform/devices/{self.device}") is None

    def _lost(self) -> LostError:
        return LostError(
            f"the firmware console on {self.device} will not come back before a reboot: vfio-pci"
            " has removed it"
        )

    def shell(self) -> str:
        return f"ls -d /sys/bus/platform/devices/{self.device}"

    def past(self) -> str:
        return f"vfio-pci has left {self.device} in place"
