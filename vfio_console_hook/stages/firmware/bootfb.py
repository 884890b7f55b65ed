"""Freeing the memory of simple-framebuffer.0, which the device itself reserves (BOOTFB).

Unbinding simpledrm or simplefb does not free the BAR: BOOTFB stays with the platform
device, and even a reservation that is not busy blocks vfio's request for the whole BAR
(Linux kernel/resource.c, __request_region). Only the kernel can unregister the device.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...actions.device import BindNative, FindAgain, Rescan
from ...actions.native import ReturnNative, UnbindNative
from ...actions.vfio import BindVfio
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import drivers, kernel, modules
from ...machine.firmware import BOOTFB, FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover
from ..preflight import await_closed
from . import sysfb

_GONE = "this host's firmware console will not come back before a reboot"
_NO_SYSFB = "boot with initcall_blacklist=sysfb_init"
# Before "fbdev: Hot-unplug firmware fb devices" (27599aacbaef) and the commits around it
# BOOTFB stays when a native driver binds; no symbol shows it.
_NATIVE_SINCE = (5, 18)


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """What frees BOOTFB, as the configuration allows.

    Raises RefusedError, with the alternatives, where nothing that is allowed frees it.
    """
    if gpu.native or not any(reservation.name == BOOTFB for reservation in gpu.reservations):
        return
    if handover.kernel_removes_from(gpu) and not gpu.vfio and (device.driver or device.parent):
        # The driver is left bound: vfio-pci finds the device by the driver's aperture and
        # removes it with BOOTFB; some kernels would not find it after an unbind.
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"vfio-pci removes {device.name} and its BOOTFB itself",
            do=None,
            undo=None,
            loses=f"{_GONE}: vfio-pci removes {device.name} for good",
        )
    elif handover.config.bootfb == "native":
        yield from _bind_native(host, gpu, device, handover, stage)
    elif handover.config.bootfb == "rescan":
        yield from _rescan(gpu, device, stage)
    else:
        raise RefusedError(
            f"BOOTFB of {device.name} holds memory of {gpu.address}, and this kernel"
            " does not free it for vfio-pci",
            hint=_alternatives(host, gpu, device),
        )


def _alternatives(host: Host, gpu: Gpu, device: FirmwareDevice, *, native: bool = True) -> str:
    """What may help on this machine, as a hint; without `bootfb: native` unless native."""
    policies = []
    if native and kernel.release(host) >= _NATIVE_SINCE and device.driver is not None:
        policies.append("`bootfb: native`")
    if device.parent == gpu.address:
        policies.append("`bootfb: rescan`")
    set_policy = f"set {' or '.join(policies)} for this VM, or " if policies else ""
    return f"{set_policy}{_NO_SYSFB}"


# -- bootfb: native


def _bind_native(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    _refuse_useless(host, gpu, device)
    modalias = host.read(f"sys/bus/pci/devices/{gpu.address}/modalias") or ""
    module = _native_module(host, gpu, device)
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"binding {module} makes the kernel remove {device.name} and its BOOTFB",
        do=BindNative(gpu.address, modalias),
        undo=None,
        loses=f"the firmware console does not come back; {module} shows the console instead",
    )
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"a program may have opened the nodes of {module} meanwhile",
        do=await_closed((gpu,), (), handover, strict=False),
        undo=None,
    )
    if drivers.driver_of_module(module).may_hang:
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"unbinding {module} can hang; done here because libvirt has no timeout for it",
            do=UnbindNative(gpu.address, "", handover.config.holders.wait_s, False),
            undo=ReturnNative(gpu.address, "", False, False),
        )


def _refuse_useless(host: Host, gpu: Gpu, device: FirmwareDevice) -> None:
    """Raise RefusedError where binding a native driver would not free BOOTFB."""
    what = f"`bootfb: native` cannot free BOOTFB of {gpu.address}"
    if kernel.release(host) < _NATIVE_SINCE:
        raise RefusedError(f"{what} in this kernel", hint=_NO_SYSFB)
    why = ""
    if gpu.vfio:
        why = "it is already bound to vfio-pci"
    elif device.driver is None:
        why = f"no firmware driver is bound to {device.name}, so the kernel does not find it"
    if why:
        raise RefusedError(f"{what}: {why}", hint=_alternatives(host, gpu, device, native=False))


def _native_module(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    """The module that modprobe would load for the GPU. Raises RefusedError, HostError."""
    wanted = modules.modules_for(host, gpu.address)
    unsafe = f"`bootfb: native` is not safe on {gpu.address}"
    if not wanted.allowed:
        wrong = f"`bootfb: native` needs a driver for {gpu.address}: {wanted.why_none}"
    elif not all(drivers.driver_of_module(module).comes_off_easily for module in wanted.allowed):
        wrong = f"{unsafe}: unbinding {wanted.allowed[0]} again may hang"
    elif drivers.is_apu(host, gpu.address):
        wrong = f"{unsafe}: it is part of an AMD processor, and unbinding its driver may hang"
    else:
        return wanted.allowed[0]
    raise RefusedError(wrong, hint=_alternatives(host, gpu, device, native=False))


# -- bootfb: rescan


def _rescan(gpu: Gpu, device: FirmwareDevice, stage: str) -> Iterator[Step]:
    """The unbind and the rescan, with what has to be on disk before the rescan.

    What has an undo is done once more for a VM that takes the steps over, so the rescan
    itself has none.
    """
    if device.parent != gpu.address:
        # Older kernels keep pointers into the freed PCI device and use them later
        # (kernel GPF in efifb_probe and platform_device_del).
        raise RefusedError(
            f"`bootfb: rescan` is not safe in this kernel: {device.name} is not below"
            f" {gpu.address} in sysfs",
            hint=f"use Linux 6.9 or later, or {_NO_SYSFB}",
        )
    if device.driver is not None:
        # The undo is only for a prepare that fails before the rescan: after it the device
        # has no place in sysfs any more and cannot be bound.
        loses = f"{_GONE}: `bootfb: rescan` removes its device"
        yield sysfb.unbind_step(gpu, device, device.driver, stage, loses)
    on_vfio = BindVfio(gpu.address)
    if gpu.vfio:
        why = "the rescan unbinds it from vfio-pci, where it was before"
        yield Step(stage=stage, gpu=gpu.address, why=why, do=None, undo=on_vfio)
    why = "if the rescan is interrupted, release finds the GPU on the PCI bus again"
    yield Step(stage=stage, gpu=gpu.address, why=why, do=None, undo=FindAgain(gpu.address))
    why = "found again on the PCI bus, its memory is free of BOOTFB"
    yield Step(stage=stage, gpu=gpu.address, why=why, do=Rescan(gpu.address), undo=None)
    if gpu.vfio:
        # The kernel makes a new device, without the driver_override of the old one; and
        # libvirt leaves on vfio-pci what was there before the VM started.
        why = "it was on vfio-pci before"
        yield Step(stage=stage, gpu=gpu.address, why=why, do=on_vfio, undo=None)
