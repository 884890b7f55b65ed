"""Taking coreboot's framebuffer away and giving it back, on the bus that has registered it.

The driver "framebuffer" on the coreboot bus registers a platform device for it when it
is bound (Linux drivers/firmware/google/framebuffer-coreboot.c, framebuffer_probe). Its
remove function unregistered that again until "firmware: google: framebuffer: Do not unregister
platform device" (7.1, and backports of 2026): see stages/firmware/coreboot.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LostError, StepError
from ..machine import kernel
from ..machine.firmware import COREBOOT_DRIVER
from ..machine.host import Host
from .action import Action
from .firmware import check_drawable, missing_console

REMOVE = "framebuffer_remove"
"""The remove function; without it an unbind leaves the platform device alone."""


@dataclass(frozen=True, eq=False, repr=False)
class UnregisterCoreboot(Action):
    """Unbind the driver on the coreboot bus, which unregisters its platform device.

    entry is the device on that bus, device the platform device.
    """

    entry: str
    device: str
    kind = "unregister-coreboot"

    def apply(self, host: Host) -> None:
        if not _is_bound(host, self.entry):
            return
        host.write(f"{COREBOOT_DRIVER}/unbind", self.entry)
        if _exists(host, self.device):
            raise StepError(f"{self.device} is still there after an unbind of {self.entry}")

    def shell(self) -> str:
        return f"echo {self.entry} > /{COREBOOT_DRIVER}/unbind"

    def past(self) -> str:
        return f"unbound {self.entry} on the coreboot bus, which removed {self.device}"


@dataclass(frozen=True, eq=False, repr=False)
class RegisterCoreboot(Action):
    """Bind the driver on the coreboot bus anew, which registers its platform device again.

    driver is the one that was bound to the platform device, "" for none. gpu and what follows
    it are as in Rebind. Raises LostError where it is not safe.
    """

    entry: str
    device: str
    driver: str
    gpu: str
    first: int
    last: int
    stays_on_vfio: bool = False
    kind = "register-coreboot"

    def apply(self, host: Host) -> None:
        if _exists(host, self.device):
            return
        check_drawable(host, self.device, self.gpu, self.first, self.last)
        if _is_bound(host, self.entry):
            if kernel.has_symbol(host, REMOVE) is not False:
                # Its remove function would unregister a device that has been freed.
                raise LostError(
                    "the firmware console will not come back before a reboot: the kernel has"
                    f" removed {self.device}"
                )
            host.write(f"{COREBOOT_DRIVER}/unbind", self.entry)
        host.write(f"{COREBOOT_DRIVER}/bind", self.entry)
        if not _exists(host, self.device):
            raise StepError(f"{self.device} is not there after a bind of {self.entry}")
        now = host.link_name(f"sys/bus/platform/devices/{self.device}/driver") or ""
        if now != self.driver:
            raise StepError(f"{self.device} is bound to {now or 'no driver'} after a bind")

    def missing(self, host: Host) -> LostError | None:
        return missing_console(host, self.device)

    def shell(self) -> str:
        return (
            f"echo {self.entry} > /{COREBOOT_DRIVER}/unbind;"
            f" echo {self.entry} > /{COREBOOT_DRIVER}/bind"
        )

    def past(self) -> str:
        return f"bound {self.entry} on the coreboot bus again, which registered {self.device}"


def _is_bound(host: Host, entry: str) -> bool:
    return host.link_name(f"sys/bus/coreboot/devices/{entry}/driver") is not None


def _exists(host: Host, device: str) -> bool:
    return host.real(f"sys/bus/platform/devices/{device}") is not None
