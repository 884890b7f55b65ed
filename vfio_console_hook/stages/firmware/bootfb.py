"""Taking simple-framebuffer.0, whose memory is held by the device itself (BOOTFB).

Shared by the stages drm_aperture and fbdev. Unbinding simpledrm or simplefb does
not free the BAR: BOOTFB stays with the platform device, and even a reservation that is
not busy blocks vfio's request for the whole BAR (Linux kernel/resource.c,
__request_region). Only the kernel can unregister the device.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...actions.device import BindNative, FindAgain, Rescan
from ...actions.firmware import Unbind
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import kernel
from ...machine.firmware import BOOTFB, FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover
from ..holders import await_closed
from . import sysfb

_GONE = "this host's firmware console will not come back before a reboot"
_NO_SYSFB = "boot with initcall_blacklist=sysfb_init"
# Before "fbdev: Hot-unplug firmware fb devices" (27599aacbaef) and its likes BOOTFB
# stays when a native driver binds; no symbol shows it.
_NATIVE_SINCE = (5, 18)


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """What frees BOOTFB, by the policy in the configuration.

    Raises RefusedError when nothing may, naming the ways out.
    """
    if gpu.native or not any(reservation.name == BOOTFB for reservation in gpu.reservations):
        return
    if handover.kernel_removes_from(gpu) and not gpu.vfio and (device.driver or device.parent):
        # Left bound: vfio-pci finds it by the driver's aperture and takes BOOTFB
        # along; unbound first, some kernels would not find it any more.
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"vfio-pci removes {device.name} and its BOOTFB itself",
            do=None,
            undo=None,
            loses=f"{_GONE}: vfio-pci removes {device.name} for good",
        )
    elif handover.config.bootfb == "native":
        yield from _native(host, gpu, device, handover, stage)
    elif handover.config.bootfb == "rescan":
        yield from _rescan(gpu, device, stage)
    else:
        raise RefusedError(
            f"BOOTFB of {device.name} holds memory of {gpu.address}, and this kernel"
            " does not free it for vfio-pci",
            hint=_ways_out(host, gpu, device),
        )


def _ways_out(host: Host, gpu: Gpu, device: FirmwareDevice, *, native: bool = True) -> str:
    """What may help on this machine, as a hint; without `bootfb: native` unless native."""
    policies = []
    if native and kernel.release(host) >= _NATIVE_SINCE and device.driver is not None:
        policies.append("`bootfb: native`")
    if device.parent == gpu.address:
        policies.append("`bootfb: rescan`")
    set_policy = f"set {' or '.join(policies)} for this VM, or " if policies else ""
    return f"{set_policy}{_NO_SYSFB}"


def _native(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    # Only where this was configured.
    from ...actions.native import ReturnNative, UnbindNative
    from ...machine import drivers

    _refuse_native(host, gpu, device)
    modalias = host.read(f"sys/bus/pci/devices/{gpu.address}/modalias") or ""
    module = _native_module(host, gpu, device)
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"binding {module} makes the kernel drop {device.name} with its BOOTFB",
        do=BindNative(gpu.address, modalias),
        undo=None,
        loses=f"the firmware console does not come back, {module} shows the console instead",
    )
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"nobody may have taken the nodes of {module} meanwhile",
        do=await_closed((gpu,), (), handover, strict=False),
        undo=None,
    )
    if drivers.driver_of_module(module).may_hang:
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"{module} may hang while it lets go; here that has a deadline, in libvirt it has"
            " none",
            do=UnbindNative(gpu.address, "", handover.config.holders.wait_s, False),
            undo=ReturnNative(gpu.address, "", False, False),
        )


def _refuse_native(host: Host, gpu: Gpu, device: FirmwareDevice) -> None:
    """Raise RefusedError where binding a native driver would not free BOOTFB."""
    what = f"`bootfb: native` cannot free BOOTFB of {gpu.address}"
    if kernel.release(host) < _NATIVE_SINCE:
        raise RefusedError(f"{what} in this kernel", hint=_NO_SYSFB)
    why = ""
    if gpu.vfio:
        why = "vfio-pci has it already"
    elif device.driver is None:
        why = f"no firmware driver is bound to {device.name}, so the kernel does not find it"
    if why:
        raise RefusedError(f"{what}: {why}", hint=_ways_out(host, gpu, device, native=False))


def _native_module(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    """The module that modprobe would load for the GPU. Raises RefusedError, HostError."""
    from ...machine import drivers, modules

    wanted = modules.modules_for(host, gpu.address)
    allowed = wanted.allowed
    if not allowed:
        raise RefusedError(
            f"`bootfb: native` needs a driver for {gpu.address}: {wanted.why_none}",
            hint=_ways_out(host, gpu, device, native=False),
        )
    if not all(drivers.driver_of_module(module).comes_off_easily for module in allowed):
        raise RefusedError(
            f"`bootfb: native` is not safe on {gpu.address}: {allowed[0]} may hang when it is"
            " taken off again",
            hint=_ways_out(host, gpu, device, native=False),
        )
    if drivers.is_apu(host, gpu.address):
        raise RefusedError(
            f"`bootfb: native` is not safe on {gpu.address}: it is part of an AMD processor, which"
            " may hang when its driver is taken off again",
            hint=_ways_out(host, gpu, device, native=False),
        )
    return allowed[0]


def _rescan(gpu: Gpu, device: FirmwareDevice, stage: str) -> Iterator[Step]:
    if device.parent != gpu.address:
        # Older kernels keep pointers into the freed PCI device and use them later
        # (kernel GPF in efifb_probe and platform_device_del).
        raise RefusedError(
            f"`bootfb: rescan` is not safe in this kernel: {device.name} is not below"
            f" {gpu.address} in sysfs",
            hint=f"use Linux 6.9 or later, or {_NO_SYSFB}",
        )
    if device.driver is not None:
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"{device.draws_as} draws the firmware's picture in its memory",
            do=Unbind(device.name, device.driver),
            # Only for a prepare that fails before the rescan: after it the
            # device has no place in sysfs any more and cannot be bound.
            undo=sysfb.way_back(gpu, device, device.driver),
            loses=f"{_GONE}: `bootfb: rescan` takes its device along",
        )
    yield from _found_again(gpu, stage)


def _found_again(gpu: Gpu, stage: str) -> Iterator[Step]:
    """The rescan, with what it needs to come to its end: written down before it, and apart.

    What has an undo is done once more for a VM that takes the steps over.
    """
    from ...actions.vfio import BindVfio  # only where this was configured

    on_vfio = BindVfio(gpu.address)
    if gpu.vfio:
        why = "a rescan takes it off vfio-pci, where it was before"
        yield Step(stage=stage, gpu=gpu.address, why=why, do=None, undo=on_vfio)
    why = "a rescan must not end halfway, with the GPU off the PCI bus"
    yield Step(stage=stage, gpu=gpu.address, why=why, do=None, undo=FindAgain(gpu.address))
    why = "found again on the PCI bus, its memory is free of BOOTFB"
    yield Step(stage=stage, gpu=gpu.address, why=why, do=Rescan(gpu.address), undo=None)
    if gpu.vfio:
        # The kernel makes a new device, without the driver_override of the old one; and what is
        # on vfio-pci before a VM starts, libvirt leaves there after it.
        why = "it was on vfio-pci before"
        yield Step(stage=stage, gpu=gpu.address, why=why, do=on_vfio, undo=None)
