"""Freeing the memory of simple-framebuffer.0, which the device itself reserves (BOOTFB).

Unbinding simpledrm or simplefb does not free the BAR: BOOTFB stays with the platform
device, and even a reservation that is not busy blocks vfio's request for the whole BAR
(Linux kernel/resource.c, __request_region). Only the kernel can unregister the device.
vfio-pci lets it for class 0300 and from Linux 6.0 on; otherwise the configuration has the
way. An efi- or vesa-framebuffer needs none of this: its unbind frees the BAR and can be
undone (sysfb.py), so Debian's kernels, which have no simple-framebuffer, do not come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...actions.aperture import DRIVER, EndProbe, ProbeAperture
from ...actions.device import BindNative, FindAgain, Rescan
from ...actions.firmware import decodes_memory
from ...actions.native import VFIO, ReturnNative, UnbindNative, driver_override
from ...actions.vfio import BindVfio
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import drivers, kernel, modules, pci, removal
from ...machine.firmware import FirmwareDevice
from ...machine.gpu import Gpu
from ...machine.host import Host
from ...machine.iomem import BOOTFB
from ...machine.removal import Removed
from ..handover import Handover
from ..preflight import await_closed
from . import sysfb

_GONE = "this host's firmware console will not come back before a reboot"
_NO_SYSFB = "initcall_blacklist=sysfb_init"
# Before "fbdev: Hot-unplug firmware fb devices" (27599aacbaef) and the commits around it
# BOOTFB stays when a native driver binds; no symbol of that time shows it.
_REMOVED_SINCE = (5, 18)
# The same time: until "drivers/firmware: Don't mark as busy the simple-framebuffer IO resource"
# BOOTFB is busy, so one that fills the BAR blocks it too. /proc/iomem does not show it.
_NOT_BUSY_SINCE = _REMOVED_SINCE
_VMWARE = "0x15ad"


def plan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """What frees BOOTFB, as the configuration allows.

    Raises RefusedError, with what would free it on this machine, where that does not.
    """
    found = [reservation for reservation in gpu.reservations if reservation.name == BOOTFB]
    if not found:
        return
    if handover.removed(host, device, bound=device.driver is not None) is Removed.YES:
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
        return
    if all(one.around for one in found) and kernel.release(host) >= _NOT_BUSY_SINCE:
        yield from sysfb.plan(host, gpu, device, handover, stage)
        return
    policy = handover.config.bootfb
    try:
        if policy not in _WAYS:
            raise RefusedError(
                f"BOOTFB of {device.name} holds memory of {gpu.address}, and this kernel"
                " does not free it for vfio-pci"
            )
        yield from _WAYS[policy](host, gpu, device, handover, stage)
    except RefusedError as error:
        hint = _ways_out(host, gpu, device, handover, stage)
        raise RefusedError(error.text, hint=hint) from error


def _ways_out(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> str:
    """What would free BOOTFB on this machine, as a hint: each was planned, and not refused."""
    others = (policy for policy in _WAYS if policy != handover.config.bootfb)
    works = [one for one in others if _works(_WAYS[one](host, gpu, device, handover, stage))]
    names = " or ".join(f"`bootfb: {one}`" for one in works)
    allowed = f"set {names.replace(' or ', ', ', len(works) - 2)} for this VM" if works else ""
    if "sysfb_init" in (kernel.parameter(host, "initcall_blacklist") or ()):
        # Kernels built with LTO give initcalls other names (include/linux/init.h, __initcall_id).
        useless = f"{_NO_SYSFB} on the kernel command line has no effect on this kernel"
        return f"{allowed}; {useless}" if allowed else useless
    boot = f"try to boot with {_NO_SYSFB}"
    return f"{allowed}, or {boot}" if allowed else boot


def _works(steps: Iterator[Step]) -> bool:
    try:
        return bool(tuple(steps))
    except RefusedError:
        return False


def _why_unseen(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    """Why the kernel would not remove the device for a DRM driver that probes the GPU; or ""."""
    rule = removal.of_kernel(host)
    if rule.never and kernel.release(host) < _REMOVED_SINCE:
        return f"Linux before 5.18 does not unregister {device.name} for a DRM driver"
    if gpu.vfio:
        return "it is already bound to vfio-pci"
    if device.driver is not None:
        return ""  # by the memory of the driver that is bound (aperture_detach_devices)
    # Or because the GPU is selected (sysfb_disable).
    decodes = decodes_memory(host, gpu.address)
    selected = rule.selects(host, gpu, device.parent, placed=True, decodes=decodes)
    if selected is Removed.YES:
        return ""
    return f"no firmware driver is bound to {device.name}, so the kernel does not find it"


# -- bootfb: aperture


def why_no_aperture(host: Host, gpu: Gpu, device: FirmwareDevice) -> str:
    """Why `bootfb: aperture` cannot free the BOOTFB of a device, as a clause; "" if it can.

    Raises HostError.
    """
    if host.read(f"sys/bus/pci/devices/{gpu.address}/vendor") == _VMWARE:
        return f"{gpu.address} is a GPU of VMware, which {DRIVER} would drive"
    return _why_unseen(host, gpu, device) or _why_no_probe(host, gpu)


def _why_no_probe(host: Host, gpu: Gpu) -> str:
    """Why vmwgfx cannot be had for a probe; "" if it is there or can be loaded.

    If it is there already it may drive a device of its own: only the GPU is probed.
    """
    if host.exists(f"sys/bus/pci/drivers/{DRIVER}"):
        return ""
    found = modules.candidates(host, DRIVER)
    if not found.found:
        return f"no module {DRIVER} was found for this kernel"
    if not found.allowed:
        return f"{DRIVER} is blacklisted"
    for address in pci.displays(host):
        device = f"sys/bus/pci/devices/{address}"
        if host.read(f"{device}/vendor") == _VMWARE and not host.exists(f"{device}/driver"):
            return f"loading {DRIVER} would bind it to {address} too"
    return modules.why_none_loads(host)


def _aperture(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    why_not = why_no_aperture(host, gpu, device)
    if why_not:
        raise RefusedError(
            f"BOOTFB of {device.name} holds memory of {gpu.address}, and `bootfb: aperture` cannot"
            f" free it: {why_not}"
        )
    # The firmware driver is left bound: before 6.10.8 the kernel finds only a bound one.
    fields = (
        gpu.address,
        device.name,
        _override_by_then(host, gpu),
        not host.exists(f"sys/bus/pci/drivers/{DRIVER}"),
    )
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"a probe by {DRIVER}, which rejects this GPU, makes the kernel remove {device.name}"
        " and its BOOTFB",
        do=ProbeAperture(*fields),
        undo=EndProbe(*fields),
        loses=f"{_GONE}: the kernel removes {device.name} for good",
    )


def _override_by_then(host: Host, gpu: Gpu) -> str:
    """The GPU's driver_override when its native driver has gone, as stages/native.py leaves it."""
    override = driver_override(host, gpu.address)
    reserved = gpu.native and not override and drivers.driver_named(gpu.driver).unload
    return VFIO if reserved else override


