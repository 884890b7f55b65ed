"""Freeing coreboot's framebuffer, whose platform device reserves its own memory.

It is not the device that the kernel registers at boot, so sysfb_disable() never removes it
(Linux drivers/firmware/sysfb.c). Its driver on the coreboot bus registers it whenever it
is bound there, so it can always be given back. What removes it differs:

- Up to 7.0 the driver's remove function does. It has to come before vfio-pci, because that
  removes the platform device too if a driver is bound to it (drivers/video/aperture.c,
  aperture_detach_devices), and the remove function would then use freed memory.
- 7.1, and stable releases of 2026, have no remove function: only vfio-pci removes the device,
  from a GPU of class 0300 and if a driver is bound to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...actions.coreboot import REMOVE, RegisterCoreboot, UnregisterCoreboot
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import kernel
from ...machine.firmware import FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """What removes the device, and what registers it again.

    Raises RefusedError where nothing removes it.
    """
    entry = device.registered_by
    first, last = (device.range.first, device.range.last) if device.range else (-1, -1)
    stays = handover.stays_on_vfio(gpu)
    again = RegisterCoreboot(
        entry or "", device.name, device.driver or "", gpu.address, first, last, stays
    )
    if entry and kernel.has_symbol(host, REMOVE):
        stays_off = f"the firmware console stays off while {gpu.address} is bound to vfio-pci"
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"coreboot's driver frees the memory of {device.name} and registers it again",
            do=UnregisterCoreboot(entry, device.name),
            undo=again,
            loses=stays_off if stays else "",
        )
    elif device.driver and handover.removed(host, device, bound=True):
        gone = (
            "this host's firmware console will not come back before a reboot: vfio-pci removes"
            f" {device.name}, and coreboot's driver is not there to register it again"
        )
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"vfio-pci removes {device.name} and its memory itself"
            + ("; coreboot's driver registers it again" if entry else ""),
            do=None,
            undo=again if entry else None,
            loses="" if entry else gone,
        )
    else:
        raise RefusedError(
            f"coreboot's framebuffer, {device.name}, holds memory of {gpu.address}, and this kernel"
            " does not free it for vfio-pci",
            hint="try to boot with modprobe.blacklist=framebuffer_coreboot",
        )
