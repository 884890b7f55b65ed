"""Changes of a GPU's own driver: taking it off, and seeing to it that it comes back.

Not all machines need them, so they are loaded where a stage or a claim names one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import LostError, StepError
from ..machine import console
from ..machine.gpu import is_vfio
from ..machine.host import Host
from .action import Action, see_on_bus
from .holders import AwaitClosed

VFIO = "vfio-pci"
_PCI = "sys/bus/pci"


def driver_of(host: Host, gpu: str) -> str | None:
    return host.link_name(f"{_PCI}/devices/{gpu}/driver")


def override_of(host: Host, gpu: str) -> str:
    """The driver that alone may take the GPU, "" when any may (drivers/pci/pci-sysfs.c)."""
    text = host.read(f"{_PCI}/devices/{gpu}/driver_override") or ""
    return "" if text == "(null)" else text


def has_node(host: Host, gpu: str, kind: str, prefix: str) -> bool:
    """Whether the GPU has a node of a kind: "drm" and "card", or "graphics" and "fb"."""
    return any(
        name.startswith(prefix) and console.pci_ancestor(host, f"sys/class/{kind}/{name}") == gpu
        for name in host.list(f"sys/class/{kind}")
    )


def take_back(host: Host, gpu: str) -> None:
    """Undo Reserve, of modules.py, if it is still so.

    On vfio-pci the GPU is rightly the VM's or the administrator's.
    """
    if not is_vfio(host, gpu) and override_of(host, gpu) == VFIO:
        host.write(f"{_PCI}/devices/{gpu}/driver_override", "\n")


@dataclass(frozen=True)
class UnbindNative(Action):
    """Take the GPU's own driver off it, once nobody has the GPU open.

    gpu may also be the address of another function of the GPU. driver "" means the
    one that it has then. wait_s, strict and nodes are those of AwaitClosed, which may
    be some steps ago, or of another VM that has just ended.
    """

    gpu: str
    driver: str
    wait_s: float
    strict: bool
    nodes: tuple[str, ...] = ()
    kind = "unbind-native"

    def apply(self, host: Host) -> None:
        driver = driver_of(host, self.gpu)
        if driver is None or is_vfio(host, self.gpu) or self.driver not in ("", driver):
            return
        AwaitClosed(self.gpu, self.nodes, self.wait_s, self.strict).apply(host)
        host.write(f"{_PCI}/drivers/{driver}/unbind", self.gpu)
        if driver_of(host, self.gpu) is not None:
            raise StepError(f"{self.gpu} is still bound to {driver} after an unbind")

    def shell(self) -> str:
        return f"echo {self.gpu} > /{_PCI}/devices/{self.gpu}/driver/unbind"

    def past(self) -> str:
        return f"unbound {self.gpu} from {self.driver or 'its driver'}"


@dataclass(frozen=True)
class ReturnNative(Action):
    """See to it that the GPU's own driver is back, with what it gave before.

    driver "" means any. card and framebuffer: whether there was a DRM card, and a
    framebuffer. reserved: whether Reserve was done. wait_s: how long each may take.

    libvirt probes before release, and does not look what became of it (virpci.c,
    virPCIDeviceUnbindFromStub). The first thing that is missing is told as lost.
    """

    gpu: str
    driver: str
    card: bool
    framebuffer: bool
    reserved: bool = False
    wait_s: float = 10
    kind = "return-native"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu):
            # After an earlier run with managed='no' libvirt leaves it there, and so it does
            # when it was killed while it started the VM.
            raise LostError(
                f"{self.driver or 'its driver'} did not come back to {self.gpu}: libvirt has left"
                " it on vfio-pci",
                hint=f"run `virsh nodedev-reattach pci_{re.sub('[:.]', '_', self.gpu)}`",
            )
        see_on_bus(host, self.gpu)
        if self.reserved:
            take_back(host, self.gpu)
        self._see_driver(host)
        now = driver_of(host, self.gpu)
        looks = "look into `journalctl -k` for what it says about the GPU"
        if self.card and not host.wait(lambda: self._has(host, "drm", "card"), self.wait_s):
            raise LostError(f"{now} is back on {self.gpu} but has no DRM node", hint=looks)
        if self.framebuffer and not host.wait(
            lambda: self._has(host, "graphics", "fb"), self.wait_s
        ):
            # The helper of DRM drivers waits for a monitor (drm_fb_helper.c, deferred_setup).
            raise LostError(
                f"{now} is back on {self.gpu} but has no framebuffer",
                hint="is a monitor connected and on? if so, " + looks,
            )

    def _see_driver(self, host: Host) -> None:
        override = override_of(host, self.gpu)
        if driver_of(host, self.gpu) is None and not override:
            host.write(f"{_PCI}/drivers_probe", self.gpu)
        wanted = self.driver or "its driver"
        if not host.wait(lambda: driver_of(host, self.gpu) is not None, self.wait_s):
            why = f"its driver_override is {override}" if override else f"within {self.wait_s:g} s"
            probe = "" if override else " after a probe"
            raise LostError(
                f"{wanted} did not come back to {self.gpu}{': ' if override else ' '}{why}{probe}",
                hint=f"try `{self.shell()}`, and look into `journalctl -k`",
            )
        now = driver_of(host, self.gpu)
        if self.driver not in ("", now):
            raise LostError(
                f"{self.driver} did not come back to {self.gpu}: {now} has taken it",
                hint=f"keep {now} from it, in /etc/modprobe.d or by driver_override",
            )

    def _has(self, host: Host, kind: str, prefix: str) -> bool:
        return has_node(host, self.gpu, kind, prefix)

    def shell(self) -> str:
        device = f"/{_PCI}/devices/{self.gpu}"
        clear = f"echo > {device}/driver_override; " if self.reserved else ""
        return f"{clear}[ -e {device}/driver ] || echo {self.gpu} > /{_PCI}/drivers_probe"

    def past(self) -> str:
        return f"saw to it that {self.driver or 'its driver'} has {self.gpu} again"
