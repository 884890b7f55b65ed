"""Letting the kernel remove a firmware framebuffer, by a driver that gives up on the GPU.

Every DRM driver's probe begins with aperture_remove_conflicting_pci_devices() (Linux
drivers/video/aperture.c), which unregisters the firmware's device with all it reserves, for
every display class. vmwgfx then stops at a PCI id that it does not know, before it maps or
touches anything of the device, and takes back what it did (vmwgfx_drv.c: vmw_probe,
vmw_setup_pci_resources). A driver_override lets it probe any device (pci-driver.c,
pci_match_device). Other DRM drivers go on, so none of them may be used for this.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import iomem, memory, modules
from ..machine.host import Host
from ..machine.iomem import BOOTFB
from ..machine.pci import displays
from .action import Action, require_on_bus
from .firmware import gone_for_good, missing_console
from .native import bound_driver, driver_override

DRIVER = "vmwgfx"
_PCI = "sys/bus/pci"
_MODPROBE = "/sbin/modprobe"


@dataclass(frozen=True, eq=False, repr=False)
class ProbeAperture(Action):
    """Make the kernel remove a firmware device from a GPU without a driver, by such a probe.

    device is the firmware's device. override is the GPU's driver_override from before, ""
    for none. unload: whether the module was not loaded before.
    """

    gpu: str
    device: str
    override: str
    unload: bool
    kind = "probe-aperture"

    def apply(self, host: Host) -> str | None:
        require_on_bus(host, self.gpu)
        if not _reserved(host, self.gpu):
            return None
        driver = bound_driver(host, self.gpu)
        if driver is not None:
            raise StepError(f"{DRIVER} cannot probe {self.gpu}: {driver} is bound to it")
        before = _state(host, self.gpu)
        if not host.exists(f"{_PCI}/drivers/{DRIVER}"):
            host.run(_MODPROBE, "-b", DRIVER)
        host.write(f"{_PCI}/devices/{self.gpu}/driver_override", f"{DRIVER}\n")
        host.write(f"{_PCI}/drivers_probe", self.gpu)
        _restore_override(host, self.gpu, self.override)
        remark = _unload(host) if self.unload else None
        self._check(host, before)
        return remark

    def _check(self, host: Host, before: tuple[str, str]) -> None:
        """Read back. Raises StepError."""
        driver = bound_driver(host, self.gpu)
        if driver is not None:
            raise StepError(f"{driver} is bound to {self.gpu} after a probe that it should reject")
        override = driver_override(host, self.gpu)
        if override != self.override:
            raise StepError(f"driver_override of {self.gpu} is {override!r} after writing it")
        left = _reserved(host, self.gpu)
        if left:
            raise StepError(f"{left[0]} of {self.gpu} is still there after {DRIVER} has probed it")
        # With runtime power management the kernel lets the device go back to sleep later.
        if not host.wait(lambda: _state(host, self.gpu) == before, 2):
            now = _state(host, self.gpu)
            raise StepError(
                f"{self.gpu} is not as before {DRIVER} has probed it: enabled {now[0]} times, in"
                f" power state {now[1]}; before {before[0]} times, in {before[1]}"
            )

    def shell(self) -> str:
        device = f"/{_PCI}/devices/{self.gpu}"
        return (
            f"modprobe -b {DRIVER}; echo {DRIVER} > {device}/driver_override;"
            f" echo {self.gpu} > /{_PCI}/drivers_probe; {_shell(self.gpu, self)}"
        )

    def past(self) -> str:
        return f"let {DRIVER} probe {self.gpu}, for which the kernel removed {self.device}"


@dataclass(frozen=True, eq=False, repr=False)
class EndProbe(Action):
    """Take back what an interrupted ProbeAperture has left; its fields are the same.

    Raises LostError if the kernel has removed the device: then that was for good.
    """

    gpu: str
    device: str
    override: str
    unload: bool
    kind = "end-probe"

    def apply(self, host: Host) -> None:
        if bound_driver(host, self.gpu) == DRIVER:
            host.write(f"{_PCI}/drivers/{DRIVER}/unbind", self.gpu)
        if host.exists(f"{_PCI}/devices/{self.gpu}"):
            _restore_override(host, self.gpu, self.override)
        if self.unload:
            _unload(host)
        if host.real(f"sys/bus/platform/devices/{self.device}") is None:
            raise gone_for_good(self.device)

    def missing(self, host: Host) -> LostError | None:
        return missing_console(host, self.device)

    def shell(self) -> str:
        return _shell(self.gpu, self)

    def past(self) -> str:
        return f"made sure that {DRIVER} leaves {self.gpu} alone"


def _shell(gpu: str, action: ProbeAperture | EndProbe) -> str:
    restore = f"echo {action.override}".strip() + f" > /{_PCI}/devices/{gpu}/driver_override"
    return f"{restore}; modprobe -r {DRIVER}" if action.unload else restore


def _restore_override(host: Host, gpu: str, override: str) -> None:
    """Write driver_override as it was, unless it is not ours any more."""
    if driver_override(host, gpu) == DRIVER != override:
        # An empty line clears it (Linux drivers/base/driver.c, driver_set_override).
        host.write(f"{_PCI}/devices/{gpu}/driver_override", f"{override}\n")


def _unload(host: Host) -> str | None:
    """Unload the module if it drives nothing; a remark where it stays, which harms nothing.

    modprobe unloads what only vmwgfx needs too; what it had loaded when it was killed before
    vmwgfx itself, such as ttm, stays and is unloaded with it the next time.
    """
    if not modules.loaded(host, DRIVER):
        return None
    if any(bound_driver(host, one) == DRIVER for one in displays(host)):
        return f"{DRIVER} stays loaded, as it drives a GPU now"
    try:
        host.run(_MODPROBE, "-r", DRIVER)
    except HostError as error:
        return f"{DRIVER} stays loaded: {error.text}"
    return None


def _reserved(host: Host, gpu: str) -> tuple[str, ...]:
    """BOOTFB and what lies in it, if it is in the GPU's memory. Raises HostError."""
    bars = memory.memory_bars(host, gpu)
    found = iomem.reservations(iomem.reserved_ranges(host), gpu, bars)
    bootfb = [one for one in found if one.name == BOOTFB]
    inside = (one for one in found if any(outer.range.holds(one.range) for outer in bootfb))
    return tuple(str(one) for one in inside)


def _state(host: Host, gpu: str) -> tuple[str, str]:
    """How often the device is enabled, and its power state."""
    device = f"{_PCI}/devices/{gpu}"
    power = host.read(f"{device}/power_state") or "unknown"
    # A device that no driver has used yet is "unknown", and in D0 (pci.h, pci_power_name).
    return host.read(f"{device}/enable") or "0", "D0" if power == "unknown" else power
