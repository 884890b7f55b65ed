"""Unbinding the GPU's own driver, and making sure that it comes back: amdgpu, i915, nvidia...

libvirt unbinds the driver of a managed device itself, in every release without a timeout
and with its locks held (virpci.c, virPCIDeviceUnbind). Drivers whose remove can hang are
unbound here instead, in a process with a timeout. The GPU is left without a driver:
libvirt would not re-attach what prepare had bound to vfio-pci.

While the VM runs, the person loses what the driver shows and computes on this GPU.
libvirt probes before release and does not check the result, so release does. nvidia
without a framebuffer of its own leaves the firmware's console alone: that is freed after
the driver has gone, and comes back before it does, in the order of a boot.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.consoles import ShowConsoles
from ..actions.modules import FreeFramebuffers, LoadModules, Reserve, UnloadModules
from ..actions.native import (
    VFIO,
    ReturnNative,
    UnbindNative,
    driver_override,
    has_card,
    has_framebuffer,
    has_monitor,
)
from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console, drivers, kernel, modules, pci
from ..machine.drivers import Driver
from ..machine.gpu import Gpu
from ..machine.host import Host
from . import fbcon
from .handover import Handover

NAME = "native"
_PCI = "sys/bus/pci/devices"
# Where NVIDIA's GPU Operator has the root of the container that loads the driver.
_CONTAINER = "run/nvidia/driver"
_OF_CONTAINER = (
    "a container has loaded the driver: keep it off this node, as GPU Operator does with the label"
    " nvidia.com/gpu.workload.config=vm-passthrough"
)
_UPGRADED = "reboot, if the kernel or the driver was upgraded since it was booted"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """What unbinds or unloads the driver, unless libvirt can do it, and what brings it back.

    Raises RefusedError when this release of the driver would hang.
    """
    if not gpu.native:
        return
    driver = drivers.driver_named(gpu.driver)
    if driver.unload:
        yield from _off_modules(host, gpu, driver, handover)
        return
    drawing = bool(gpu.drawing_firmware)
    here = driver.may_hang or driver.while_open != drivers.UNPLUGS or drawing
    if driver.may_hang:
        why = f"unbinding {driver.name} can hang; done here because libvirt has no timeout for it"
    elif drawing:
        why = f"{driver.name} goes before the firmware console, which it has left alone"
    elif here:
        why = (
            f"{driver.name} must not be open when it is unbound; done here because libvirt does not"
            " check that"
        )
    else:
        unbinds = "the bind to vfio-pci" if handover.bind_vfio else "libvirt"
        why = f"{unbinds} unbinds {driver.name}; release makes sure that it comes back"
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=why,
        do=_unbind(gpu, driver, handover) if here else None,
        undo=_return(host, gpu, handover),
    )


def stand_back(host: Host, gpu: Gpu, handover: Handover, stage: str) -> Iterator[Step]:
    """What lets the firmware's console come back before the driver, on behalf of a stage.

    libvirt has probed for the driver before release. One whose modules are unloaded cannot
    have come back by then.
    """
    driver = drivers.driver_named(gpu.driver)
    if driver.unload:
        staying, order = _staying_and_order(host, gpu, driver, handover)
        if order and not staying:
            return
    yield Step(
        stage=stage,
        gpu=gpu.address,
        why=f"{driver.name}, which libvirt probes for first, must come back after the firmware"
        " console",
        do=None,
        undo=_unbind(gpu, driver, handover),
    )


def _unbind(gpu: Gpu, driver: Driver, handover: Handover) -> UnbindNative:
    return UnbindNative(
        gpu.address,
        driver.name,
        handover.config.holders.wait_s,
        strict=driver.while_open != drivers.UNPLUGS,
    )


def _return(host: Host, gpu: Gpu, handover: Handover, *, reserved: bool = False) -> ReturnNative:
    return ReturnNative(
        gpu.address,
        gpu.driver or "",
        has_card(host, gpu.address),
        has_framebuffer(host, gpu.address),
        reserved,
        reset=_resets(handover),
        monitor=has_monitor(host, gpu.address),
    )


def _resets(handover: Handover) -> bool:
    return handover.config.release.retry == "reset"


def _off_modules(host: Host, gpu: Gpu, driver: Driver, handover: Handover) -> Iterator[Step]:
    """A driver that is unloaded rather than unbound, unless a GPU that stays has it too.

    Every GPU is reserved before the modules are unloaded, together with the VM's last GPU.
    Raises RefusedError.
    """
    going = _going(driver, handover)
    staying, order = _staying_and_order(host, gpu, driver, handover)
    reserved = _reservable(host, (gpu,))
    alone = bool(staying) or not order
    if alone:
        _refuse_shown(host, gpu, driver)
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{driver.name} must not bind to it again before libvirt does"
        if reserved
        else f"{driver.name} has to come back to it; its driver_override is the administrator's",
        do=Reserve(gpu.address) if reserved else None,
        undo=_return(host, gpu, handover, reserved=bool(reserved)),
    )
    if alone:
        why = f"also drives {staying[0]}, which stays" if staying else "is not a module"
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{driver.name} {why}, so it is unbound from this GPU only; that would hang while a"
            " program has it open",
            do=_unbind(gpu, driver, handover),
            # Another VM may take the GPU that stays meanwhile, and unload the modules.
            undo=LoadModules((gpu.address,), reserved, order[::-1], _resets(handover)),
        )
    elif gpu is going[0]:
        _refuse_no_way_back(host, order)
        yield from _unload(host, going, order, handover)


def _going(driver: Driver, handover: Handover) -> tuple[Gpu, ...]:
    return tuple(one for one in handover.gpus if one.driver == driver.name and not one.virtual)


def _staying_and_order(
    host: Host, gpu: Gpu, driver: Driver, handover: Handover
) -> tuple[list[str], tuple[str, ...]]:
    """The devices that keep the module, and its modules in the order of unloading.

    With any of the former, or without the latter, it is unbound from one GPU instead.
    """
    module = _module_of(host, gpu, driver)
    leaving = {one.address for one in _going(driver, handover)} | set(handover.siblings)
    staying = [one for one in pci.on_module(host, module) if one not in leaving]
    return staying, modules.unload_order(host, module)


def _refuse_shown(host: Host, gpu: Gpu, driver: Driver) -> None:
    """Refuse a release of the driver that does not release one GPU with a DRM node.

    With modeset=0 it would not hang, as nvidia_drm counts as no user then, but leave the node
    behind: it makes one for each GPU all the same (nvidia-drm-drv.c, nv_drm_probe_devices).
    """
    if has_card(host, gpu.address) and kernel.has_symbol(host, driver.remove_shown) is False:
        raise RefusedError(
            f"this release of {driver.name} cannot be unbound from {gpu.address} alone, which has a"
            " DRM node",
            hint=f"update {driver.name} to 580.105.08 or later, leave no other GPU on it, or keep"
            " nvidia_drm from loading",
        )


def _refuse_no_way_back(host: Host, order: tuple[str, ...]) -> None:
    """Refuse to unload what could not be loaded again, as after an upgrade of the kernel."""
    gone = [module for module in order if not modules.is_installed(host, module)]
    if gone:
        raise RefusedError(
            f"{', '.join(gone)} could not be loaded again after the VM: modprobe does not find"
            f" {'it' if len(gone) == 1 else 'them'} for the kernel that runs",
            hint=_OF_CONTAINER if host.exists(_CONTAINER) else _UPGRADED,
        )


def _unload(
    host: Host, going: tuple[Gpu, ...], order: tuple[str, ...], handover: Handover
) -> Iterator[Step]:
    addresses = tuple(one.address for one in going)
    framebuffers = tuple(name for one in going for name in one.native_framebuffers)
    # If nothing is drawn on them, fbcon does not use the module.
    if framebuffers and handover.fbcon_draws and not _consoles_move(host, going, handover):
        yield Step(
            stage=NAME,
            gpu=addresses[0],
            # nvidia-drm with fbdev=1, the default since 570; people found its module in
            # use for as long as fbcon was bound. The kernel's own helper takes no reference
            # for fbcon (drm_fbdev_ttm_fb_open), and in the lab there was none.
            why=f"{order[0]} may be in use while a console is on {' or '.join(framebuffers)}",
            do=FreeFramebuffers(framebuffers),
            undo=ShowConsoles(10),
        )
    yield Step(
        stage=NAME,
        gpu=addresses[0],
        why=f"unbinding {going[0].driver} blocks forever while a program uses it; unloading it"
        " fails at once instead",
        do=UnloadModules(addresses, order),
        undo=LoadModules(
            addresses, _reservable(host, going), order[::-1], _resets(handover)
        ),
    )


def _consoles_move(host: Host, going: tuple[Gpu, ...], handover: Handover) -> bool:
    """Whether the stage fbcon has moved the consoles away by then, or they are not there."""
    config = handover.config
    wanted = fbcon.NAME in config.stages and config.keep_console != "never"
    if console.has_fb_devices(host):
        return wanted and bool(fbcon.possible_targets(host, handover))
    from . import fbcon_nodeless  # takes 1.5 ms to load, and most kernels have fb devices

    staying = handover.staying_framebuffers(host)
    shown = (one for one in going if one.framebuffers)
    if staying and all(fbcon_nodeless.shown_elsewhere(host, one, staying) for one in shown):
        return True
    return wanted and bool(staying) and handover.fbcon_can_return(host)


def _module_of(host: Host, gpu: Gpu, driver: Driver) -> str:
    return host.link_name(f"{_PCI}/{gpu.address}/driver/module") or driver.name


def _reservable(host: Host, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """The addresses of those whose driver_override the administrator has not set.

    A vfio-pci on a GPU that another driver is bound to is a leftover, and would keep that
    driver from coming back; libvirt clears it too.
    """
    return tuple(one.address for one in gpus if driver_override(host, one.address) in ("", VFIO))
