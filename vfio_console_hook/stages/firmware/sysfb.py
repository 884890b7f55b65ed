"""Freeing what efi-framebuffer.0 and vesa-framebuffer.0 show, which own no memory themselves.

Unbinding the driver frees the BAR, and binding it again brings the console back, if
vfio-pci has not removed the platform device meanwhile: for class 0300 the kernel
unregisters it, unless it cannot match it to the GPU.
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
    """The unbind of the driver, and what keeps the kernel from removing the device if possible."""
    if device.driver is None or device.dead or gpu.native:
        # Linux 5.10 panics when a device that a native driver took over is unbound.
        return
    survives = _survives_vfio(host, gpu, device, handover)
    loses = "" if survives and not gpu.vfio else _loss(host, gpu, device)
    yield unbind_step(gpu, device, device.driver, stage, loses)
    if survives and _needs_decode_off(gpu, device, handover):
        yield _decode_off_step(gpu, device, stage)


def unbind_step(gpu: Gpu, device: FirmwareDevice, driver: str, stage: str, loses: str) -> Step:
    """The unbind of a firmware driver, undone if the device still draws in the GPU's memory."""
    first, last = (device.range.first, device.range.last) if device.range else (-1, -1)
    return Step(
        stage=stage,
        gpu=gpu.address,
        why=f"{device.draws_as} draws the firmware console in its memory",
        do=Unbind(device.name, driver),
        undo=Rebind(device.name, driver, gpu.address, first, last),
        loses=loses,
    )


def missing_decode_steps(host: Host, handover: Handover, steps: Sequence[Step]) -> Iterator[Step]:
    """The decode steps that are missing among steps taken over from another VM.

    They are missing when its prepare was interrupted after the unbind. The stages yield
    nothing for a device without a driver, but it must survive vfio-pci to be bound again.
    """
    done = {step.do.gpu for step in steps if isinstance(step.do, Decode)}
    rebound = {step.undo.device: step.stage for step in steps if isinstance(step.undo, Rebind)}
    for gpu in handover.gpus:
        for device in gpu.firmware:
            if device.name not in rebound or device.driver is not None or gpu.address in done:
                continue
            needed = _needs_decode_off(gpu, device, handover)
            if needed and _survives_vfio(host, gpu, device, handover):
                yield _decode_off_step(gpu, device, rebound[device.name])


def _decode_off_step(gpu: Gpu, device: FirmwareDevice, stage: str) -> Step:
    return Step(
        stage=stage,
        gpu=gpu.address,
        why=f"with memory decoding off, vfio-pci does not match {device.name} to this GPU and"
        " leaves it in place",
        do=Decode(gpu.address, False),
        undo=Decode(gpu.address, True),
    )


def _needs_decode_off(gpu: Gpu, device: FirmwareDevice, handover: Handover) -> bool:
    return not gpu.vfio and handover.kernel_removes_from(gpu) and device.parent == gpu.address


def _survives_vfio(host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover) -> bool:
    """Whether the platform device still exists once vfio-pci is bound, given the decode step."""
    if device.parent == gpu.address:
        return not (handover.kernel_removes_from(gpu) and kernel.locked_down(host))
    # Linux 6.1.47 to 6.8 unregister it only with a GPU whose ROM is shadowed, be it this
    # one or another that leaves with it; 6.0.3 to 6.1.46 always do, and only the version
    # shows which. So this assumes the newer ones, and release reports what happened.
    return not any(
        handover.kernel_removes_from(one)
        and not one.vfio
        and memory.rom_shadowed(host, one.address)
        for one in handover.gpus
    )


def _loss(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    """What the person loses where the console does not come back, as a clause."""
    if gpu.vfio:
        return f"the firmware console stays off while {gpu.address} is bound to vfio-pci"
    loss = (
        "this host's console will not come back before a reboot: vfio-pci of this kernel"
        f" removes {device.name} for good"
    )
    if device.parent == gpu.address and kernel.locked_down(host):
        loss += ", and kernel lockdown makes that unavoidable"
    return loss
