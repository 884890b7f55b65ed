"""Unbinding a GPU's own driver, and making sure that it comes back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import LostError, StepError
from ..machine import console, firmware
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action, require_on_bus
from .holders import AwaitClosed

VFIO = "vfio-pci"
_PCI = "sys/bus/pci"


def bound_driver(host: Host, gpu: str) -> str | None:
    """The driver that is bound to the GPU, or None."""
    return host.link_name(f"{_PCI}/devices/{gpu}/driver")


def driver_override(host: Host, gpu: str) -> str:
    """The only driver that may bind to the GPU, "" when any may (drivers/pci/pci-sysfs.c)."""
    text = host.read(f"{_PCI}/devices/{gpu}/driver_override") or ""
    return "" if text == "(null)" else text


def has_card(host: Host, gpu: str) -> bool:
    """Whether the GPU has a DRM card of its own driver."""
    return _has_node(host, gpu, "drm", "card")


def has_framebuffer(host: Host, gpu: str) -> bool:
    """Whether the GPU has a framebuffer of its own driver."""
    return _has_node(host, gpu, "graphics", "fb")


def _has_node(host: Host, gpu: str, kind: str, prefix: str) -> bool:
    nodes = (f"sys/class/{kind}/{name}" for name in host.list(f"sys/class/{kind}"))
    return any(
        node.rpartition("/")[2].startswith(prefix)
        and console.pci_ancestor(host, node) == gpu
        and not firmware.is_firmware_node(host.real(node) or "")
        for node in nodes
    )


def clear_reservation(host: Host, gpu: str) -> None:
    """Undo Reserve, of modules.py, unless the GPU is on vfio-pci: then it is in use."""
    if not is_vfio(host, gpu) and driver_override(host, gpu) == VFIO:
        host.write(f"{_PCI}/devices/{gpu}/driver_override", "\n")


@dataclass(frozen=True)
class UnbindNative(Action):
    """Unbind the GPU's own driver, once no process has the GPU open.

    gpu may also be the address of a sound function, whose nodes are given then. driver ""
    means the one that is bound then. wait_s and strict are as in AwaitClosed, which is done
    here again because its step was some steps ago, or was another VM's.
    """

    gpu: str
    driver: str
    wait_s: float
    strict: bool
    nodes: tuple[str, ...] = ()
    kind = "unbind-native"

    def apply(self, host: Host) -> str | None:
        driver = bound_driver(host, self.gpu)
        if driver is None or is_vfio(host, self.gpu) or self.driver not in ("", driver):
            return None
        AwaitClosed(self.gpu, self.nodes, self.wait_s, self.strict).apply(host)
        remark = self._unbind(host, driver)
        if bound_driver(host, self.gpu) is not None:
            raise StepError(f"{self.gpu} is still bound to {driver} after an unbind")
        return remark

    def _unbind(self, host: Host, driver: str) -> str:
        if self.nodes:
            from . import sound  # only for GPUs with a sound function

            return sound.unbind(host, driver, self.gpu, self.nodes)
        host.write(f"{_PCI}/drivers/{driver}/unbind", self.gpu)
        return ""

    def shell(self) -> str:
        return f"echo {self.gpu} > /{_PCI}/devices/{self.gpu}/driver/unbind"

    def past(self) -> str:
        return f"unbound {self.gpu} from {self.driver or 'its driver'}"


@dataclass(frozen=True)
class ReturnNative(Action):
    """Make sure that the GPU's own driver is bound again, with its nodes.

    driver "" means any. card and framebuffer: whether there was a DRM card, and a
    framebuffer. reserved: whether Reserve was done. wait_s: how long each may take.
    Raises LostError with the first thing that is missing.

    libvirt probes before release and does not check the result (virpci.c,
    virPCIDeviceUnbindFromStub).
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
            # libvirt leaves it there after an earlier run with managed='no', and if it was
            # killed while it started the VM.
            raise LostError(
                f"{self.driver or 'its driver'} did not come back to {self.gpu}: libvirt has left"
                " it on vfio-pci",
                hint=f"run `virsh nodedev-reattach pci_{re.sub('[:.]', '_', self.gpu)}`",
            )
        require_on_bus(host, self.gpu)
        if self.reserved:
            clear_reservation(host, self.gpu)
        now = self._await_driver(host)
        see_log = "see `journalctl -k` for messages about the GPU"
        if self.card and not host.wait(lambda: has_card(host, self.gpu), self.wait_s):
            raise LostError(f"{now} is back on {self.gpu} but has no DRM node", hint=see_log)
        if self.framebuffer and not host.wait(lambda: has_framebuffer(host, self.gpu), self.wait_s):
            # The helper of DRM drivers waits for a monitor (drm_fb_helper.c, deferred_setup).
            raise LostError(
                f"{now} is back on {self.gpu} but has no framebuffer",
                hint=f"is a monitor connected and on? if so, {see_log}",
            )

    def _await_driver(self, host: Host) -> str | None:
        """Probe for the driver and wait for it; the name of the one that is bound."""
        override = driver_override(host, self.gpu)
        if bound_driver(host, self.gpu) is None and not override:
            host.write(f"{_PCI}/drivers_probe", self.gpu)
        wanted = self.driver or "its driver"
        if not host.wait(lambda: bound_driver(host, self.gpu) is not None, self.wait_s):
            why = f" within {self.wait_s:g} s after a probe"
            if override:
                why = f": its driver_override is {override}"
            raise LostError(
                f"{wanted} did not come back to {self.gpu}{why}",
                hint=f"try `{self.shell()}`, and see `journalctl -k`",
            )
        now = bound_driver(host, self.gpu)
        if self.driver not in ("", now):
            raise LostError(
                f"{self.driver} did not come back to {self.gpu}: {now} is bound to it",
                hint=f"blacklist {now} in /etc/modprobe.d, or set driver_override",
            )
        return now

    def shell(self) -> str:
        device = f"/{_PCI}/devices/{self.gpu}"
        clear = f"echo > {device}/driver_override; " if self.reserved else ""
        return f"{clear}[ -e {device}/driver ] || echo {self.gpu} > /{_PCI}/drivers_probe"

    def past(self) -> str:
        return f"made sure that {self.driver or 'its driver'} is bound to {self.gpu} again"
