"""Changes of a firmware framebuffer, and of whether the kernel can match it to its GPU."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LostError, StepError
from ..machine import console, memory
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action, require_on_bus

CONSOLES_BACK = ("rebind", "register-coreboot")
"""The kinds of actions that bring a firmware console back."""

# Linux include/uapi/linux/pci_regs.h
PCI_COMMAND = 4
PCI_COMMAND_MEMORY = 0x2


@dataclass(frozen=True, eq=False, repr=False)
class Unbind(Action):
    """Unbind the driver of a platform device."""

    device: str
    driver: str
    kind = "unbind"

    def apply(self, host: Host) -> None:
        if host.link_name(f"sys/bus/platform/devices/{self.device}/driver") != self.driver:
            return
        host.write(f"sys/bus/platform/drivers/{self.driver}/unbind", self.device)
        if host.link_name(f"sys/bus/platform/devices/{self.device}/driver") is not None:
            raise StepError(f"{self.device} is still bound to {self.driver} after an unbind")

    def shell(self) -> str:
        return f"echo {self.device} > /sys/bus/platform/drivers/{self.driver}/unbind"

    def past(self) -> str:
        return f"unbound {self.device} from {self.driver}"


@dataclass(frozen=True, eq=False, repr=False)
class Rebind(Action):
    """Bind the driver of a firmware framebuffer again, where that is still safe.

    first and last are the memory that it drew in, both inclusive; -1 when that was not
    known. stays_on_vfio: the GPU was on vfio-pci before, and libvirt leaves it there. Raises
    LostError where it is not safe or the device is gone.
    """

    device: str
    driver: str
    gpu: str
    first: int
    last: int
    stays_on_vfio: bool = False
    kind = "rebind"

    def apply(self, host: Host) -> None:
        link = f"sys/bus/platform/devices/{self.device}"
        if self.gone(host):
            raise gone_for_good(self.device)
        if host.link_name(f"{link}/driver") is not None:
            return
        self._check_gpu(host)
        host.write(f"sys/bus/platform/drivers/{self.driver}/bind", self.device)
        if host.link_name(f"{link}/driver") != self.driver:
            raise StepError(f"{self.device} is not bound to {self.driver} after a bind")

    def missing(self, host: Host) -> LostError | None:
        return missing_console(host, self.device)

    def gone(self, host: Host) -> bool:
        """Whether the kernel has removed the device, which then comes back only with a reboot."""
        return host.real(f"sys/bus/platform/devices/{self.device}") is None

    def _check_gpu(self, host: Host) -> None:
        if is_vfio(host, self.gpu):
            from .vfio import UnbindVfio  # only for a GPU that stays there

            raise LostError(
                f"{self.device} stays unbound while {self.gpu} is on vfio-pci",
                hint=f"to have its console, run `{UnbindVfio(self.gpu).shell()}; {self.shell()}`",
            )
        check_drawable(host, self.device, self.gpu, self.first, self.last)

    def shell(self) -> str:
        return f"echo {self.device} > /sys/bus/platform/drivers/{self.driver}/bind"

    def past(self) -> str:
        return f"bound {self.device} to {self.driver} again"


def gone_for_good(device: str) -> LostError:
    """The error for a platform device that the kernel has removed."""
    return LostError(f"the firmware console will not come back before a reboot: {device} is gone")


def missing_console(host: Host, device: str) -> LostError | None:
    """What is missing of the console on a firmware's device; None while any console is shown."""
    link = f"sys/bus/platform/devices/{device}"
    if not console.dark(host):
        return None
    if host.real(link) is None:
        return gone_for_good(device)
    if host.link_name(f"{link}/driver") is None:
        return LostError(f"the firmware console is off: no driver is bound to {device}")
    return None


def check_drawable(host: Host, device: str, gpu: str, first: int, last: int) -> None:
    """Raise LostError or StepError unless a firmware driver can draw where it drew at boot.

    It does so whatever has happened to the BAR since (Linux efifb.c, efifb_probe), and at a
    wrong address it writes to other memory. first and last are as in Rebind.
    """
    require_on_bus(host, gpu)
    driver = host.link_name(f"sys/bus/pci/devices/{gpu}/driver")
    if driver is not None:
        raise LostError(f"{device} stays unbound: {driver} drives {gpu} now")
    bars = memory.memory_bars(host, gpu)
    drawn = memory.Range(first, last)
    if first >= 0 and not any(bar.range.holds(drawn) for bar in bars):
        raise LostError(f"{device} stays unbound: the memory of {gpu} has moved away from {drawn}")
    if not decodes_memory(host, gpu):
        raise StepError(f"{device} cannot be bound: {gpu} does not decode its memory")


def decodes_memory(host: Host, gpu: str) -> bool:
    """Whether the device is awake and answers to its memory BARs (PCI_COMMAND_MEMORY)."""
    command = _command(host, gpu)
    # A device that is off or in D3cold reads as all ones.
    return command != 0xFFFF and bool(command & PCI_COMMAND_MEMORY)


def _command(host: Host, gpu: str) -> int:
    raw = host.peek(f"sys/bus/pci/devices/{gpu}/config", PCI_COMMAND, 2)
    return int.from_bytes(raw, "little")


@dataclass(frozen=True, eq=False, repr=False)
class Decode(Action):
    """Switch memory decoding of a GPU on or off.

    While it is off, the kernel cannot match a firmware framebuffer to the GPU, so
    vfio-pci does not remove its platform device (Linux drivers/firmware/sysfb.c,
    sysfb_parent_dev and sysfb_disable, 6.12).
    """

    gpu: str
    on: bool
    kind = "decode"

    def apply(self, host: Host) -> None:
        require_on_bus(host, self.gpu)
        if is_vfio(host, self.gpu) or decodes_memory(host, self.gpu) == self.on:
            return  # vfio-pci manages the bit while the VM has the GPU
        command = _command(host, self.gpu)
        if command == 0xFFFF:
            raise StepError(f"{self.gpu} does not answer: its config space reads as all ones")
        wanted = command | PCI_COMMAND_MEMORY if self.on else command & ~PCI_COMMAND_MEMORY
        config = f"sys/bus/pci/devices/{self.gpu}/config"
        host.poke(config, PCI_COMMAND, wanted.to_bytes(2, "little"))
        if decodes_memory(host, self.gpu) != self.on:
            state = "on" if self.on else "off"
            raise StepError(f"cannot switch memory decoding of {self.gpu} {state}")

    def shell(self) -> str:
        return f"setpci -s {self.gpu} COMMAND={'2' if self.on else '0'}:2"

    def past(self) -> str:
        return f"switched memory decoding of {self.gpu} {'on' if self.on else 'off'}"
