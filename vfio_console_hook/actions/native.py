"""Unbinding a GPU's own driver, and making sure that it comes back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console, firmware
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action, require_on_bus
from .holders import AwaitClosed

VFIO = "vfio-pci"
_PCI = "sys/bus/pci"
_MODESET = "sys/module/nvidia_drm/parameters/modeset"


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


def has_monitor(host: Host, gpu: str) -> bool:
    """Whether a monitor is connected to a card of the GPU (drm_sysfs.c, status_show)."""
    from ..machine import drm  # only for a GPU that shows a picture

    return any(
        connector.status == "connected"
        for card in drm.cards(host)
        if card.pci == gpu
        for connector in card.connectors
    )


def _has_node(host: Host, gpu: str, kind: str, prefix: str) -> bool:
    nodes = (f"sys/class/{kind}/{name}" for name in host.list(f"sys/class/{kind}"))
    return any(
        node.rpartition("/")[2].startswith(prefix)
        and console.pci_ancestor(host, node) == gpu
        and not firmware.is_firmware_node(host.real(node) or "")
        for node in nodes
    )


def reset(host: Host, gpu: str) -> bool:
    """Reset a GPU; False when the kernel cannot, or none of its methods works now.

    Linux drivers/pci/pci-sysfs.c, reset_store: pci_reset_function(), which wakes it first.
    """
    file = f"{_PCI}/devices/{gpu}/reset"
    if not host.exists(file):
        return False
    try:
        host.write(file, "1")
    except HostError:
        return False
    return True


def clear_reservation(host: Host, gpu: str) -> None:
    """Undo Reserve, of modules.py, unless the GPU is on vfio-pci: then it is in use."""
    if not is_vfio(host, gpu) and driver_override(host, gpu) == VFIO:
        host.write(f"{_PCI}/devices/{gpu}/driver_override", "\n")


@dataclass(frozen=True, eq=False, repr=False)
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
        remark = ""
        # nvidia_drm is a user of a GPU with a card, and lets go of it in the unbind; with
        # modeset=0 it is none (nvidia-drm-drv.c, nv_drm_dev_load).
        user = has_card(host, self.gpu) and host.read(_MODESET) != "N"
        if driver == "nvidia" and not user:
            from . import usage_count

            remark = usage_count.require_none(host, (self.gpu,), f"unbinding {driver}")
        host.write(f"{_PCI}/drivers/{driver}/unbind", self.gpu)
        return remark

    def shell(self) -> str:
        return f"echo {self.gpu} > /{_PCI}/devices/{self.gpu}/driver/unbind"

    def past(self) -> str:
        return f"unbound {self.gpu} from {self.driver or 'its driver'}"


@dataclass(frozen=True, eq=False, repr=False)
class ReturnNative(Action):
    """Make sure that the GPU's own driver is bound again, with its nodes.

    driver "" means any. card, framebuffer and monitor: whether there was a DRM card, a
    framebuffer, and a connected monitor. reserved: whether Reserve was done. wait_s: how long
    each may take. reset: whether the GPU is reset once if the driver does not bind to it. Raises
    LostError with the first thing that is missing.

    libvirt probes before release and does not check the result (virpci.c,
    virPCIDeviceUnbindFromStub).
    """

    gpu: str
    driver: str
    card: bool
    framebuffer: bool
    reserved: bool = False
    wait_s: float = 10
    reset: bool = False
    monitor: bool = False
    kind = "return-native"

    def apply(self, host: Host) -> str | None:
        if not is_vfio(host, self.gpu):
            require_on_bus(host, self.gpu)
        if self.reserved:
            clear_reservation(host, self.gpu)
        was_reset = not self._probe(host) and self.reset and self._probe_after_reset(host)
        if bound_driver(host, self.gpu) is not None and not is_vfio(host, self.gpu):
            host.wait(lambda: not self.card or has_card(host, self.gpu), self.wait_s)
            wanted = self.framebuffer and not self._is_dark(host)
            host.wait(lambda: not wanted or has_framebuffer(host, self.gpu), self.wait_s)
        lost = self.missing(host)
        if lost is not None:
            raise lost.adding(", not even after a reset") if was_reset else lost
        return "after a reset" if was_reset else None

    def _probe(self, host: Host) -> bool:
        """Probe for the driver, unless the administrator prevents it; whether one is bound."""
        if bound_driver(host, self.gpu) is None and not driver_override(host, self.gpu):
            host.write(f"{_PCI}/drivers_probe", self.gpu)
        return host.wait(lambda: bound_driver(host, self.gpu) is not None, self.wait_s)

    def _probe_after_reset(self, host: Host) -> bool:
        """Probe once more after a reset; False where that cannot be done, or cannot help."""
        if driver_override(host, self.gpu) or not self._is_loaded(host):
            return False
        if not reset(host, self.gpu):
            return False
        self._probe(host)
        return True

    def _is_loaded(self, host: Host) -> bool:
        return not self.driver or host.exists(f"{_PCI}/drivers/{self.driver}")

    def missing(self, host: Host) -> LostError | None:
        gpu, wanted = self.gpu, self.driver or "its driver"
        if not host.exists(f"{_PCI}/devices/{gpu}"):
            return LostError(f"{gpu} is no longer on the PCI bus")
        now = bound_driver(host, gpu)
        if is_vfio(host, gpu):
            # libvirt leaves it there if it was killed while it started the VM.
            return LostError(
                f"{wanted} did not come back to {gpu}: libvirt has left it on vfio-pci",
                hint=f"run `virsh nodedev-reattach pci_{re.sub('[:.]', '_', gpu)}`",
            )
        if now is None:
            return self._why_unbound(host, wanted)
        if self.driver not in ("", now):
            return LostError(
                f"{self.driver} did not come back to {gpu}: {now} is bound to it",
                hint=f"blacklist {now} in /etc/modprobe.d, or set driver_override",
            )
        return self._missing_node(host, now)

    def _why_unbound(self, host: Host, wanted: str) -> LostError:
        override = driver_override(host, self.gpu)
        lost = f"{wanted} did not come back to {self.gpu}"
        if override:
            return LostError(
                f"{lost}: its driver_override is {override}",
                hint=f"try `{self.shell()}`, and see `journalctl -k`",
            )
        from ..machine import power  # only for a GPU without its driver

        condition = power.condition(host, self.gpu)
        if not condition and not self._is_loaded(host):
            alias = f"$(cat /{_PCI}/devices/{self.gpu}/modalias)"
            return LostError(
                f"{lost}: the driver is not loaded", hint=f"load it with `modprobe {alias}`"
            )
        return LostError(lost + condition, hint=power.advice(host, self.gpu))

    def _is_dark(self, host: Host) -> bool:
        """Whether a monitor was there before, and none is now: no framebuffer is made then."""
        return self.monitor and not has_monitor(host, self.gpu)

    def _missing_node(self, host: Host, now: str) -> LostError | None:
        see_log = "see `journalctl -k` for messages about the GPU"
        dark = self._is_dark(host)
        unplugged = ", and all its connectors are disconnected" if dark else ""
        if self.card and not has_card(host, self.gpu):
            return LostError(f"{now} is back on {self.gpu} but has no DRM node", hint=see_log)
        if self.framebuffer and not has_framebuffer(host, self.gpu):
            # The helper of DRM drivers waits for a monitor (drm_fb_helper.c, deferred_setup).
            return LostError(
                f"{now} is back on {self.gpu} but has no framebuffer{unplugged}",
                hint=f"is a monitor connected and on? if so, {see_log}",
            )
        if dark:
            return LostError(
                f"{now} is back on {self.gpu} but all its connectors are disconnected",
                hint=f"is the monitor on? if so, {see_log}",
            )
        return None

    def shell(self) -> str:
        device = f"/{_PCI}/devices/{self.gpu}"
        clear = f"echo > {device}/driver_override; " if self.reserved else ""
        return f"{clear}[ -e {device}/driver ] || echo {self.gpu} > /{_PCI}/drivers_probe"

    def past(self) -> str:
        return f"made sure that {self.driver or 'its driver'} is bound to {self.gpu} again"
