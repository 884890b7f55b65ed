"""Freeing what efi-framebuffer.0 and vesa-framebuffer.0 show, which own no memory themselves.

Unbinding the driver frees the BAR, and binding it again brings the console back, if
vfio-pci has not removed the platform device meanwhile (machine/removal.py). A kernel
that looks for the device by its GPU does not find it while that decodes no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...actions.firmware import Decode, Rebind, Unbind
from ...claims.step import Step
from ...machine import kernel
from ...machine.firmware import FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ...machine.removal import Removed
from ..handover import Handover


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """The unbind of the driver, and what keeps the kernel from removing the device if possible."""
    if device.driver is None or device.dead:
        # Linux 5.10 panics when a device that a native driver took over is unbound.
        return
    decode_off = _decode_off_helps(host, gpu, device, handover)
    loses = _loss(host, gpu, device, handover, gpu.address if decode_off else "")
    stays = handover.stays_on_vfio(gpu)
    yield unbind_step(gpu, device, device.driver, stage, loses, stays_on_vfio=stays)
    if decode_off:
        yield _decode_off_step(gpu, device, stage)


def unbind_step(
    gpu: Gpu,
    device: FirmwareDevice,
    driver: str,
    stage: str,
    loses: str,
    *,
    stays_on_vfio: bool = False,
) -> Step:
    """The unbind of a firmware driver, undone if the device still draws in the GPU's memory."""
    first, last = (device.range.first, device.range.last) if device.range else (-1, -1)
    return Step(
        stage=stage,
        gpu=gpu.address,
        why=f"{device.draws_as} draws the firmware console in its memory",
        do=Unbind(device.name, driver),
        undo=Rebind(device.name, driver, gpu.address, first, last, stays_on_vfio),
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
            if _decode_off_helps(host, gpu, device, handover):
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


def _decode_off_helps(host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover) -> bool:
    """Whether vfio-pci may leave the device in place if the GPU's memory decoding is off."""
    if gpu.vfio or not handover.removal.knows_owners or kernel.locked_down(host):
        return False
    off = handover.removed(host, device, bound=False, undecoded=gpu.address)
    return off < handover.removed(host, device, bound=False)


def _loss(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, undecoded: str
) -> str:
    """What the person loses where the console does not come back, as a clause; else ""."""
    if handover.stays_on_vfio(gpu):
        return f"the firmware console stays off while {gpu.address} is bound to vfio-pci"
    removed = handover.removed(host, device, bound=False, undecoded=undecoded)
    if removed is Removed.NO:
        return ""
    if removed is Removed.MAY:
        return (
            "this host's console may not come back before a reboot: nothing shows whether vfio-pci"
            f" of this kernel removes {device.name}"
        )
    loss = (
        "this host's console will not come back before a reboot: vfio-pci of this kernel"
        f" removes {device.name} for good"
    )
    if handover.removal.knows_owners and device.parent == gpu.address and kernel.locked_down(host):
        loss += ", and kernel lockdown makes that unavoidable"
    return loss