# -- bootfb: native


def _bind_native(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    left = f"{gpu.driver}, which is bound to it, leaves {device.name} alone" if gpu.native else ""
    why_not = left or _why_unseen(host, gpu, device)
    if why_not:
        raise RefusedError(f"`bootfb: native` cannot free BOOTFB of {gpu.address}: {why_not}")
    modalias = host.read(f"sys/bus/pci/devices/{gpu.address}/modalias") or ""
    module = _native_module(host, gpu)
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
        do=await_closed(host, (gpu,), (), handover, strict=False),
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


def _native_module(host: Host, gpu: Gpu) -> str:
    """The module that modprobe would load for the GPU. Raises RefusedError, HostError."""
    wanted = modules.modules_for(host, gpu.address)
    unsafe = f"`bootfb: native` is not safe on {gpu.address}"
    if not wanted.allowed:
        wrong = f"`bootfb: native` needs a driver for {gpu.address}: {wanted.why_none}"
    elif not all(drivers.driver_of_module(module).comes_off_easily for module in wanted.allowed):
        wrong = f"{unsafe}: unbinding {wanted.allowed[0]} again may hang"
    elif drivers.is_apu(host, gpu.address):
        wrong = f"{unsafe}: it is part of an AMD processor, and unbinding its driver may hang"
    elif modules.why_none_loads(host):
        wrong = f"`bootfb: native` cannot load {wanted.allowed[0]}: {modules.why_none_loads(host)}"
    else:
        return wanted.allowed[0]
    raise RefusedError(wrong)


# -- bootfb: rescan


def _rescan(
    host: Host, gpu: Gpu, device: FirmwareDevice, handover: Handover, stage: str
) -> Iterator[Step]:
    """The unbind and the rescan, with what has to be on disk before the rescan.

    What has an undo is done once more for a VM that takes the steps over, so the rescan
    itself has none.
    """
    if gpu.native:
        raise RefusedError(
            f"`bootfb: rescan` is not safe on {gpu.address}: {gpu.driver} would bind to it again"
            " before libvirt does"
        )
    if device.parent != gpu.address:
        # Older kernels keep pointers into the freed PCI device and use them later
        # (kernel GPF in efifb_probe and platform_device_del).
        raise RefusedError(
            f"`bootfb: rescan` is not safe before Linux 6.9: {device.name} is not below"
            f" {gpu.address} in sysfs"
        )
    if device.driver is not None:
        # The undo is only for a prepare that fails before the rescan: after it the device
        # has no place in sysfs any more and cannot be bound.
        loses = f"{_GONE}: `bootfb: rescan` removes its device"
        stays = gpu.vfio
        yield sysfb.unbind_step(gpu, device, device.driver, stage, loses, stays_on_vfio=stays)
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


_Way = Callable[[Host, Gpu, FirmwareDevice, Handover, str], Iterator[Step]]
_WAYS: dict[str, _Way] = {"aperture": _aperture, "native": _bind_native, "rescan": _rescan}
"""What yields the steps, or raises RefusedError, by the value of `bootfb`."""
