"""Taking efi-framebuffer.0 and vesa-framebuffer.0, which own no memory themselves.

Shared by the stages drm_aperture and fbdev. Unbinding the driver frees the BAR.
The way back is to bind it again, as long as vfio-pci leaves the platform device
alone: for class 0300 the kernel unregisters it, unless it cannot see whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...actions.firmware import Decode, Rebind, Unbind
from ...claims.step import Step
from ...machine import kernel, memory
from ...machine.firmware import FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """The driver unbound, and the device kept from being removed where that can be done."""
    if device.driver is None or device.dead or gpu.native:
        # Linux 5.10 panics when a device that a native driver took over is unbound.
        return
    keeps = _keeps_device(host, gpu, device, handover)
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"{device.draws_as} draws the firmware's picture in its memory",
        do=Unbind(device.name, device.driver),
        undo=way_back(gpu, device, device.driver),
        loses="" if keeps and not gpu.vfio else _loss(host, gpu, device),
    )
    if keeps and _needs_decode_off(gpu, device, handover):
        yield _hidden(gpu, device, stage)


def taken_over(host: Host, handover: Handover, steps: Sequence[Step]) -> Iterator[Step]:
    """What steps that another VM has taken lack, if its prepare did not come to its end.

    A device whose driver is unbound already is kept, too, where it is to be bound again.
    """
    hidden = {step.do.gpu for step in steps if isinstance(step.do, Decode)}
    back = {step.undo.device: step.stage for step in steps if isinstance(step.undo, Rebind)}
    for gpu in handover.gpus:
        for device in gpu.firmware:
            if device.name not in back or device.driver is not None or gpu.address in hidden:
                continue
            needs = _needs_decode_off(gpu, device, handover)
            if needs and _keeps_device(host, gpu, device, handover):
                yield _hidden(gpu, device, back[device.name])


def _hidden(gpu: Gpu, device: FirmwareDevice, stage: str) -> Step:
    """What keeps the device from being removed."""
    return Step(
        stage=stage,
        gpu=gpu.address,
        why=f"vfio-pci, which would remove {device.name} for good, does not see whose it"
        " is while the GPU's memory decoding is off",
        do=Decode(gpu.address, False),
        undo=Decode(gpu.address, True),
    )


def way_back(gpu: Gpu, device: FirmwareDevice, driver: str) -> Rebind:
    """The driver bound again, if the device still draws inside the GPU's memory."""
    first, last = (device.range.first, device.range.last) if device.range else (-1, -1)
    return Rebind(device.name, driver, gpu.address, first, last)


def _needs_decode_off(gpu: Gpu, device: FirmwareDevice, handover: Handover) -> bool:
    return not gpu.vfio and handover.kernel_removes_from(gpu) and device.parent == gpu.address


def _keeps_device(host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover) -> bool:
    """Whether the platform device is there after vfio-pci has bound, so that it can come back."""
    if device.parent == gpu.address:
        return not (handover.kernel_removes_from(gpu) and kernel.locked_down(host))
    # Linux 6.1.47 to 6.8 unregister it only with a GPU whose ROM is shadowed, be it this
    # one or another that leaves with it; 6.0.3 to 6.1.46 do it always, and nothing but the
    # version would tell, so this hopes for the newer one and release says what became of it.
    return not any(
        handover.kernel_removes_from(one)
        and not one.vfio
        and memory.rom_shadowed(host, one.address)
        for one in handover.gpus
    )


def _loss(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    if gpu.vfio:
        return f"the firmware console stays off as long as vfio-pci has {gpu.address}"
    loss = (
        "this host's console will not come back before a reboot: vfio-pci of this kernel"
        f" removes {device.name} for good"
    )
    if device.parent == gpu.address and kernel.locked_down(host):
        loss += ", and kernel lockdown forbids to prevent it"
    return loss
